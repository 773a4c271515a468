//! What can go wrong between us and the guest cluster.

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{InClusterError, KubeconfigError};

/// An error of a call to the guest cluster, or of the credentials for it.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// The kubeconfig can't be read or understood.
    #[error("can not use the tenant kubeconfig {}; check --tenant-cluster-kubeconfig and the Secret mounted there", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// No kubeconfig was given and the process does not run in a pod of the guest cluster.
    #[error(
        "no service account of the guest cluster in this pod; run in a guest pod or give --tenant-cluster-kubeconfig"
    )]
    InCluster(#[source] Box<InClusterError>),
    /// The credentials were read and no client can be made of them.
    #[error("can not make a client for the guest cluster of these credentials")]
    Client(#[source] Box<kube::Error>),
    /// The guest cluster answered that it has no such Node.
    #[error(
        "the guest cluster has no node {name:?}; check --node-name, it must be the name of the Node object"
    )]
    NoSuchNode {
        /// The name asked for.
        name: String,
    },
    /// The call failed: nothing is known.
    #[error("the guest cluster did not give us {what}")]
    Call {
        /// What was asked for.
        what: String,
        /// The answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time: nothing is known.
    #[error("the guest cluster gave no answer about {what} within {} s", .after.as_secs())]
    TimedOut {
        /// What was asked for.
        what: String,
        /// How long we waited.
        after: Duration,
    },
}
