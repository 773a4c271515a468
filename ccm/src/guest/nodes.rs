//! A Node of the guest as the planners see it, and the fields of the API's Node that it is made of. A whole Node takes
//! some tens of KiB, most of it `status.images`; deserialising into these types drops that at once. Never written back:
//! writes are patches.

pub mod watch;

use crate::wire::{ip_family::Family, metadata::lean_metadata, system_uuid::SystemUuid};
use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Node, Taint},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use kubevirt::null_as_default;
use serde::Deserialize;

/// Taint of a Node that kubelet registered with `--cloud-provider=external` and that no cloud provider has initialised
/// (k8s.io/cloud-provider/api, `TaintExternalCloudProvider`). Any effect counts.
pub const UNINITIALIZED_TAINT: &str = "node.cloudprovider.kubernetes.io/uninitialized";
/// Taint of a Node whose machine is shut down (`TaintNodeShutdown`).
pub const SHUTDOWN_TAINT: &str = "node.cloudprovider.kubernetes.io/shutdown";
/// The effect of the shutdown taint.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// The addresses that kubelet has from `--node-ip` (k8s.io/cloud-provider/api, `AnnotationAlphaProvidedIPAddr`).
const PROVIDED_NODE_IP: &str = "alpha.kubernetes.io/provided-node-ip";
/// The upstream cloud provider reads this label as the name of the VM.
const INSTANCE_ID_LABEL: &str = "node.kubernetes.io/instance-id";
/// The host name that kubelet reports.
const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
/// `NodeAddress.type` of a host name.
const HOSTNAME_ADDRESS: &str = "Hostname";
/// Condition that shows whether kubelet reports.
const READY: &str = "Ready";

/// `NodeAddress.type` of the addresses that the CCM sets.
pub const INTERNAL_IP: &str = "InternalIP";

/// A Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuestNode {
    /// UID.
    pub uid: String,
    /// Version for optimistic concurrency.
    pub resource_version: String,
    /// When kubelet registered the Node, in seconds since 1970. `None` = unknown.
    pub created: Option<i64>,
    /// Whether the Node is being deleted.
    pub deleting: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `status.addresses`.
    pub addresses: Vec<NodeAddress>,
    /// The addresses that kubelet has from `--node-ip`.
    pub provided: Vec<IpAddr>,
    /// Condition `Ready`.
    pub ready: Ready,
    /// What the Node claims about its VM.
    pub claims: Claims,
}

/// The condition `Ready` of a Node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ready {
    /// Kubelet reports that it is ready.
    True,
    /// Kubelet reports that it is not ready, or has not reported yet.
    #[default]
    False,
    /// Kubelet has stopped reporting; kube-controller-manager sets this.
    Unknown,
}

impl GuestNode {
    /// Whether the Node has a taint with this key.
    pub fn has_taint(&self, key: &str) -> bool {
        self.taints.iter().any(|taint| taint.key == key)
    }

    /// The taints without those that have this key.
    pub fn taints_without(&self, key: &str) -> Vec<Taint> {
        self.taints.iter().filter(|taint| taint.key != key).cloned().collect()
    }

    /// Whether kubelet registered the Node and no cloud provider has initialised it.
    pub fn is_uninitialized(&self) -> bool {
        self.has_taint(UNINITIALIZED_TAINT)
    }
}

/// What a Node claims about its VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// `metadata.name`.
    pub name: String,
    /// `spec.providerID`.
    pub provider_id: String,
    /// Label `node.kubernetes.io/instance-id`: with the upstream cloud provider the name of the VM.
    pub instance_id: Option<String>,
    /// Host names: label `kubernetes.io/hostname`, address of type `Hostname`.
    pub hostnames: Vec<String>,
    /// `status.nodeInfo.systemUUID`, if it comes from the firmware.
    pub uuid: Option<SystemUuid>,
}

/// One entry of a Node's `status.addresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// `InternalIP`, `Hostname` and the like.
    pub kind: String,
    /// The address.
    pub address: String,
}

/// Reads the annotation `alpha.kubernetes.io/provided-node-ip`: one address, or one of each family. Kubelet writes
/// `0.0.0.0` and `::` to ask for a family, not for an address.
pub fn provided_node_ips(annotation: &str) -> Vec<IpAddr> {
    let parsed = annotation.split(',').filter_map(|text| text.trim().parse().ok());
    let mut provided: Vec<IpAddr> = parsed.filter(|ip: &IpAddr| !ip.is_unspecified()).collect();
    let mut families: Vec<Family> = Vec::new();
    provided.retain(|ip| {
        let is_first = !families.contains(&Family::of(*ip));
        families.push(Family::of(*ip));
        is_first
    });
    provided
}

/// The fields of a Node that are read; the watch keeps these.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "Node")]
#[serde(default)]
pub struct WireNode {
    #[serde(deserialize_with = "lean_metadata")]
    metadata: ObjectMeta,
    #[serde(deserialize_with = "null_as_default")]
    spec: WireSpec,
    #[serde(deserialize_with = "null_as_default")]
    status: WireStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireSpec {
    #[serde(rename = "providerID", deserialize_with = "null_as_default")]
    provider_id: String,
    #[serde(deserialize_with = "null_as_default")]
    taints: Vec<Taint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireStatus {
    #[serde(deserialize_with = "null_as_default")]
    addresses: Vec<WireAddress>,
    #[serde(deserialize_with = "null_as_default")]
    conditions: Vec<WireCondition>,
    #[serde(deserialize_with = "null_as_default")]
    node_info: WireInfo,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireAddress {
    #[serde(deserialize_with = "null_as_default")]
    r#type: String,
    #[serde(deserialize_with = "null_as_default")]
    address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireCondition {
    #[serde(deserialize_with = "null_as_default")]
    r#type: String,
    #[serde(deserialize_with = "null_as_default")]
    status: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireInfo {
    #[serde(rename = "systemUUID", deserialize_with = "null_as_default")]
    system_uuid: String,
    #[serde(rename = "machineID", deserialize_with = "null_as_default")]
    machine_id: String,
}

impl WireNode {
    /// Drops the annotations that are not read, before the object is kept.
    fn strip(&mut self) {
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.retain(|key, _| key == PROVIDED_NODE_IP);
        }
    }
}

impl WireInfo {
    /// The firmware's UUID. Where kubelet can't read one (no SMBIOS, as on s390x), it shows the content of
    /// `/etc/machine-id` instead (cAdvisor, `utils/sysinfo.GetSystemUUID`), which does not identify the VM. If we took
    /// that for a UUID, it would contradict the names of the Node, or prove that its VM is gone.
    fn firmware_uuid(&self) -> Option<SystemUuid> {
        let is_machine_id = self.system_uuid == self.machine_id;
        SystemUuid::parse(&self.system_uuid).filter(|_| !is_machine_id)
    }
}

impl From<&WireNode> for GuestNode {
    fn from(node: &WireNode) -> Self {
        let (meta, status) = (&node.metadata, &node.status);
        let labels = meta.labels.clone().unwrap_or_default();
        let provided = meta.annotations.as_ref().and_then(|all| all.get(PROVIDED_NODE_IP));
        let ready = status.conditions.iter().find(|condition| condition.r#type == READY);
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            deleting: meta.deletion_timestamp.is_some(),
            taints: node.spec.taints.clone(),
            addresses: status.addresses.iter().map(WireAddress::project).collect(),
            provided: provided.map(|text| provided_node_ips(text)).unwrap_or_default(),
            ready: match ready.map(|condition| condition.status.as_str()) {
                Some("True") => Ready::True,
                Some("Unknown") => Ready::Unknown,
                Some(_) | None => Ready::False,
            },
            claims: Claims {
                name: meta.name.clone().unwrap_or_default(),
                provider_id: node.spec.provider_id.clone(),
                instance_id: labels.get(INSTANCE_ID_LABEL).cloned(),
                hostnames: hostnames(&labels, &status.addresses),
                uuid: status.node_info.firmware_uuid(),
            },
            labels,
        }
    }
}

fn hostnames(labels: &BTreeMap<String, String>, addresses: &[WireAddress]) -> Vec<String> {
    let addresses = addresses.iter().filter(|address| address.r#type == HOSTNAME_ADDRESS);
    labels.get(HOSTNAME_LABEL).into_iter().chain(addresses.map(|a| &a.address)).cloned().collect()
}

impl WireAddress {
    fn project(&self) -> NodeAddress {
        NodeAddress { kind: self.r#type.clone(), address: self.address.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_projected_to_what_the_planners_need() {
        let wire: WireNode = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "worker-1", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-11-21T00:00:10Z",
                "labels": {"kubernetes.io/hostname": "worker-1.lan", "node.kubernetes.io/instance-id": "vm-1"},
                "annotations": {"alpha.kubernetes.io/provided-node-ip": "10.0.0.7,fd00::7"},
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {"providerID": "kubevirt://vm-1", "taints": [
                {"key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true", "effect": "NoSchedule"}]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "10.0.0.7"}, {"type": "Hostname", "address": "w1"}],
                "conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "Unknown"}],
                "nodeInfo": {"systemUUID": "5D307CA9-B3EF-428C-8861-06E72D69F223", "kubeletVersion": "v1.36.3"},
                "images": [{"names": ["x"], "sizeBytes": 1}],
            },
        }))
        .unwrap();
        let node = GuestNode::from(&wire);
        assert_eq!((node.uid.as_str(), node.resource_version.as_str()), ("u", "7"));
        assert_eq!((node.ready, node.is_uninitialized(), node.deleting), (Ready::Unknown, true, false));
        assert_eq!(node.provided.len(), 2);
        assert_eq!(node.claims.provider_id, "kubevirt://vm-1");
        assert_eq!(node.claims.instance_id.as_deref(), Some("vm-1"));
        assert_eq!(node.claims.hostnames, ["worker-1.lan", "w1"]);
        assert_eq!(node.claims.uuid, SystemUuid::parse("5d307ca9-b3ef-428c-8861-06e72d69f223"));
        assert_eq!(node.addresses[1].kind, "Hostname");
        assert_eq!(node.created, Some(1_795_219_210));
    }

    #[test]
    fn a_machine_id_is_no_system_uuid() {
        let uuid_of = |system: &str, machine: &str| {
            let info = json!({"systemUUID": system, "machineID": machine});
            let node = json!({"metadata": {"name": "n"}, "status": {"nodeInfo": info}});
            GuestNode::from(&serde_json::from_value::<WireNode>(node).unwrap()).claims.uuid
        };
        let machine_id = "85bef215392743c0948013cb67cac28a";
        assert_eq!(uuid_of(machine_id, machine_id), None);
        // systemd derives the machine id from the firmware's UUID; that UUID has dashes.
        let firmware = "85bef215-3927-43c0-9480-13cb67cac28a";
        assert_eq!(uuid_of(firmware, machine_id), SystemUuid::parse(firmware));
    }

    #[test]
    fn a_bare_node_is_not_ready_and_claims_its_name_only() {
        let wire: WireNode =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {}, "status": null})).unwrap();
        let node = GuestNode::from(&wire);
        assert_eq!(node.claims, Claims { name: "n".into(), ..Claims::default() });
        assert_eq!((node.ready, node.is_uninitialized()), (Ready::False, false));
    }
}
