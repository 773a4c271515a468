//! A Service, as far as it is read: of the guest, and of infra. Neither is written back: what is not named here would be
//! lost. Changes are made to the whole object, see [`super::mirror`].

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;

use crate::wire::service::{LOAD_BALANCER, ServiceSpec, ServiceStatus};

/// The finalizer of the framework (k8s.io/cloud-provider/service/helpers).
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Whether infra has the load balancer, with an address.
pub const PROVISIONED: &str = "kubevirt.io/LoadBalancerProvisioned";
/// Whether there is something that traffic goes to.
pub const SERVING: &str = "kubevirt.io/LoadBalancerServing";

/// A Service of the guest.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "Service")]
pub struct GuestService {
    /// Name, finalizers, deletion.
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: ServiceSpec,
    /// What the guest's users see.
    #[serde(default)]
    pub status: ServiceStatus,
}

impl GuestService {
    /// Whether it asks us for a load balancer: a class names another controller.
    pub fn wants_load_balancer(&self) -> bool {
        self.spec.kind == LOAD_BALANCER && self.spec.load_balancer_class.is_none()
    }

    /// Whether the framework's finalizer is on it.
    pub fn has_finalizer(&self) -> bool {
        self.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
    }

    /// Whether it is being deleted.
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Its UID; the API server gives one to every object.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Drops what is not looked at, before the object is kept. What decides whether it asks us for a load balancer stays.
    pub fn slim(&mut self) {
        self.metadata.managed_fields = None;
        self.metadata.owner_references = None;
        self.status.conditions.retain(is_ours);
        if !self.wants_load_balancer() && !self.has_finalizer() {
            self.metadata.annotations = None;
            self.metadata.labels = None;
            self.spec = ServiceSpec {
                kind: std::mem::take(&mut self.spec.kind),
                load_balancer_class: self.spec.load_balancer_class.take(),
                ..ServiceSpec::default()
            };
        }
    }
}

/// Whether this condition is ours.
pub fn is_ours(condition: &Condition) -> bool {
    [PROVISIONED, SERVING].contains(&condition.type_.as_str())
}
