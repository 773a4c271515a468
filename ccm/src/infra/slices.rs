//! An `EndpointSlice` of infra, with the fields that are read.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Resource;
use kube::api::ObjectMeta;
use kubevirt::null_as_default;
use serde::Deserialize;

use crate::wire::{
    endpoint_slice::{Conditions, SERVICE_LABEL, WireConditions},
    ip_family::Family,
    metadata::{FIELD_MANAGER, last_writer},
};

/// Label: which controller writes a slice (`LabelManagedBy`).
pub const MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of it, which is that of the upstream cloud provider: the slices that it left are ours.
pub const OUR_MANAGER: &str = "kubevirt-eps-controller";
/// Infra's controller that follows selectors (`k8s.io/endpointslice`).
pub const SELECTOR_MANAGER: &str = "endpointslice-controller.k8s.io";
/// Infra's controller that copies the older kind Endpoints (`k8s.io/kubernetes/pkg/controller/endpointslicemirroring`).
pub const MIRROR_MANAGER: &str = "endpointslicemirroring-controller.k8s.io";

/// Which program writes a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// The CCM, or the upstream cloud provider before it.
    Ours,
    /// Infra's controllers: the one for selectors, or the one for copies of Endpoints.
    Infra,
    /// Another program.
    Other,
}

/// One endpoint of a slice: a VM at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name of VM and VMI.
    pub vm: String,
    /// UID of the VMI.
    pub uid: String,
    /// The address at which it is reached.
    pub address: IpAddr,
    /// The infra Node on which it runs.
    pub host: Option<String>,
    /// Its conditions.
    pub conditions: Conditions,
}

/// A port, at which every endpoint of a slice is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name of the Service's port; empty where it has none.
    pub name: String,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// The port in the VM.
    pub port: i32,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// What the CCM writes into a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// All ports.
    pub ports: Vec<Port>,
    /// All endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A slice as it was last read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfraSlice {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion.
    pub version: String,
    /// Which program writes it.
    pub manager: Manager,
    /// Its family; `None` for a slice of host names, for example.
    pub family: Option<Family>,
    /// UID of the object that owns it: of its controller, or, without one, of its first owner.
    pub owner: Option<String>,
    /// The other program that wrote it last, by `managedFields`.
    pub other_writer: Option<String>,
    /// Whether one of its endpoints is ready.
    pub is_ready: bool,
    /// What it contains, in terms of what we write. `None` = something that we would never write.
    pub content: Option<Content>,
}

/// The fields of a slice that are read.
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
    #[serde(deserialize_with = "null_as_default")]
    addresses: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    conditions: WireConditions,
    node_name: Option<String>,
    target_ref: Option<ObjectReference>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WirePort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
    app_protocol: Option<String>,
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
        let is_other = |entry: &ManagedFieldsEntry| entry.manager.as_deref() != Some(FIELD_MANAGER);
        let other_writer = last_writer(&wire.metadata.managed_fields.unwrap_or_default(), is_other);
        let owners = wire.metadata.owner_references.unwrap_or_default();
        // Other programs may add owners, in any place; ours is the controller.
        let owner = owners.iter().find(|owner| owner.controller == Some(true)).or(owners.first());
        let owner = owner.map(|owner| owner.uid.clone());
        let content = (manager == Manager::Ours)
            .then(|| content(wire.metadata.labels, wire.ports, wire.endpoints))
            .flatten();
        Self {
            name: wire.metadata.name.unwrap_or_default(),
            uid: wire.metadata.uid.unwrap_or_default(),
            version: wire.metadata.resource_version.unwrap_or_default(),
            manager,
            family: Family::parse(&wire.address_type),
            owner,
            other_writer,
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
