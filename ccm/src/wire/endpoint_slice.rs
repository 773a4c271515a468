//! The fields of an `EndpointSlice` that are read, in either cluster.

use serde::Deserialize;

/// Label: the Service that a slice belongs to (k8s.io/api/discovery, `LabelServiceName`).
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The conditions of an endpoint, as in the `EndpointSlice` API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// It takes new connections.
    pub ready: bool,
    /// It answers, whether it is ready or terminating.
    pub serving: bool,
    /// It is terminating.
    pub terminating: bool,
}

/// `conditions` of an endpoint. A missing one has its usual value.
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

    /// Joins the conditions of several endpoints on one Node: those of the endpoint that kube-proxy would send traffic
    /// to.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if other.rank() > self.rank() { other } else { self }
    }

    /// Joins the conditions of an endpoint and of the VM that it runs in: what both can do.
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
    /// If `ready` is missing the endpoint is ready, and if `serving` is missing it is as `ready` (EndpointSlice API).
    fn from(wire: &WireConditions) -> Self {
        let ready = wire.ready.unwrap_or(true);
        Self { ready, serving: wire.serving.unwrap_or(ready), terminating: wire.terminating.unwrap_or(false) }
    }
}
