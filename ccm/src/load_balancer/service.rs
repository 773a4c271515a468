//! A Service, as far as it is read: of the guest, and of infra. Neither is written back: what is not named here would be
//! lost. Changes are made to the whole object, see [`super::mirror`].

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ManagedFieldsEntry};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::conditions::is_ours;

/// Our name in `managedFields`: that of the reference, which is its program's name. So the entry that the reference left on
/// an object is our own from the first change on, and what it wrote and nobody wants any more goes away.
pub const FIELD_MANAGER: &str = "kubevirt-cloud-controller-manager";
/// The finalizer of the framework (k8s.io/cloud-provider/service/helpers).
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// `spec.type` of a Service that wants a load balancer.
pub const LOAD_BALANCER: &str = "LoadBalancer";
/// `spec.externalTrafficPolicy`: only nodes that have an endpoint, with the client's address.
pub const LOCAL: &str = "Local";
/// `spec.sessionAffinity`: none.
pub const NO_AFFINITY: &str = "None";
/// `ports[].protocol` where none is given.
const DEFAULT_PROTOCOL: &str = "TCP";

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

/// A Service of infra.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[serde(from = "WrittenService")]
#[resource(inherit = "Service")]
pub struct InfraService {
    /// Name, labels, annotations. `managedFields` are not kept: as JSON they are half of the object's memory.
    pub metadata: ObjectMeta,
    /// What is there.
    pub spec: ServiceSpec,
    /// What infra gave.
    pub status: ServiceStatus,
    /// What we or the reference wrote last.
    own: OwnFields,
}

/// What `managedFields` say that we, or the reference, wrote last: as far as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OwnFields {
    /// Keys of annotations.
    annotations: BTreeSet<String>,
    /// `spec.loadBalancerIP`.
    address: bool,
}

/// A Service of infra as the API has it.
#[derive(Deserialize)]
struct WrittenService {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: ServiceSpec,
    #[serde(default)]
    status: ServiceStatus,
}

/// The fields of `spec` that are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `loadBalancerClass`: another controller's matter where it is set.
    pub load_balancer_class: Option<String>,
    /// `ports`.
    pub ports: Vec<ServicePort>,
    /// `selector`.
    pub selector: BTreeMap<String, String>,
    /// `sessionAffinity`.
    pub session_affinity: String,
    /// `sessionAffinityConfig`.
    pub session_affinity_config: Option<Value>,
    /// `externalTrafficPolicy`.
    pub external_traffic_policy: String,
    /// `loadBalancerSourceRanges`.
    pub load_balancer_source_ranges: Vec<String>,
    /// `ipFamilies`.
    pub ip_families: Vec<String>,
    /// `ipFamilyPolicy`.
    pub ip_family_policy: Option<String>,
    /// `loadBalancerIP`.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: String,
    /// `externalIPs`.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// `name`.
    pub name: Option<String>,
    /// `protocol`; absent = TCP.
    pub protocol: Option<String>,
    /// `port`.
    pub port: i32,
    /// `targetPort`.
    pub target_port: Option<IntOrString>,
    /// `nodePort`; 0 = none.
    pub node_port: i32,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// `status`, as far as it is read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// `loadBalancer`.
    pub load_balancer: LoadBalancerStatus,
    /// `conditions`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// The addresses.
    pub ingress: Vec<LoadBalancerIngress>,
}

impl ServicePort {
    /// The protocol, with the API's default.
    pub fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or(DEFAULT_PROTOCOL)
    }
}

impl ServiceSpec {
    /// Whether the endpoints are only those of the node that the traffic reaches.
    pub fn is_local(&self) -> bool {
        self.external_traffic_policy == LOCAL
    }
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

impl InfraService {
    /// Whether it is being deleted.
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// The annotations that we or the reference wrote last.
    pub fn own_annotations(&self) -> impl Iterator<Item = &str> {
        self.own.annotations.iter().map(String::as_str)
    }

    /// Whether we or the reference wrote `spec.loadBalancerIP` last; some load balancers of infra write it themselves.
    pub fn owns_address(&self) -> bool {
        self.own.address
    }
}

impl From<WrittenService> for InfraService {
    fn from(written: WrittenService) -> Self {
        let WrittenService { mut metadata, spec, mut status } = written;
        status.conditions = Vec::new();
        let own = OwnFields::of(&metadata.managed_fields.take().unwrap_or_default());
        Self { metadata, spec, status, own }
    }
}

impl OwnFields {
    fn of(entries: &[ManagedFieldsEntry]) -> Self {
        let ours: Vec<&Value> = entries
            .iter()
            .filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.subresource.is_none())
            .filter_map(|entry| entry.fields_v1.as_ref().map(|fields| &fields.0))
            .collect();
        let at = |path: [&str; 2]| {
            ours.iter().filter_map(move |fields| fields.get(path[0])?.get(path[1])).collect::<Vec<_>>()
        };
        let keys = at(["f:metadata", "f:annotations"]).into_iter().filter_map(Value::as_object).flatten();
        let annotations = keys.filter_map(|(key, _)| key.strip_prefix("f:")).map(str::to_owned).collect();
        Self { annotations, address: !at(["f:spec", "f:loadBalancerIP"]).is_empty() }
    }
}
