use super::*;
use crate::{
    guest::nodes::{Claims, INTERNAL_IP, NO_SCHEDULE, SHUTDOWN_TAINT},
    infra::{
        machines::{Interface, Network},
        topology::Topology,
    },
};
use kubevirt::Phase;
use proptest::prelude::*;

fn taint(key: &str) -> Taint {
    Taint { key: key.into(), effect: NO_SCHEDULE.into(), ..Taint::default() }
}

fn vmi() -> Vmi {
    let addresses = vec!["10.0.0.7".parse().unwrap()];
    let interface =
        Interface { name: "default".into(), network: Network::Pod, addresses, ..Interface::default() };
    Vmi {
        name: "vm-1".into(),
        phase: Phase::Running,
        interfaces: vec![interface],
        instance_type: Some("u1.large".into()),
        agent_connected: true,
        ..Vmi::default()
    }
}

fn found(vmi: Option<&Vmi>, zone: Option<&str>) -> Found<'static> {
    let host =
        zone.map_or(Host::Unknown, |zone| Host::At(Topology { zone: Some(zone.into()), region: None }));
    let vmi = vmi.map(|vmi| &*Box::leak(Box::new(vmi.clone())));
    Found { id: ProviderId::of("vm-1").unwrap(), vmi, host, is_proved: false }
}

/// The Node as kubelet registers it.
fn fresh() -> GuestNode {
    GuestNode {
        taints: vec![taint("other"), taint(UNINITIALIZED_TAINT)],
        addresses: vec![NodeAddress { kind: "Hostname".into(), address: "vm-1".into() }],
        claims: Claims { name: "vm-1".into(), ..Claims::default() },
        ..GuestNode::default()
    }
}

/// The Node after the API server has taken the writes.
fn apply(mut node: GuestNode, plan: Plan) -> GuestNode {
    if let Some(addresses) = plan.addresses {
        node.addresses = addresses;
    }
    if let Some(metadata) = plan.metadata {
        node.labels.extend(metadata.labels);
        node.taints = metadata.taints.unwrap_or(node.taints);
        node.claims.provider_id = metadata.provider_id.unwrap_or(node.claims.provider_id);
    }
    node
}

fn plan(node: &GuestNode, found: &Found<'_>) -> Plan {
    super::plan(&AddressPolicy::default(), node, found)
}

fn initialised() -> GuestNode {
    let found = found(Some(&vmi()), Some("z1"));
    apply(fresh(), plan(&fresh(), &found))
}

#[test]
fn a_fresh_node_is_initialised_in_one_write() {
    let plan = plan(&fresh(), &found(Some(&vmi()), Some("z1")));
    assert!(plan.initialises());
    let addresses: Vec<_> = plan.addresses.unwrap().into_iter().map(|a| (a.kind, a.address)).collect();
    let expected = [(INTERNAL_IP, "10.0.0.7"), ("Hostname", "vm-1")];
    assert_eq!(addresses, expected.map(|(kind, address)| (kind.to_owned(), address.to_owned())));
    let metadata = plan.metadata.unwrap();
    assert_eq!(metadata.provider_id.as_deref(), Some("kubevirt://vm-1"));
    assert_eq!(metadata.taints, Some(vec![taint("other")]));
    let labels: Vec<_> = metadata.labels.keys().map(String::as_str).collect();
    assert_eq!(
        labels,
        [
            "beta.kubernetes.io/instance-type",
            "failure-domain.beta.kubernetes.io/zone",
            "node.kubernetes.io/instance-type",
            "topology.kubernetes.io/zone",
        ]
    );
}

#[test]
fn a_node_whose_vm_runs_no_instance_waits() {
    assert!(plan(&fresh(), &found(None, Some("z1"))).is_empty());
}

#[test]
fn an_unreadable_infra_node_does_not_hold_up_a_node() {
    let plan = plan(&fresh(), &found(Some(&vmi()), None));
    assert!(plan.initialises());
    assert!(!plan.metadata.unwrap().labels.contains_key("topology.kubernetes.io/zone"));
}

#[test]
fn a_live_migration_moves_the_labels_and_nothing_else() {
    let node = initialised();
    assert!(plan(&node, &found(Some(&vmi()), Some("z1"))).is_empty());
    let moved = plan(&node, &found(Some(&vmi()), Some("z2")));
    let labels = [("failure-domain.beta.kubernetes.io/zone", "z2"), ("topology.kubernetes.io/zone", "z2")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(
        moved,
        Plan { metadata: Some(NodeChange { labels, ..NodeChange::default() }), addresses: None }
    );
}

#[test]
fn a_stopped_vm_loses_nothing_of_its_node() {
    assert!(plan(&initialised(), &found(None, None)).is_empty());
}

#[test]
fn a_new_address_is_taken_over() {
    let mut vmi = vmi();
    vmi.interfaces[0].addresses = vec!["10.0.0.8".parse().unwrap()];
    let plan = plan(&initialised(), &found(Some(&vmi), Some("z1")));
    assert_eq!(plan.addresses.unwrap()[0].address, "10.0.0.8");
    assert_eq!(plan.metadata, None);
}

#[test]
fn somebody_elses_node_is_left_alone() {
    let found = found(Some(&vmi()), Some("z1"));
    let mut node = fresh();
    node.claims.provider_id = "aws:///eu/i-1".into();
    assert!(plan(&node, &found).is_empty(), "another provider's");
    node.claims.provider_id = "kubevirt://vm-2".into();
    assert!(plan(&node, &found).is_empty(), "another VM's");
    let mut node = fresh();
    node.taints.clear();
    assert!(plan(&node, &found).is_empty(), "never given to a cloud provider");
    let node = GuestNode { deleting: true, ..fresh() };
    assert!(plan(&node, &found).is_empty(), "being deleted");
}

#[test]
fn older_labels_of_others_are_the_source_of_the_present_ones() {
    let mut node = initialised();
    node.labels.insert("failure-domain.beta.kubernetes.io/region".into(), "r9".into());
    let metadata = plan(&node, &found(Some(&vmi()), Some("z1"))).metadata.unwrap();
    let expected = [("topology.kubernetes.io/region".to_owned(), "r9".to_owned())];
    assert_eq!(metadata.labels, expected.into());
}

proptest! {
    #[test]
    fn what_was_planned_and_done_leaves_nothing(
        tainted: bool, shut: bool, there: bool, claimed in prop::sample::select(vec!["", "kubevirt://vm-1", "kubevirt://x", "gce://y"]),
        zones in prop::collection::vec(prop::option::of(prop::sample::select(vec!["z1", "z2", "not a zone"])), 2),
        ips in prop::sample::subsequence(vec!["10.0.0.7", "10.0.0.8", "fd00::7", "fe80::1"], 0..=4),
        provided in prop::sample::select(vec!["", "10.0.0.9", "fd00::7,10.0.0.8"]),
        stale in prop::option::of(prop::sample::select(vec!["failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"])),
    ) {
        let mut node = fresh();
        node.taints.retain(|taint| tainted || taint.key != UNINITIALIZED_TAINT);
        node.taints.extend(shut.then(|| taint(SHUTDOWN_TAINT)));
        node.claims.provider_id = claimed.into();
        node.provided = crate::guest::nodes::provided_node_ips(provided);
        node.labels.extend(stale.map(|label| (label.to_owned(), "old".to_owned())));
        let mut vmi = vmi();
        vmi.zone = zones[1].map(str::to_owned);
        vmi.interfaces[0].addresses = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let found = found(there.then_some(&vmi), zones[0]);
        let first = plan(&node, &found);
        let after = apply(node.clone(), first.clone());
        prop_assert!(plan(&after, &found).is_empty(), "{:?} then {:?}", first, plan(&after, &found));
        prop_assert_eq!(after.has_taint(SHUTDOWN_TAINT), shut, "another controller's taint");
        prop_assert!(claimed.is_empty() || after.claims.provider_id == claimed, "a providerID never changes");
    }
}
