//! The faults that the kubelets of the infra nodes can inject, and into which pods.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use super::simulated::{Kind, node_of};
use crate::simulator::fault_plan::{HeldStep, selects};

/// The faults that the kubelets can inject.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A step comes late, or not at all.
    Hold(HeldStep<Step, Selector>),
    /// The containers of [`Kind::Worker`] pods end with this exit code and message, repeatedly.
    Fail {
        /// The exit code.
        code: i32,
        /// The termination message.
        message: String,
        /// Of which pods.
        #[serde(default)]
        at: Selector,
    },
}

/// A moment at which a fault can hold a kubelet up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Before the containers start.
    Start,
    /// Before a [`Kind::Worker`] pod ends, or a launcher whose machine migrated away.
    Finish,
    /// Before a deleted pod goes away.
    Stop,
}

/// Which pods a fault is about; what is absent selects all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selector {
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// The pod's kind.
    pub kind: Option<Kind>,
    /// The pod's node.
    pub node: Option<String>,
}

impl Selector {
    /// Whether it is about this pod.
    pub(super) fn selects(&self, pod: &Pod, kind: Kind) -> bool {
        selects(self.namespace.as_deref(), &pod.namespace().unwrap_or_default())
            && selects(self.node.as_deref(), node_of(pod))
            && self.kind.is_none_or(|wanted| wanted == kind)
    }
}
