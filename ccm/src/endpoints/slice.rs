//! An `EndpointSlice` of infra: as it is read, and as we write it. Ours are ours as a whole, nobody else's are ever written.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;
use serde_json::{Value, json};

use super::backend::Conditions;
use crate::address::Family;
use crate::load_balancer::service::InfraService;
use crate::machine::wire::null_as_default;

/// Label: the Service that a slice belongs to (k8s.io/api/discovery, `LabelServiceName`).
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Label: who writes a slice (`LabelManagedBy`).
pub const MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of it, which is the reference's: what it left is ours.
pub const OUR_MANAGER: &str = "kubevirt-eps-controller";
/// Infra's controller of selectors (`k8s.io/endpointslice`).
const SELECTOR_MANAGER: &str = "endpointslice-controller.k8s.io";
/// Infra's controller that copies the older kind Endpoints (`k8s.io/kubernetes/pkg/controller/endpointslicemirroring`).
const MIRROR_MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// The kind behind a backend.
const INSTANCE_KIND: &str = "VirtualMachineInstance";
/// Its API.
const INSTANCE_API: &str = "kubevirt.io/v1";

/// Who writes a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// We, or the reference before us.
    Ours,
    /// Infra's controllers: of selectors, or of the copies of Endpoints.
    Infra,
    /// Somebody else.
    Other,
}

/// One of its endpoints: a VM at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name of VM and VMI.
    pub vm: String,
    /// UID of the VMI.
    pub uid: String,
    /// Where it is reached.
    pub address: IpAddr,
    /// The infra node that it runs on.
    pub host: Option<String>,
    /// What it can do.
    pub conditions: Conditions,
}

/// A port, on which every endpoint of a slice is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name of the Service's port; empty where it has none.
    pub name: String,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// The VM's port.
    pub port: i32,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// What we write into a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Labels, whole.
    pub labels: BTreeMap<String, String>,
    /// Ports, whole.
    pub ports: Vec<Port>,
    /// Endpoints, whole.
    pub endpoints: Vec<Endpoint>,
}

/// A slice, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfraSlice {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its version.
    pub version: String,
    /// Who writes it.
    pub manager: Manager,
    /// Its family; names, for example, are none.
    pub family: Option<Family>,
    /// UID of the object that it goes with.
    pub owner: Option<String>,
    /// Whether one of its endpoints is ready.
    pub is_ready: bool,
    /// What it holds, of ours; `None` = something that we would never write.
    pub content: Option<Content>,
}

/// What is read of a slice.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "EndpointSlice")]
#[serde(rename_all = "camelCase")]
pub struct WireSlice {
    /// Name, labels, owner.
    pub metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    #[serde(default, deserialize_with = "null_as_default")]
    endpoints: Vec<WireEndpoint>,
    #[serde(default, deserialize_with = "null_as_default")]
    ports: Vec<WirePort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireEndpoint {
    addresses: Vec<String>,
    conditions: WireConditions,
    node_name: Option<String>,
    target_ref: Option<ObjectReference>,
}

/// `conditions` of an endpoint; what is not said means its usual value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WirePort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
    app_protocol: Option<String>,
}

impl From<&WireConditions> for Conditions {
    /// Nothing said is ready, and serving is what ready is (EndpointSlice API).
    fn from(wire: &WireConditions) -> Self {
        let ready = wire.ready.unwrap_or(true);
        Self { ready, serving: wire.serving.unwrap_or(ready), terminating: wire.terminating.unwrap_or(false) }
    }
}

impl WireSlice {
    /// The Service that it belongs to.
    pub fn service(&self) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(SERVICE_LABEL).map(String::as_str)
    }
}

impl From<WireSlice> for InfraSlice {
    fn from(wire: WireSlice) -> Self {
        let label = wire.metadata.labels.as_ref().and_then(|all| all.get(MANAGER_LABEL));
        let manager = match label.map(String::as_str) {
            Some(OUR_MANAGER) => Manager::Ours,
            Some(SELECTOR_MANAGER | MIRROR_MANAGER) => Manager::Infra,
            _ => Manager::Other,
        };
        let is_ready = wire.endpoints.iter().any(|endpoint| Conditions::from(&endpoint.conditions).ready);
        let mut owners = wire.metadata.owner_references.into_iter().flatten();
        let content = (manager == Manager::Ours)
            .then(|| content(wire.metadata.labels, wire.ports, wire.endpoints))
            .flatten();
        Self {
            name: wire.metadata.name.unwrap_or_default(),
            uid: wire.metadata.uid.unwrap_or_default(),
            version: wire.metadata.resource_version.unwrap_or_default(),
            manager,
            family: Family::parse(&wire.address_type),
            owner: owners.next().map(|owner| owner.uid),
            is_ready,
            content,
        }
    }
}

fn content(
    labels: Option<BTreeMap<String, String>>,
    ports: Vec<WirePort>,
    endpoints: Vec<WireEndpoint>,
) -> Option<Content> {
    let ports = ports.into_iter().map(|port| {
        Some(Port {
            name: port.name.unwrap_or_default(),
            protocol: port.protocol?,
            port: port.port?,
            app_protocol: port.app_protocol,
        })
    });
    let endpoints = endpoints.into_iter().map(|endpoint| {
        let [address] = endpoint.addresses.as_slice() else { return None };
        let target = endpoint.target_ref?;
        Some(Endpoint {
            vm: target.name?,
            uid: target.uid?,
            address: address.parse().ok()?,
            host: endpoint.node_name,
            conditions: Conditions::from(&endpoint.conditions),
        })
    });
    Some(Content {
        labels: labels.unwrap_or_default(),
        ports: ports.collect::<Option<_>>()?,
        endpoints: endpoints.collect::<Option<_>>()?,
    })
}

impl Content {
    /// The labels of our slices of a Service: its own, and those that say whose they are.
    pub fn labels(service: &InfraService) -> BTreeMap<String, String> {
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.insert(SERVICE_LABEL.to_owned(), service.metadata.name.clone().unwrap_or_default());
        labels.insert(MANAGER_LABEL.to_owned(), OUR_MANAGER.to_owned());
        labels
    }

    /// The ports of our slices of a Service: those in the VM.
    pub fn ports(service: &InfraService) -> Vec<Port> {
        let ports = service.spec.ports.iter().filter_map(|port| {
            let Some(IntOrString::Int(number)) = port.target_port else { return None };
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol().to_owned(),
                port: number,
                app_protocol: port.app_protocol.clone(),
            })
        });
        ports.collect()
    }

    /// The whole object; `version` of the one that it replaces.
    pub fn object(&self, service: &InfraService, name: &str, family: Family, version: Option<&str>) -> Value {
        let namespace = service.metadata.namespace.as_deref();
        let endpoints: Vec<_> = self.endpoints.iter().map(|it| it.object(namespace)).collect();
        let ports: Vec<_> = self.ports.iter().map(Port::object).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": namespace, "labels": self.labels, "resourceVersion": version,
                // Not blocking the owner's deletion: that would take a right on its finalizers.
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "controller": true,
                    "name": service.metadata.name, "uid": service.metadata.uid}],
            },
            "addressType": family.as_str(), "endpoints": endpoints, "ports": ports,
        })
    }
}

impl Port {
    fn object(&self) -> Value {
        json!({"name": self.name, "protocol": self.protocol, "port": self.port, "appProtocol": self.app_protocol})
    }
}

impl Endpoint {
    fn object(&self, namespace: Option<&str>) -> Value {
        let Conditions { ready, serving, terminating } = self.conditions;
        json!({
            "addresses": [self.address], "nodeName": self.host,
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "targetRef": {"apiVersion": INSTANCE_API, "kind": INSTANCE_KIND, "namespace": namespace,
                "name": self.vm, "uid": self.uid},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let service = json!({"metadata": {"name": "a1", "namespace": "hcp", "uid": "u",
            "labels": {"cluster.x-k8s.io/cluster-name": "guest"}},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 30080, "appProtocol": "x"},
                {"port": 53, "protocol": "UDP", "targetPort": 30053}, {"port": 9, "targetPort": "named"}]}});
        let service: InfraService = serde_json::from_value(service).unwrap();
        let endpoint = Endpoint {
            vm: "w1".into(),
            uid: "v".into(),
            address: "10.0.0.7".parse().unwrap(),
            host: Some("infra-1".into()),
            conditions: Conditions { ready: false, serving: true, terminating: true },
        };
        let content = Content {
            labels: Content::labels(&service),
            ports: Content::ports(&service),
            endpoints: vec![endpoint],
        };
        assert_eq!(content.ports.len(), 2, "a port that is no number is not ours");
        let object = content.object(&service, "a1-ipv4-0", Family::V4, Some("7"));
        let wire: WireSlice = serde_json::from_value(object).unwrap();
        assert_eq!(wire.service(), Some("a1"));
        let read = InfraSlice::from(wire);
        assert_eq!((read.manager, read.family), (Manager::Ours, Some(Family::V4)));
        assert_eq!((read.owner.as_deref(), read.is_ready), (Some("u"), false));
        assert_eq!(read.content, Some(content));
    }

    #[test]
    fn what_the_reference_left_is_ours_and_to_be_written_anew() {
        let left = json!({"metadata": {"name": "a1-x7k2p", "labels": {SERVICE_LABEL: "a1", MANAGER_LABEL: OUR_MANAGER}},
            "addressType": "IPv4", "ports": [{"port": 30080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.7"], "nodeName": "infra-1"}]});
        let read = InfraSlice::from(serde_json::from_value::<WireSlice>(left).unwrap());
        assert_eq!((read.manager, read.is_ready, read.content), (Manager::Ours, true, None));
    }
}
