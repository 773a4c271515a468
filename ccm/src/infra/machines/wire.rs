//! VM and VMI as KubeVirt writes them: the fields that are read, and how they become our own types. They are never
//! written back, because that would lose every field that they do not have.

use crate::{
    guest_names::CLUSTER_NAME_LABEL,
    infra::machines::{Interface, Network, Phase, RunStrategy, Vm, Vmi, VmiConditions},
    wire::{
        metadata::{lean_metadata, null_as_default},
        system_uuid::SystemUuid,
        topology_labels::{REGION_LABEL, ZONE_LABEL},
    },
};
use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, core::NamespaceResourceScope};
use serde::Deserialize;

/// Annotations in which KubeVirt records the instance type that a VM was made from: first the namespaced kind, then the
/// cluster-wide one (kubevirt.io/api, `InstancetypeAnnotation`, `ClusterInstancetypeAnnotation`).
const INSTANCE_TYPE_ANNOTATIONS: [&str; 2] =
    ["kubevirt.io/instancetype-name", "kubevirt.io/cluster-instancetype-name"];
/// Condition of a VMI whose guest agent reports (kubevirt.io/api, `VirtualMachineInstanceAgentConnected`).
const AGENT_CONNECTED: &str = "AgentConnected";
/// Condition of a VMI whose pod is ready (`VirtualMachineInstanceReady`).
const READY: &str = "Ready";
/// Condition of a VMI whose processors are stopped (`VirtualMachineInstancePaused`).
const PAUSED: &str = "Paused";

/// The fields of a `VirtualMachine` that are read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireVm {
    #[serde(deserialize_with = "lean_metadata")]
    metadata: ObjectMeta,
    spec: WireVmSpec,
    #[serde(deserialize_with = "null_as_default")]
    status: WireVmStatus,
}

/// The fields of a `VirtualMachineInstance` that are read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireVmi {
    #[serde(deserialize_with = "lean_metadata")]
    metadata: ObjectMeta,
    spec: WireVmiSpec,
    #[serde(deserialize_with = "null_as_default")]
    status: WireVmiStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireVmSpec {
    run_strategy: Option<String>,
    running: Option<bool>,
    template: WireTemplate,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireTemplate {
    spec: WireVmiSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireVmStatus {
    #[serde(deserialize_with = "null_as_default")]
    printable_status: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireVmiSpec {
    hostname: Option<String>,
    domain: WireDomain,
    #[serde(deserialize_with = "null_as_default")]
    networks: Vec<WireNetwork>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireDomain {
    firmware: Option<WireFirmware>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireFirmware {
    #[serde(deserialize_with = "null_as_default")]
    uuid: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireNetwork {
    name: String,
    pod: Option<serde::de::IgnoredAny>,
    multus: Option<WireMultus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireMultus {
    network_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireVmiStatus {
    #[serde(deserialize_with = "null_as_default")]
    phase: String,
    node_name: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    interfaces: Vec<WireInterface>,
    #[serde(deserialize_with = "null_as_default")]
    conditions: Vec<WireCondition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireInterface {
    #[serde(deserialize_with = "null_as_default")]
    name: String,
    #[serde(deserialize_with = "null_as_default")]
    ip_address: String,
    #[serde(deserialize_with = "null_as_default")]
    ip_addresses: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireCondition {
    r#type: String,
    status: String,
}

impl From<WireVm> for Vm {
    fn from(wire: WireVm) -> Self {
        let strategy = match (wire.spec.run_strategy.as_deref(), wire.spec.running) {
            (Some("Always"), _) | (None, Some(true)) => RunStrategy::Always,
            (Some("Halted"), _) | (None, Some(false)) => RunStrategy::Halted,
            _ => RunStrategy::Depends,
        };
        Self {
            strategy,
            printable_status: wire.status.printable_status,
            uuid: wire.spec.template.spec.uuid(),
            hostname: wire.spec.template.spec.hostname.filter(|name| !name.is_empty()),
            name: wire.metadata.name.unwrap_or_default(),
        }
    }
}

impl From<WireVmi> for Vmi {
    fn from(wire: WireVmi) -> Self {
        let phase = match wire.status.phase.as_str() {
            "" | "Pending" | "Scheduling" | "Scheduled" | "WaitingForSync" => Phase::Starting,
            "Running" => Phase::Running,
            "Succeeded" => Phase::Succeeded,
            "Failed" => Phase::Failed,
            _ => Phase::Unknown(wire.status.phase),
        };
        let own = |key: &str| {
            let of = |map: &Option<BTreeMap<String, String>>| map.as_ref()?.get(key).cloned();
            of(&wire.metadata.labels)
                .or_else(|| of(&wire.metadata.annotations))
                .filter(|text| !text.is_empty())
        };
        let networks = &wire.spec.networks;
        let condition = |kind: &str| {
            let found = wire.status.conditions.iter().find(|condition| condition.r#type == kind);
            found.map(|condition| condition.status == "True")
        };
        Self {
            uid: wire.metadata.uid.unwrap_or_default(),
            cluster: wire.metadata.labels.as_ref().and_then(|all| all.get(CLUSTER_NAME_LABEL)).cloned(),
            deleting: wire.metadata.deletion_timestamp.is_some(),
            conditions: VmiConditions {
                ready: condition(READY).unwrap_or(phase == Phase::Running),
                paused: condition(PAUSED) == Some(true),
            },
            agent_connected: condition(AGENT_CONNECTED) == Some(true),
            phase,
            uuid: wire.spec.uuid(),
            host: wire.status.node_name.filter(|name| !name.is_empty()),
            interfaces: wire.status.interfaces.into_iter().map(|it| it.project(networks)).collect(),
            instance_type: INSTANCE_TYPE_ANNOTATIONS.iter().find_map(|key| own(key)),
            zone: own(ZONE_LABEL),
            region: own(REGION_LABEL),
            hostname: wire.spec.hostname.filter(|name| !name.is_empty()),
            name: wire.metadata.name.unwrap_or_default(),
        }
    }
}

impl WireVmiSpec {
    fn uuid(&self) -> Option<SystemUuid> {
        SystemUuid::parse(&self.domain.firmware.as_ref()?.uuid)
    }
}

impl WireInterface {
    /// `ipAddress` is the primary address, and is missing from `ipAddresses` on old instances.
    fn project(self, networks: &[WireNetwork]) -> Interface {
        let network = match networks.iter().find(|network| network.name == self.name) {
            Some(WireNetwork { pod: Some(_), .. }) => Network::Pod,
            Some(WireNetwork { multus: Some(multus), .. }) => Network::Multus(multus.network_name.clone()),
            Some(_) | None => Network::Unknown,
        };
        let mut addresses: Vec<IpAddr> = Vec::new();
        for text in std::iter::once(&self.ip_address).chain(&self.ip_addresses) {
            if let Ok(address) = text.parse()
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        Interface { name: self.name, network, addresses }
    }
}

/// The API group of both kinds.
const GROUP: &str = "kubevirt.io";
/// Its version.
const VERSION: &str = "v1";

macro_rules! kubevirt_resource {
    ($type:ty, $kind:literal, $plural:literal) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group((): &()) -> Cow<'_, str> {
                GROUP.into()
            }
            fn version((): &()) -> Cow<'_, str> {
                VERSION.into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

kubevirt_resource!(WireVm, "VirtualMachine", "virtualmachines");
kubevirt_resource!(WireVmi, "VirtualMachineInstance", "virtualmachineinstances");

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn vmi(value: serde_json::Value) -> Vmi {
        serde_json::from_value::<WireVmi>(value).unwrap().into()
    }

    #[test]
    fn an_instance_is_projected_to_identity_addresses_and_place() {
        let vmi = vmi(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {
                "name": "worker.1", "labels": {"topology.kubernetes.io/zone": "z1"}, "managedFields": [{"manager": "x"}],
                "annotations": {"kubevirt.io/cluster-instancetype-name": "u1.large", "topology.kubernetes.io/region": "r1"},
            },
            "spec": {
                "hostname": "worker-1", "domain": {"firmware": {"uuid": "5d307ca9-b3ef-428c-8861-06e72d69f223"}},
                "networks": [{"name": "default", "pod": {}}, {"name": "lan", "multus": {"networkName": "hcp/lan"}}],
            },
            "status": {
                "phase": "Running", "nodeName": "infra-1",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "AgentConnected", "status": "True"}],
                "interfaces": [
                    {"name": "default", "ipAddress": "10.0.0.7", "ipAddresses": ["10.0.0.7", "fd00::7"], "mac": "x"},
                    {"name": "lan", "ipAddresses": null, "ipAddress": "192.168.0.7"},
                    {"interfaceName": "cni0", "ipAddress": "10.244.0.1"},
                ],
            },
        }));
        assert_eq!((vmi.name.as_str(), vmi.hostname.as_deref()), ("worker.1", Some("worker-1")));
        assert_eq!(vmi.uuid, SystemUuid::parse("5D307CA9-B3EF-428C-8861-06E72D69F223"));
        assert_eq!(
            (vmi.phase, vmi.host.as_deref(), vmi.agent_connected),
            (Phase::Running, Some("infra-1"), true)
        );
        assert!(vmi.conditions.ready && !vmi.conditions.paused && !vmi.deleting);
        assert_eq!(vmi.instance_type.as_deref(), Some("u1.large"));
        assert_eq!((vmi.zone.as_deref(), vmi.region.as_deref()), (Some("z1"), Some("r1")));
        let shown: Vec<_> =
            vmi.interfaces.iter().map(|i| (i.name.as_str(), &i.network, i.addresses.len())).collect();
        let lan = Network::Multus("hcp/lan".into());
        assert_eq!(shown, [("default", &Network::Pod, 2), ("lan", &lan, 1), ("", &Network::Unknown, 1)]);
    }

    #[rstest]
    #[case(json!([]), true, false)]
    #[case(json!([{"type": "Ready", "status": "False"}]), false, false)]
    #[case(json!([{"type": "Ready", "status": "True"}, {"type": "Paused", "status": "True"}]), true, true)]
    fn a_running_instance_without_the_condition_is_ready(
        #[case] conditions: serde_json::Value,
        #[case] ready: bool,
        #[case] paused: bool,
    ) {
        let vmi = vmi(json!({"status": {"phase": "Running", "conditions": conditions}}));
        assert_eq!(vmi.conditions, VmiConditions { ready, paused });
    }

    #[test]
    fn the_namespaced_instance_type_comes_first() {
        let both = json!({"kubevirt.io/cluster-instancetype-name": "cluster", "kubevirt.io/instancetype-name": "own"});
        assert_eq!(vmi(json!({"metadata": {"annotations": both}})).instance_type.as_deref(), Some("own"));
    }

    #[rstest]
    #[case(json!({"runStrategy": "Always"}), RunStrategy::Always)]
    #[case(json!({"running": true}), RunStrategy::Always)]
    #[case(json!({"running": false}), RunStrategy::Halted)]
    #[case(json!({"runStrategy": "Halted"}), RunStrategy::Halted)]
    #[case(json!({"runStrategy": "RerunOnFailure"}), RunStrategy::Depends)]
    #[case(json!({"runStrategy": "Surprise"}), RunStrategy::Depends)]
    #[case(json!({}), RunStrategy::Depends)]
    fn strategies(#[case] spec: serde_json::Value, #[case] strategy: RunStrategy) {
        let vm: Vm = serde_json::from_value::<WireVm>(json!({"spec": spec, "status": null})).unwrap().into();
        assert_eq!(vm.strategy, strategy);
    }

    #[rstest]
    #[case("", Phase::Starting)]
    #[case("Scheduled", Phase::Starting)]
    #[case("Running", Phase::Running)]
    #[case("Succeeded", Phase::Succeeded)]
    #[case("Failed", Phase::Failed)]
    #[case("Unknown", Phase::Unknown("Unknown".into()))]
    #[case("Surprise", Phase::Unknown("Surprise".into()))]
    fn phases(#[case] text: &str, #[case] phase: Phase) {
        assert_eq!(vmi(json!({"status": {"phase": text}})).phase, phase);
    }
}
