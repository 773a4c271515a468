//! The fields that are read of an `EndpointSlice`, in either cluster.

use serde::Deserialize;

/// Label: the Service that a slice belongs to (k8s.io/api/discovery, `LabelServiceName`).
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// What an endpoint can do; the conditions of the `EndpointSlice` API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// It takes new connections.
    pub ready: bool,
    /// It answers, be it ready or about to end.
    pub serving: bool,
    /// It is about to end.
    pub terminating: bool,
}

/// `conditions` of an endpoint; what is not said means its usual value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireConditions {
    /// `ready`.
    pub ready: Option<bool>,
    /// `serving`.
    pub serving: Option<bool>,
    /// `terminating`.
    pub terminating: Option<bool>,
}

impl Conditions {
    /// Takes new connections.
    pub const READY: Self = Self { ready: true, serving: true, terminating: false };

    /// Those of several endpoints on one Node: those of the one that kube-proxy would send traffic to.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if other.rank() > self.rank() { other } else { self }
    }

    /// Those of an endpoint in a VM: what both can do.
    #[must_use]
    pub fn and(self, vm: Self) -> Self {
        Self {
            ready: self.ready && vm.ready,
            serving: self.serving && vm.serving,
            terminating: self.terminating || vm.terminating,
        }
    }

    fn rank(self) -> u8 {
        match self {
            Self { ready: true, .. } => 3,
            Self { serving: true, terminating: true, .. } => 2,
            Self { serving: true, .. } => 1,
            _ => 0,
        }
    }
}

impl From<&WireConditions> for Conditions {
    /// Nothing said is ready, and serving is what ready is (EndpointSlice API).
    fn from(wire: &WireConditions) -> Self {
        let ready = wire.ready.unwrap_or(true);
        Self { ready, serving: wire.serving.unwrap_or(ready), terminating: wire.terminating.unwrap_or(false) }
    }
}
