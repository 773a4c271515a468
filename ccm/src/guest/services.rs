//! A Service of the guest, with the fields that are read. It is never written back, because the fields that are not
//! named here would be lost. The CCM changes it by patches.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Resource;
use kube::api::ObjectMeta;
use kubevirt::null_as_default;
use serde::Deserialize;

use crate::wire::{
    metadata::{FIELD_MANAGER, last_writer},
    service::{Condition, LOAD_BALANCER, ServiceSpec, ServiceStatus},
};

/// The finalizer of the framework (k8s.io/cloud-provider/service/helpers).
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Condition: whether infra has provided the load balancer, with an address.
pub const PROVISIONED: &str = "kubevirt.io/LoadBalancerProvisioned";
/// Condition: whether the load balancer has backends to send traffic to.
pub const SERVING: &str = "kubevirt.io/LoadBalancerServing";

/// A Service of the guest.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "Service")]
pub struct GuestService {
    /// Name, finalizers, time of deletion.
    pub metadata: ObjectMeta,
    /// What the user asks for.
    #[serde(default, deserialize_with = "null_as_default")]
    pub spec: ServiceSpec,
    /// What the CCM reports to the user.
    #[serde(default, deserialize_with = "null_as_default")]
    pub status: ServiceStatus,
    /// The other program that wrote `status.loadBalancer` last, by `managedFields`. Known of what a watch showed.
    #[serde(skip)]
    pub status_writer: Option<String>,
}

impl GuestService {
    /// Whether the Service asks this CCM for a load balancer: a class names another controller.
    pub fn wants_load_balancer(&self) -> bool {
        self.spec.kind == LOAD_BALANCER && self.spec.load_balancer_class.is_none()
    }

    /// Whether it has the framework's finalizer.
    pub fn has_finalizer(&self) -> bool {
        self.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
    }

    /// Whether it is being deleted.
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Its UID, which the API server gives to every object.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Drops the fields that are not read, before the object is kept. The fields that decide whether it asks this CCM
    /// for a load balancer stay. `keep_read` drops the annotations that are not read.
    pub fn slim(&mut self, keep_read: impl FnOnce(&mut BTreeMap<String, String>)) {
        let entries = self.metadata.managed_fields.take().unwrap_or_default();
        self.status_writer = last_writer(&entries, is_of_another_load_balancer);
        self.metadata.owner_references = None;
        self.metadata.labels = None;
        self.spec.selector.clear();
        self.status.conditions.retain(is_ours);
        if let Some(annotations) = &mut self.metadata.annotations {
            keep_read(annotations);
        }
        if !self.wants_load_balancer() && !self.has_finalizer() {
            self.metadata.annotations = None;
            self.spec = ServiceSpec {
                kind: std::mem::take(&mut self.spec.kind),
                load_balancer_class: self.spec.load_balancer_class.take(),
                ..ServiceSpec::default()
            };
        }
    }
}

/// Whether another program wrote `status.loadBalancer`.
fn is_of_another_load_balancer(entry: &ManagedFieldsEntry) -> bool {
    let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
    let has_address = fields.is_some_and(|fields| fields.pointer("/f:status/f:loadBalancer").is_some());
    has_address && entry.manager.as_deref() != Some(FIELD_MANAGER)
}

/// Whether the CCM owns this condition.
pub fn is_ours(condition: &Condition) -> bool {
    [PROVISIONED, SERVING].contains(&condition.kind.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_no_plan_reads_of_a_service_is_not_kept() {
        let long = "x".repeat(200 * 1024);
        let mut service: GuestService = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "u", "annotations": {"read": "1", "other": long}, "labels": {"big": long}},
            "spec": {"type": "LoadBalancer", "selector": {"big": long}, "ports": [{"port": 80}]},
            "status": {"conditions": [{"type": "Other", "message": long}, {"type": SERVING, "message": "ours"}]},
        }))
        .unwrap();
        service.slim(|annotations| annotations.retain(|key, _| key == "read"));
        let size = format!("{service:?}").len();
        assert!(size < 4 * 1024, "{size} bytes are kept");
        assert_eq!((service.spec.ports.len(), service.status.conditions.len()), (1, 1));
        assert_eq!(service.metadata.annotations.unwrap()["read"], "1");
    }
}
