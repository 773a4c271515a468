//! The two clusters, each with a type of its own, so that code cannot use one in place of the other.

mod metrics;

use std::path::PathBuf;

use cluster::{ApiServer, Source, WriteRate};
pub use cluster::{CredentialsError, chain};
use kube::Client;

use crate::unreadable::Reader;
pub use metrics::CallMetrics;

/// The guest cluster.
#[derive(Clone)]
pub struct GuestCluster {
    /// Its client.
    pub client: Client,
    /// A client for leases only. Its calls do not wait when other calls have to: an API server serves lease requests
    /// from a share of their own (API Priority and Fairness, level `leader-election`).
    pub lease_client: Client,
    /// Reports its objects that can't be read.
    pub reader: Reader,
    /// Its API server.
    pub server: ApiServer,
}

/// The namespace of this guest in the infra cluster.
#[derive(Clone)]
pub struct InfraCluster {
    /// The infra cluster's client.
    pub client: Client,
    /// The infra namespace.
    pub namespace: String,
    /// Reports its objects that can't be read.
    pub reader: Reader,
}

impl GuestCluster {
    /// Opens the guest cluster that `kubeconfig` names, or the pod's own cluster where it is `None`. `setting` is the
    /// flag that gave the kubeconfig. `master`, if given, replaces the address in the kubeconfig. This makes no call.
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
        let reader = metrics.reader("guest");
        let server = ApiServer::open(source, metrics.of("guest")).await?;
        let lease_client = server.with_own_pace().client();
        Ok(Self { client: server.client(), lease_client, reader, server })
    }

    /// The guest cluster behind a client that brings its own credentials.
    #[cfg(test)]
    pub(crate) fn over(client: Client) -> Self {
        let server = ApiServer::over(client.clone(), cluster::Unmetered);
        Self { lease_client: client.clone(), client, reader: Reader::default(), server }
    }
}

impl InfraCluster {
    /// Opens the infra cluster that `kubeconfig` names, or the pod's own cluster where it is `None`. If `namespace` is
    /// empty, the namespace of the credentials is used. Changes are sent at `rate` at most.
    ///
    /// # Errors
    /// The credentials can't be used.
    pub async fn open(
        kubeconfig: Option<PathBuf>,
        namespace: &str,
        rate: WriteRate,
        metrics: CallMetrics,
    ) -> Result<Self, CredentialsError> {
        let setting = "kubeconfig of the cloud-config";
        let source = Source { cluster: "infra", setting, kubeconfig, address: String::new() };
        let reader = metrics.reader("infra");
        let server = ApiServer::open(source, metrics.of("infra")).await?.with_write_rate(rate);
        let namespace = if namespace.is_empty() { server.namespace() } else { namespace }.to_owned();
        Ok(Self { client: server.client(), namespace, reader })
    }

    /// The infra namespace behind a client that brings its own credentials.
    #[cfg(test)]
    pub(crate) fn over(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned(), reader: Reader::default() }
    }
}

#[cfg(test)]
mod tests;
