//! The two clusters, as two types that can't be taken for each other.

mod metrics;

use std::path::PathBuf;

use cluster::{ApiServer, Source};
pub use cluster::{CredentialsError, chain};
use kube::Client;

pub use metrics::CallMetrics;

/// The guest cluster.
#[derive(Clone)]
pub struct GuestCluster {
    /// Its client.
    pub client: Client,
    /// A client for leases, whose calls do not wait when others have to: an API server grants leases a share of their own (API
    /// Priority and Fairness, level `leader-election`).
    pub lease_client: Client,
}

/// The namespace of this guest in the infra cluster.
#[derive(Clone)]
pub struct InfraCluster {
    /// The infra cluster's client.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

impl GuestCluster {
    /// The guest cluster that `kubeconfig`, the value of the flag `setting`, names, or the pod's own. `master` is its address if
    /// the kubeconfig's is not to be used. No call is made.
    ///
    /// # Errors
    /// The credentials can't be used.
    pub async fn open(
        setting: &'static str,
        kubeconfig: Option<PathBuf>,
        master: &str,
        metrics: CallMetrics,
    ) -> Result<Self, CredentialsError> {
        let source = Source { cluster: "guest", setting, kubeconfig, address: master.to_owned() };
        let server = ApiServer::open(source, metrics.of("guest")).await?;
        Ok(Self { client: server.client(), lease_client: server.with_own_pace().client() })
    }

    /// The guest cluster behind a client whose credentials are its own matter.
    #[cfg(test)]
    pub(crate) fn over(client: Client) -> Self {
        Self { lease_client: client.clone(), client }
    }
}

impl InfraCluster {
    /// The infra cluster that `kubeconfig` names, or the pod's own. An empty `namespace` is that of the credentials.
    ///
    /// # Errors
    /// The credentials can't be used.
    pub async fn open(
        kubeconfig: Option<PathBuf>,
        namespace: &str,
        metrics: CallMetrics,
    ) -> Result<Self, CredentialsError> {
        let setting = "kubeconfig of the cloud-config";
        let source = Source { cluster: "infra", setting, kubeconfig, address: String::new() };
        let server = ApiServer::open(source, metrics.of("infra")).await?;
        let namespace = if namespace.is_empty() { server.namespace() } else { namespace }.to_owned();
        Ok(Self { client: server.client(), namespace })
    }
}

#[cfg(test)]
mod tests;
