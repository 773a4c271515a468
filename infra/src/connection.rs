//! The connection to the infra API: from a kubeconfig or the pod's service account, made anew when the kubeconfig changed.

use std::{path::PathBuf, sync::RwLock, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::error::ConnectError;

/// Longest time for TCP and TLS; a dead address must not eat a whole call's deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client and where it came from.
pub(crate) struct Connection {
    source: Source,
    client: RwLock<Client>,
    /// One reconnect at a time; it holds the content that `client` was made from.
    content: tokio::sync::Mutex<Vec<u8>>,
}

enum Source {
    Kubeconfig(PathBuf),
    /// In-cluster or given: kube itself reloads the token file.
    Fixed,
}

impl Connection {
    /// Connects from `kubeconfig`, or from the pod's service account. Makes no call.
    pub(crate) async fn open(kubeconfig: Option<PathBuf>) -> Result<Self, ConnectError> {
        let Some(path) = kubeconfig else {
            let config = Config::incluster().map_err(ConnectError::InCluster)?;
            return Ok(Self::fixed(client(config)?));
        };
        let content = read(&path).await?;
        let client = client(load(&path).await?)?;
        Ok(Self { source: Source::Kubeconfig(path), client: RwLock::new(client), content: content.into() })
    }

    /// A connection that is never made anew.
    pub(crate) fn fixed(client: Client) -> Self {
        Self { source: Source::Fixed, client: RwLock::new(client), content: Vec::new().into() }
    }

    /// The present client (cheap).
    pub(crate) fn client(&self) -> Client {
        self.client.read().expect("no holder of this lock panics").clone()
    }

    /// After a 401: reads the kubeconfig again. True when it changed, so that the call is worth repeating.
    pub(crate) async fn reload(&self) -> bool {
        let Source::Kubeconfig(path) = &self.source else { return false };
        let mut known = self.content.lock().await;
        let made = async {
            let content = read(path).await?;
            if content == *known {
                return Ok(None);
            }
            Ok::<_, ConnectError>(Some((content, client(load(path).await?)?)))
        };
        match made.await {
            Ok(Some((content, client))) => {
                *known = content;
                *self.client.write().expect("no holder of this lock panics") = client;
                tracing::info!("infra kubeconfig changed, connected anew");
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "infra kubeconfig can't be loaded again"
                );
                false
            }
        }
    }
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, ConnectError> {
    tokio::fs::read(path)
        .await
        .map_err(|source| ConnectError::Read { path: path.display().to_string(), source })
}

async fn load(path: &PathBuf) -> Result<Config, ConnectError> {
    let wrong =
        |source| ConnectError::Kubeconfig { path: path.display().to_string(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrong)
}

fn client(mut config: Config) -> Result<Client, ConnectError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // kube's own retry would repeat a hotplug call without looking at the VM in between (design law 2).
    config.default_retry = false;
    Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
}
