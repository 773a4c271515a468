//! VM and VMI as KubeVirt writes them become the types that are kept. That happens while an object is parsed, so that a
//! list never holds more than what is kept.

use crate::{
    guest_names::CLUSTER_NAME_LABEL,
    infra::machines::{Interface, Network, Vm, Vmi, VmiConditions, index::Kept},
    wire::{
        system_uuid::SystemUuid,
        topology_labels::{REGION_LABEL, ZONE_LABEL},
    },
};
use std::{borrow::Cow, fmt::Debug, net::IpAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, core::NamespaceResourceScope};
use kubevirt::{Metadata, Phase, WireBinding, WireInterface, WireNetwork, WireVm, WireVmi, WireVmiSpec};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

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
/// Phase of a VMI that is the target of a migration and waits for its source (`WaitingForSync`). It has not started yet.
const WAITING_FOR_SYNC: &str = "WaitingForSync";

/// A kind of KubeVirt that is kept.
pub trait Machine: Kept + Clone + Debug + Send + 'static {
    /// The kind.
    const KIND: &'static str;
    /// The type that has its fields as KubeVirt writes them.
    type Wire: DeserializeOwned + Into<Self>;

    /// The metadata of an object.
    fn metadata(wire: &Self::Wire) -> &Metadata;
}

impl Machine for Vm {
    const KIND: &'static str = WireVm::KIND;
    type Wire = WireVm;

    fn metadata(wire: &WireVm) -> &Metadata {
        &wire.metadata
    }
}

impl Machine for Vmi {
    const KIND: &'static str = WireVmi::KIND;
    type Wire = WireVmi;

    fn metadata(wire: &WireVmi) -> &Metadata {
        &wire.metadata
    }
}

/// An object of the API, reduced to what is kept of it and to the metadata that kube's watcher needs.
#[derive(Clone, Debug)]
pub struct Reduced<T> {
    metadata: ObjectMeta,
    /// What is kept.
    pub kept: T,
}

impl<'de, T: Machine> Deserialize<'de> for Reduced<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = T::Wire::deserialize(deserializer)?;
        let Metadata { name, resource_version, .. } = T::metadata(&wire);
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            resource_version: Some(resource_version.clone()),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, kept: wire.into() })
    }
}

impl<T: Machine> Resource for Reduced<T> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        T::KIND.into()
    }
    fn group((): &()) -> Cow<'_, str> {
        kubevirt::GROUP.into()
    }
    fn version((): &()) -> Cow<'_, str> {
        kubevirt::VERSION.into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        T::RESOURCE.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl From<WireVm> for Vm {
    fn from(wire: WireVm) -> Self {
        Self {
            strategy: wire.spec.strategy(),
            printable_status: wire.status.printable_status,
            uuid: uuid(&wire.spec.template.spec),
            hostname: wire.spec.template.spec.hostname.filter(|name| !name.is_empty()),
            cluster: wire.metadata.labels.get(CLUSTER_NAME_LABEL).cloned(),
            name: wire.metadata.name,
        }
    }
}

impl From<WireVmi> for Vmi {
    fn from(wire: WireVmi) -> Self {
        let phase = match wire.status.phase {
            Phase::Unknown(text) if text == WAITING_FOR_SYNC => Phase::Starting,
            phase => phase,
        };
        let metadata = &wire.metadata;
        let own = |key: &str| {
            let text = metadata.labels.get(key).or_else(|| metadata.annotations.get(key));
            text.filter(|text| !text.is_empty()).cloned()
        };
        let (networks, bindings) = (&wire.spec.networks, &wire.spec.domain.devices.interfaces);
        let condition = |kind: &str| {
            let found = wire.status.conditions.iter().find(|condition| condition.kind == kind);
            found.map(|condition| condition.status == "True")
        };
        Self {
            cluster: metadata.labels.get(CLUSTER_NAME_LABEL).cloned(),
            deleting: metadata.deletion_timestamp.is_some(),
            conditions: VmiConditions {
                ready: condition(READY).unwrap_or(phase == Phase::Running),
                paused: condition(PAUSED) == Some(true),
            },
            agent_connected: condition(AGENT_CONNECTED) == Some(true),
            phase,
            uuid: uuid(&wire.spec),
            host: wire.status.node_name.filter(|name| !name.is_empty()),
            interfaces: wire
                .status
                .interfaces
                .into_iter()
                .map(|it| interface(it, networks, bindings))
                .collect(),
            instance_type: INSTANCE_TYPE_ANNOTATIONS.iter().find_map(|key| own(key)),
            zone: own(ZONE_LABEL),
            region: own(REGION_LABEL),
            hostname: wire.spec.hostname.filter(|name| !name.is_empty()),
            uid: wire.metadata.uid,
            name: wire.metadata.name,
        }
    }
}

fn uuid(spec: &WireVmiSpec) -> Option<SystemUuid> {
    SystemUuid::parse(&spec.domain.firmware.as_ref()?.uuid)
}

/// `ipAddress` is the primary address, and is missing from `ipAddresses` on old instances.
fn interface(wire: WireInterface, networks: &[WireNetwork], bindings: &[WireBinding]) -> Interface {
    let network = match networks.iter().find(|network| network.name == wire.name) {
        Some(WireNetwork { pod: Some(_), .. }) => Network::Pod,
        Some(WireNetwork { multus: Some(multus), .. }) => Network::Multus(multus.network_name.clone()),
        Some(_) | None => Network::Unknown,
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in std::iter::once(&wire.ip_address).chain(&wire.ip_addresses) {
        if let Ok(address) = text.parse()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    // The guest agent adds interfaces that have no name.
    let binding = bindings.iter().find(|binding| !binding.name.is_empty() && binding.name == wire.name);
    let masquerade = binding.is_some_and(|binding| binding.masquerade.is_some());
    Interface { name: wire.name, network, masquerade, addresses }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::ResourceExt;
    use kubevirt::RunStrategy;
    use rstest::rstest;
    use serde_json::json;

    fn vmi(value: serde_json::Value) -> Vmi {
        serde_json::from_value::<Reduced<Vmi>>(value).unwrap().kept
    }

    fn vm(value: serde_json::Value) -> Vm {
        serde_json::from_value::<Reduced<Vm>>(value).unwrap().kept
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
                "hostname": "worker-1", "domain": {"firmware": {"uuid": "5d307ca9-b3ef-428c-8861-06e72d69f223"},
                    "devices": {"interfaces": [{"name": "default", "masquerade": {}}, {"name": "lan", "bridge": {}},
                        {"name": "", "masquerade": {}}]}},
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
        let shown: Vec<_> = vmi
            .interfaces
            .iter()
            .map(|i| (i.name.as_str(), &i.network, i.masquerade, i.addresses.len()))
            .collect();
        let lan = Network::Multus("hcp/lan".into());
        assert_eq!(
            shown,
            [("default", &Network::Pod, true, 2), ("lan", &lan, false, 1), ("", &Network::Unknown, false, 1)]
        );
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

    #[test]
    fn kube_finds_name_and_version_of_a_reduced_object() {
        let value = json!({"metadata": {"name": "vm1", "resourceVersion": "7", "labels": {"a": "b"}}});
        let vmi: Reduced<Vmi> = serde_json::from_value(value).unwrap();
        assert_eq!((vmi.name_any(), vmi.resource_version()), ("vm1".to_owned(), Some("7".to_owned())));
        assert_eq!(
            Reduced::<Vmi>::url_path(&(), Some("n")),
            "/apis/kubevirt.io/v1/namespaces/n/virtualmachineinstances"
        );
        assert_eq!(
            Reduced::<Vm>::url_path(&(), Some("n")),
            "/apis/kubevirt.io/v1/namespaces/n/virtualmachines"
        );
    }

    #[test]
    fn what_is_missing_or_null_is_empty() {
        for value in [json!({}), json!({"metadata": null, "spec": null, "status": null})] {
            assert_eq!(vm(value.clone()), Vm::default(), "{value}");
            assert_eq!(vmi(value.clone()), Vmi::default(), "{value}");
        }
        let nulls = json!({"phase": null, "nodeName": null, "interfaces": null, "conditions": null});
        assert_eq!(
            vmi(json!({"spec": {"networks": null, "volumes": null}, "status": nulls})),
            Vmi::default()
        );
    }

    #[rstest]
    #[case(json!({"runStrategy": "Always"}), RunStrategy::Always)]
    #[case(json!({"running": true}), RunStrategy::Always)]
    #[case(json!({"running": false}), RunStrategy::Halted)]
    #[case(json!({"runStrategy": "Halted"}), RunStrategy::Halted)]
    #[case(json!({"runStrategy": "RerunOnFailure"}), RunStrategy::RerunOnFailure)]
    #[case(json!({"runStrategy": "Surprise"}), RunStrategy::Other)]
    #[case(json!({}), RunStrategy::Other)]
    fn strategies(#[case] spec: serde_json::Value, #[case] strategy: RunStrategy) {
        assert_eq!(vm(json!({"spec": spec, "status": null})).strategy, strategy);
    }

    #[rstest]
    #[case("", Phase::Starting)]
    #[case("Scheduled", Phase::Starting)]
    #[case("WaitingForSync", Phase::Starting)]
    #[case("Running", Phase::Running)]
    #[case("Succeeded", Phase::Succeeded)]
    #[case("Failed", Phase::Failed)]
    #[case("Unknown", Phase::Unknown("Unknown".into()))]
    #[case("Surprise", Phase::Unknown("Surprise".into()))]
    fn phases(#[case] text: &str, #[case] phase: Phase) {
        assert_eq!(vmi(json!({"status": {"phase": text}})).phase, phase);
    }
}
