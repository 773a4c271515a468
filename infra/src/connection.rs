//! The connection to the infra API: from a kubeconfig or the pod's service account, made anew when a file of either changed.
//!
//! Secrets and projected tokens change under a running process, by a swapped symlink that a watch on the file would not see.
//! So the files are read again before a call, at most once a second, and at once after an answer that new credentials may
//! cure. kube by itself reads a token file again within a minute and a CA never.

use std::{path::PathBuf, sync::RwLock, time::Duration};

use cluster::{SERVICE_ACCOUNT_FILES, chain, referenced_files};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{sync::Mutex, time::Instant};

use crate::error::ConnectError;

/// The files are read again before a call when they were read longer ago than this: a few KiB, and only while calls are made.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A client, where it came from, and how often it was made.
pub(crate) struct Connection {
    /// `None` = the client was given and takes care of itself.
    source: Option<Source>,
    current: RwLock<Current>,
    /// One look at the files at a time.
    seen: Mutex<Seen>,
}

/// The present client.
#[derive(Clone)]
pub(crate) struct Current {
    pub client: Client,
    /// Grows with each client that is made anew.
    generation: u64,
}

enum Source {
    Kubeconfig(PathBuf),
    ServiceAccount,
}

/// What was last made of the files.
struct Seen {
    files: Vec<(PathBuf, Vec<u8>)>,
    at: Instant,
    /// Why the newest files are not in use, said once.
    complaint: Option<String>,
}

impl Connection {
    /// Connects from `kubeconfig`, or from the pod's service account. Makes no call.
    pub(crate) async fn open(kubeconfig: Option<PathBuf>) -> Result<Self, ConnectError> {
        let source = kubeconfig.map_or(Source::ServiceAccount, Source::Kubeconfig);
        let (files, client) = source.load().await?;
        Ok(Self::new(Some(source), client, files))
    }

    /// A connection that is never made anew.
    pub(crate) fn fixed(client: Client) -> Self {
        Self::new(None, client, Vec::new())
    }

    fn new(source: Option<Source>, client: Client, files: Vec<(PathBuf, Vec<u8>)>) -> Self {
        let seen = Seen { files, at: Instant::now(), complaint: None };
        Self { source, current: RwLock::new(Current { client, generation: 0 }), seen: Mutex::new(seen) }
    }

    /// The client to make a call with (cheap). Looks at the files first where that is due.
    pub(crate) async fn current(&self) -> Current {
        // Who finds the lock taken has the look made for him, and goes on with what there is.
        if let Ok(mut seen) = self.seen.try_lock()
            && seen.at.elapsed() >= LOOK_INTERVAL
        {
            self.look(&mut seen).await;
        }
        self.present()
    }

    /// After a call with `used` failed in a way that new credentials may cure. True when there is a newer client.
    pub(crate) async fn is_renewed(&self, used: &Current) -> bool {
        let mut seen = self.seen.lock().await;
        if self.present().generation == used.generation {
            self.look(&mut seen).await;
        }
        self.present().generation != used.generation
    }

    fn present(&self) -> Current {
        self.current.read().expect("no holder of this lock panics").clone()
    }

    /// Makes a new client where the files changed. While what they hold can't be used, the last good client stays.
    async fn look(&self, seen: &mut Seen) {
        seen.at = Instant::now();
        let Some(source) = &self.source else { return };
        if !seen.changed().await {
            return;
        }
        match source.load().await {
            Ok((files, client)) => {
                (seen.files, seen.complaint) = (files, None);
                let mut current = self.current.write().expect("no holder of this lock panics");
                *current = Current { client, generation: current.generation + 1 };
                tracing::info!("the infra cluster's credentials changed, connected anew");
            }
            Err(error) => {
                let complaint = chain(&error);
                if seen.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!(
                        error = complaint,
                        "the infra cluster's credentials changed and can't be used"
                    );
                    seen.complaint = Some(complaint);
                }
            }
        }
    }
}

impl Seen {
    async fn changed(&self) -> bool {
        for (path, content) in &self.files {
            if tokio::fs::read(path).await.ok().as_ref() != Some(content) {
                return true;
            }
        }
        false
    }
}

impl Source {
    /// The files, and a client made of them. They are read before the client is made: a change in between shows at the next
    /// look.
    async fn load(&self) -> Result<(Vec<(PathBuf, Vec<u8>)>, Client), ConnectError> {
        let (files, config) = match self {
            Self::Kubeconfig(path) => {
                let wrong = |source| ConnectError::Kubeconfig {
                    path: path.display().to_string(),
                    source: Box::new(source),
                };
                // Also in front of the parser: its error would not tell a missing file from a wrong one.
                let content = read(path).await?;
                let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
                let mut files = vec![(path.clone(), content)];
                for path in referenced_files(&kubeconfig) {
                    files.push((path.clone(), read(&path).await?));
                }
                let options = KubeConfigOptions::default();
                (files, Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(wrong)?)
            }
            Self::ServiceAccount => {
                let mut files = Vec::new();
                for path in SERVICE_ACCOUNT_FILES.map(PathBuf::from) {
                    // Outside a pod there is none, which the next line says better.
                    let content = read(&path).await.unwrap_or_default();
                    files.push((path, content));
                }
                (files, Config::incluster().map_err(ConnectError::InCluster)?)
            }
        };
        let client = cluster::client(config).map_err(|error| ConnectError::Client(Box::new(error)))?;
        Ok((files, client))
    }
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, ConnectError> {
    tokio::fs::read(path)
        .await
        .map_err(|source| ConnectError::Read { path: path.display().to_string(), source })
}
