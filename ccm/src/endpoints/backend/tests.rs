//! Which Nodes and VMs become backends, and with which conditions.

use super::*;
use crate::{
    guest::nodes::WireNode,
    infra::machines::{Interface, Vm, VmiConditions},
    nodes::backends::{AUTOSCALER_TAINT, EXCLUDE_LABEL},
    wire::system_uuid::SystemUuid,
};
use rstest::rstest;
use serde_json::{Value, json};

const UUID: &str = "5d307ca9-b3ef-428c-8861-06e72d69f223";
const OTHER_UUID: &str = "11111111-b3ef-428c-8861-06e72d69f223";

fn member(name: &str, vm: &str, more: &Value) -> Member {
    let mut node = json!({"metadata": {"name": name}, "spec": {"providerID": format!("kubevirt://{vm}")},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}, {"type": "Hostname", "address": name}]}});
    for (section, fields) in more.as_object().into_iter().flatten() {
        for (key, value) in fields.as_object().into_iter().flatten() {
            node[section][key] = value.clone();
        }
    }
    Member::from(&GuestNode::from(&serde_json::from_value::<WireNode>(node).unwrap()))
}

fn vmi(name: &str) -> Vmi {
    let interface = Interface {
        name: "default".into(),
        addresses: ["10.0.0.6", "10.0.0.7", "fd00::7"].map(|text| text.parse().unwrap()).to_vec(),
        masquerade: true,
        ..Interface::default()
    };
    Vmi {
        name: name.into(),
        uid: "v1".into(),
        cluster: Some("guest".into()),
        phase: Phase::Running,
        conditions: VmiConditions { ready: true, paused: false },
        host: Some("infra-1".into()),
        interfaces: vec![interface],
        ..Vmi::default()
    }
}

fn found(members: &[Member], vmis: Vec<Vmi>) -> Vec<Backend> {
    let seen = Snapshot::of(Vec::<Vm>::new(), vmis);
    backends(members, &seen, &"guest".parse().unwrap(), Unlabelled::Refused, &AddressPolicy::default())
        .unwrap()
}

#[rstest]
#[case(json!({}), false)]
#[case(json!({"metadata": {"labels": {EXCLUDE_LABEL: ""}}}), true)]
#[case(json!({"metadata": {"labels": {EXCLUDE_LABEL: "true"}}}), true)]
#[case(json!({"metadata": {"labels": {EXCLUDE_LABEL: "no"}}}), true)]
#[case(json!({"metadata": {"labels": {EXCLUDE_LABEL: "false"}}}), false)]
#[case(json!({"metadata": {"deletionTimestamp": "2026-11-21T00:00:10Z"}}), true)]
#[case(json!({"spec": {"taints": [{"key": AUTOSCALER_TAINT, "effect": "NoSchedule"}]}}), true)]
#[case(json!({"spec": {"taints": [{"key": "node.cloudprovider.kubernetes.io/uninitialized", "effect": "NoSchedule"}]}}), true)]
#[case(json!({"spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}}), false)]
#[case(json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}), false)]
fn the_frameworks_rules_say_which_nodes_count(#[case] more: Value, #[case] excluded: bool) {
    let member = member("n1", "w1", &more);
    assert_eq!(member.excluded, excluded);
    assert_eq!(found(&[member], vec![vmi("w1")])[0].excluded, excluded);
}

/// A VM of two Node objects, an old one that is being deleted and the present one, counts by the latter, in any order.
#[test]
fn a_vm_is_excluded_if_all_its_nodes_are() {
    let old = member("old", "w1", &json!({"metadata": {"deletionTimestamp": "2026-11-21T00:00:10Z"}}));
    let present = member("n1", "w1", &json!({}));
    for members in [[old.clone(), present.clone()], [present.clone(), old.clone()]] {
        let backend = &found(&members, vec![vmi("w1")])[0];
        assert_eq!((backend.excluded, backend.nodes.as_slice()), (false, &["n1".to_owned()][..]));
    }
    assert!(found(&[old], vec![vmi("w1")])[0].excluded);
}

#[test]
fn a_backend_is_reached_where_its_vm_says_and_its_node_knows_it() {
    let backend = &found(&[member("n1", "w1", &json!({}))], vec![vmi("w1")])[0];
    assert_eq!((backend.vm.as_str(), backend.nodes.as_slice()), ("w1", &["n1".to_owned()][..]));
    assert_eq!(backend.host.as_deref(), Some("infra-1"));
    let shown = [Family::V4, Family::V6].map(|family| backend.address(family).unwrap().to_string());
    assert_eq!(shown, ["10.0.0.7", "fd00::7"], "the Node's own address of the two that the VM shows");
}

#[test]
fn an_address_that_only_the_node_claims_is_not_believed() {
    let claimed = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        "metadata": {"annotations": {"alpha.kubernetes.io/provided-node-ip": "192.0.2.2"}}});
    let backend = &found(&[member("n1", "w1", &claimed)], vec![vmi("w1")])[0];
    assert_eq!(backend.address(Family::V4), Some("10.0.0.6".parse().unwrap()));
    let silent = Vmi { interfaces: Vec::new(), ..vmi("w1") };
    assert!(found(&[member("n1", "w1", &claimed)], vec![silent])[0].addresses.is_empty());
}

/// Whoever is root in the VM chooses what its guest agent reports.
#[rstest]
#[case::masquerade(true, &[], &["10.96.0.1"], Some(vec!["10.96.0.1"]))]
#[case::bridge(false, &[], &["10.96.0.1"], None)]
#[case::inside(false, &["10.0.0.0/24"], &["10.0.0.7"], Some(vec!["10.0.0.7"]))]
#[case::one_of_two_inside(false, &["10.0.0.0/24"], &["10.96.0.1", "10.0.0.7"], Some(vec!["10.0.0.7"]))]
#[case::outside(false, &["10.0.0.0/24"], &["10.96.0.1"], Some(vec![]))]
#[case::masquerade_and_outside(true, &["10.0.0.0/24"], &["10.96.0.1"], Some(vec![]))]
#[case::one_family_inside(false, &["10.0.0.0/24"], &["10.0.0.7", "fd00::1"], Some(vec!["10.0.0.7"]))]
#[case::only_the_link_s(false, &[], &["169.254.0.1", "fe80::1"], Some(vec![]))]
#[case::silent(false, &[], &[], Some(vec![]))]
fn an_address_that_the_guest_can_choose_is_no_endpoint_s(
    #[case] masquerade: bool,
    #[case] within: &[&str],
    #[case] shown: &[&str],
    #[case] wanted: Option<Vec<&str>>,
) {
    let mut vmi = vmi("w1");
    let addresses = shown.iter().map(|text| text.parse().unwrap()).collect();
    vmi.interfaces[0] = Interface { masquerade, addresses, ..vmi.interfaces[0].clone() };
    let within: Vec<_> = within.iter().map(|&text| text.to_owned()).collect();
    let policy = AddressPolicy::parse("", "", &within, &[]).unwrap();
    let seen = Snapshot::of(Vec::<Vm>::new(), vec![vmi]);
    let members = [member("n1", "w1", &json!({}))];
    let backend =
        &backends(&members, &seen, &"guest".parse().unwrap(), Unlabelled::Refused, &policy).unwrap()[0];
    let found: Vec<_> = backend.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(backend.is_unproved, wanted.is_none());
    assert_eq!(found, wanted.unwrap_or_default());
}

#[rstest]
#[case(|_: &mut Vmi| (), true)]
#[case(|vmi: &mut Vmi| vmi.cluster = None, false)]
#[case(|vmi: &mut Vmi| { vmi.cluster = None; vmi.uuid = SystemUuid::parse(UUID); }, true)]
#[case(|vmi: &mut Vmi| vmi.cluster = Some("other".into()), false)]
#[case(|vmi: &mut Vmi| vmi.uuid = SystemUuid::parse(UUID), true)]
#[case(|vmi: &mut Vmi| vmi.uuid = SystemUuid::parse(OTHER_UUID), false)]
fn anothers_vm_is_never_a_backend(#[case] change: fn(&mut Vmi), #[case] counts: bool) {
    let mut vmi = vmi("w1");
    change(&mut vmi);
    let member = member("n1", "w1", &json!({"status": {"nodeInfo": {"systemUUID": UUID}}}));
    assert_eq!(!found(&[member], vec![vmi]).is_empty(), counts);
}

#[rstest]
#[case(|_: &mut Vmi| (), Conditions::READY)]
#[case(|vmi: &mut Vmi| vmi.conditions.ready = false, Conditions { ready: false, ..Conditions::READY })]
#[case(|vmi: &mut Vmi| vmi.conditions.paused = true, Conditions::default())]
#[case(|vmi: &mut Vmi| vmi.phase = Phase::Starting, Conditions::default())]
#[case(|vmi: &mut Vmi| vmi.phase = Phase::Unknown("x".into()), Conditions::default())]
#[case(|vmi: &mut Vmi| vmi.phase = Phase::Succeeded, Conditions { terminating: true, ..Conditions::default() })]
#[case(|vmi: &mut Vmi| vmi.deleting = true, Conditions { ready: false, serving: true, terminating: true })]
fn a_vm_does_what_its_instance_shows(#[case] change: fn(&mut Vmi), #[case] conditions: Conditions) {
    let mut vmi = vmi("w1");
    change(&mut vmi);
    assert_eq!(found(&[member("n1", "w1", &json!({}))], vec![vmi])[0].conditions, conditions);
}

#[test]
fn foreign_nodes_and_absent_instances_are_none_and_two_nodes_of_one_vm_are_one() {
    let foreign = member("n0", "w1", &json!({"spec": {"providerID": "aws:///eu/i-1"}}));
    let members = [
        foreign,
        member("n1", "w1", &json!({})),
        member("n2", "w1", &json!({})),
        member("n3", "w9", &json!({})),
    ];
    let found = found(&members, vec![vmi("w1"), vmi("w2")]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].nodes, ["n1", "n2"]);
}

#[test]
fn without_a_look_at_the_vms_nothing_is_known() {
    let members = [member("n1", "w1", &json!({}))];
    let policy = AddressPolicy::default();
    assert_eq!(
        backends(&members, &Snapshot::default(), &"guest".parse().unwrap(), Unlabelled::Refused, &policy),
        None
    );
}

#[test]
fn of_several_endpoints_on_a_node_the_one_counts_that_gets_the_traffic() {
    let ending = Conditions { ready: false, serving: true, terminating: true };
    let starting = Conditions::default();
    assert_eq!(Conditions::READY.or(ending), Conditions::READY);
    assert_eq!(starting.or(ending), ending, "what is ending serves until something is ready");
    assert_eq!(starting.or(starting), starting);
    let vm = Conditions { ready: false, serving: true, terminating: true };
    assert_eq!(Conditions::READY.and(vm), vm);
    assert_eq!(ending.and(Conditions::READY), ending);
}
