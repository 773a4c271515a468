//! Where credentials come from: a kubeconfig with the files that it names, or the pod's service account.

use std::path::PathBuf;

use cluster::{SERVICE_ACCOUNT_FILES, client, referenced_files};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// Where the credentials of a cluster are.
#[derive(Clone, Debug)]
pub struct Source {
    /// `guest` or `infra`: for texts and metrics.
    pub cluster: &'static str,
    /// The kubeconfig; `None` = the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The API server's address where that of the credentials is not to be used.
    pub address: String,
}

/// Why a cluster can't be reached with what was given.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig is wrong.
    #[error("{cluster} kubeconfig {} is not usable", .path.display())]
    Kubeconfig {
        /// Which cluster.
        cluster: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// A file can't be read.
    #[error("{} of the {cluster} cluster's credentials can't be read", .path.display())]
    Read {
        /// Which cluster.
        cluster: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No kubeconfig was given and there is no service account.
    #[error("no kubeconfig for the {cluster} cluster and no service account in this pod")]
    InCluster {
        /// Which cluster.
        cluster: &'static str,
        /// Why.
        #[source]
        source: InClusterError,
    },
    /// The address is none.
    #[error("{address:?} is no address of an API server")]
    Address {
        /// What was given.
        address: String,
        /// Why.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// No client can be made.
    #[error("no client for the {cluster} cluster can be made of its credentials")]
    Client {
        /// Which cluster.
        cluster: &'static str,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// What credentials name beside the cluster.
pub(super) struct Named {
    /// The namespace.
    pub namespace: String,
    /// Host and port of the API server.
    pub host: String,
}

/// Files and what they held.
pub(super) struct Files(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Files {
    /// Whether one of them holds something else now.
    pub(super) async fn changed(&self) -> bool {
        for (path, content) in &self.0 {
            if tokio::fs::read(path).await.ok() != *content {
                return true;
            }
        }
        false
    }
}

impl Source {
    /// The files, a client made of them, and what they name. The files are read before the client is made: a
    /// change in between shows at the next look.
    pub(super) async fn load(&self) -> Result<(Files, Client, Named), AccessError> {
        let cluster = self.cluster;
        let (files, mut config) = if let Some(path) = &self.kubeconfig {
            self.of_kubeconfig(path).await?
        } else {
            let mut files = Vec::new();
            for path in SERVICE_ACCOUNT_FILES.map(PathBuf::from) {
                let content = tokio::fs::read(&path).await.ok();
                files.push((path, content));
            }
            let config = Config::incluster().map_err(|source| AccessError::InCluster { cluster, source })?;
            (Files(files), config)
        };
        if !self.address.is_empty() {
            let address = self.address.clone();
            config.cluster_url =
                self.address.parse().map_err(|source| AccessError::Address { address, source })?;
        }
        let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        let named = Named { namespace: config.default_namespace.clone(), host };
        let client =
            client(config).map_err(|source| AccessError::Client { cluster, source: Box::new(source) })?;
        Ok((files, client, named))
    }

    async fn of_kubeconfig(&self, path: &PathBuf) -> Result<(Files, Config), AccessError> {
        let cluster = self.cluster;
        let wrong =
            |source| AccessError::Kubeconfig { cluster, path: path.clone(), source: Box::new(source) };
        let read = |path: PathBuf| async move {
            match tokio::fs::read(&path).await {
                Ok(content) => Ok((path, Some(content))),
                Err(source) => Err(AccessError::Read { cluster, path, source }),
            }
        };
        // Also in front of the parser: its error would not tell a missing file from a wrong one.
        let mut files = vec![read(path.clone()).await?];
        let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
        for path in referenced_files(&kubeconfig) {
            files.push(read(path).await?);
        }
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Ok((Files(files), config.map_err(wrong)?))
    }
}
