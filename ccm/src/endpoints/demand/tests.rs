//! Endpoints of the guest, mapped to its VMs.

use super::*;
use crate::guest::slices::WireGuestSlice;
use rstest::rstest;
use serde_json::{Value, json};

const NO_KEPT: fn(&str, &str) -> Option<IpAddr> = |_, _| None;

fn slice(family: &str, endpoints: &Value) -> GuestSlice {
    let wire = json!({"metadata": {"name": "s"}, "addressType": family, "endpoints": endpoints});
    GuestSlice::from(&serde_json::from_value::<WireGuestSlice>(wire).unwrap())
}

fn backend(number: u8) -> Backend {
    Backend {
        nodes: vec![format!("n{number}")],
        vm: format!("w{number}"),
        uid: format!("v{number}"),
        host: Some("infra-1".into()),
        conditions: Conditions::READY,
        addresses: vec![[10, 0, 0, number].into(), format!("fd00::{number}").parse().unwrap()],
        is_unproved: false,
        excluded: false,
        shows_all: true,
    }
}

fn made(
    spread: Spread,
    has_selector: bool,
    slices: &[GuestSlice],
    backends: &[Backend],
) -> Vec<(String, bool)> {
    let slices: Vec<_> = slices.iter().collect();
    let wanted = Wanted { spread, has_selector, slices: &slices };
    let endpoints = demand(&wanted, Family::V4, backends, &NO_KEPT);
    endpoints.into_iter().map(|endpoint| (endpoint.vm, endpoint.conditions.ready)).collect()
}

fn names(endpoints: &[(String, bool)]) -> Vec<&str> {
    endpoints.iter().map(|(vm, _)| vm.as_str()).collect()
}

#[test]
fn with_policy_local_only_vms_with_an_endpoint_get_traffic() {
    let slices = [
        slice("IPv4", &json!([{"nodeName": "n1", "addresses": ["10.1.0.1"], "conditions": {"ready": true}}])),
        slice(
            "IPv4",
            &json!([{"nodeName": "n2", "conditions": {"ready": false, "serving": false}}, {"nodeName": "gone"}]),
        ),
    ];
    let backends = [backend(1), backend(2), backend(3)];
    let local = made(Spread::WithEndpoint, true, &slices, &backends);
    assert_eq!(local, [("w1".to_owned(), true), ("w2".to_owned(), false)]);
    let all = made(Spread::Everywhere, true, &slices, &backends);
    assert_eq!(names(&all), ["w1", "w2", "w3"]);
    assert!(all.iter().all(|(_, ready)| *ready), "any Node forwards");
    assert!(made(Spread::WithEndpoint, true, &[], &backends).is_empty());
}

/// cozystack#1017, #379: a Gateway's endpoint has no Node, and with Cilium no conditions either.
#[rstest]
#[case::no_node_name(true, Some(json!([{"addresses": ["192.192.192.192"]}])))]
#[case::empty_node_name(true, Some(json!([{"nodeName": "", "conditions": {}}])))]
#[case::no_labelled_slice(false, None)]
fn where_endpoints_are_is_not_guessed(#[case] has_selector: bool, #[case] endpoints: Option<Value>) {
    let slices: Vec<_> = endpoints.iter().map(|endpoints| slice("IPv4", endpoints)).collect();
    let made = made(Spread::WithEndpoint, has_selector, &slices, &[backend(1), backend(2)]);
    assert_eq!(made, [("w1".to_owned(), true), ("w2".to_owned(), true)]);
}

#[test]
fn an_endpoint_with_a_node_and_one_without_add_up() {
    let slices = [slice(
        "IPv4",
        &json!([{"nodeName": "n1", "conditions": {"ready": true}}, {"conditions": {"ready": false}}]),
    )];
    let made = made(Spread::WithEndpoint, true, &slices, &[backend(1), backend(2)]);
    assert_eq!(made, [("w1".to_owned(), true), ("w2".to_owned(), false)]);
}

#[test]
fn each_family_has_its_own_addresses_and_endpoints() {
    let slices = [slice("IPv6", &json!([{"nodeName": "n1"}])), slice("FQDN", &json!([{"nodeName": "n2"}]))];
    let slices: Vec<_> = slices.iter().collect();
    let wanted = Wanted { spread: Spread::WithEndpoint, has_selector: true, slices: &slices };
    let backends = [backend(1), backend(2), Backend { addresses: vec![[10, 0, 0, 3].into()], ..backend(3) }];
    assert!(demand(&wanted, Family::V4, &backends, &NO_KEPT).is_empty());
    let v6 = demand(&wanted, Family::V6, &backends, &NO_KEPT);
    assert_eq!(v6.iter().map(|it| it.address.to_string()).collect::<Vec<_>>(), ["fd00::1"]);
    let all = Wanted { spread: Spread::Everywhere, ..wanted };
    assert_eq!(demand(&all, Family::V6, &backends, &NO_KEPT).len(), 2, "a VM without an address is left out");
}

#[test]
fn an_instance_that_shows_no_address_keeps_the_last_one_while_its_agent_is_silent() {
    let kept = |vm: &str, uid: &str| ((vm, uid) == ("w1", "v1")).then(|| [10, 0, 0, 9].into());
    let wanted = Wanted { spread: Spread::Everywhere, has_selector: true, slices: &[] };
    let silent = Backend { addresses: Vec::new(), shows_all: false, ..backend(1) };
    let unproved = Backend { is_unproved: true, ..silent.clone() };
    assert!(demand(&wanted, Family::V4, &[unproved], &kept).is_empty(), "the last one is not proved either");
    let restarted = Backend { uid: "v2".into(), ..silent.clone() };
    let moved = Backend { shows_all: false, ..backend(1) };
    let other = vec!["fd00::1".parse().unwrap()];
    let without = Backend { shows_all: true, addresses: other, ..silent.clone() };
    let addresses = |backend: Backend| {
        let made = demand(&wanted, Family::V4, &[backend], &kept);
        made.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(addresses(silent), ["10.0.0.9"]);
    assert_eq!(addresses(moved), ["10.0.0.1"], "what it shows counts");
    assert!(addresses(restarted).is_empty(), "another instance has another address");
    assert!(addresses(without).is_empty(), "it shows that it has none of this family");
}

#[test]
fn an_ending_endpoint_serves_on_and_a_vm_that_is_not_ready_takes_nothing() {
    let ending =
        json!([{"nodeName": "n1", "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    let slices = [slice("IPv4", &ending)];
    let slices: Vec<_> = slices.iter().collect();
    let wanted = Wanted { spread: Spread::WithEndpoint, has_selector: true, slices: &slices };
    let made = demand(&wanted, Family::V4, &[backend(1)], &NO_KEPT);
    assert_eq!(made[0].conditions, Conditions { ready: false, serving: true, terminating: true });
    let paused = Backend { conditions: Conditions::default(), ..backend(1) };
    let all = Wanted { spread: Spread::Everywhere, ..wanted };
    assert_eq!(demand(&all, Family::V4, &[paused], &NO_KEPT)[0].conditions, Conditions::default());
}

/// kubevirt/kubevirt#12698: with the agent connected, an interface shows no address for a while.
#[rstest]
#[case::nothing_shown(vec![], &["10.0.0.9"])]
#[case::the_other_family_only(vec!["fd00::1"], &[])]
#[case::another_address(vec!["10.0.0.1"], &["10.0.0.1"])]
fn a_vm_that_shows_no_address_at_all_keeps_the_last(#[case] shown: Vec<&str>, #[case] served: &[&str]) {
    let wanted = Wanted { spread: Spread::Everywhere, has_selector: true, slices: &[] };
    let addresses = shown.into_iter().map(|text| text.parse().unwrap()).collect();
    let backend = Backend { addresses, shows_all: true, ..backend(1) };
    let made = demand(&wanted, Family::V4, &[backend], &|_, _| Some([10, 0, 0, 9].into()));
    assert_eq!(made.iter().map(|it| it.address.to_string()).collect::<Vec<_>>(), served);
}

/// kubernetes/autoscaler#1907, deckhouse/deckhouse#736: the one pod is on a Node that takes no traffic.
#[rstest]
#[case::on_an_excluded_node(json!([{"nodeName": "gone", "conditions": {"ready": true}}]), true, &["w1", "w2"])]
#[case::no_endpoint(json!([]), true, &["w1", "w2"])]
#[case::none_is_ready(json!([{"nodeName": "n1", "conditions": {"ready": false}}]), true, &["w1", "w2"])]
#[case::vm_not_ready(json!([{"nodeName": "n1", "conditions": {"ready": true}}]), false, &["w1", "w2"])]
#[case::one_is_ready(json!([{"nodeName": "n2", "conditions": {"ready": true}}]), true, &["w2"])]
fn with_policy_cluster_a_service_is_never_without_backends(
    #[case] endpoints: Value,
    #[case] is_ready: bool,
    #[case] served: &[&str],
) {
    let first =
        if is_ready { backend(1) } else { Backend { conditions: Conditions::default(), ..backend(1) } };
    let made = made(Spread::Preferred, true, &[slice("IPv4", &endpoints)], &[first, backend(2)]);
    assert_eq!(names(&made), served);
    assert!(made.iter().any(|(_, ready)| *ready));
}

/// deckhouse/deckhouse#736: the autoscaler's taint stays on Nodes. When it is on all, they serve on, with policy Cluster.
#[rstest]
#[case::all_excluded(json!([{"nodeName": "n1", "conditions": {"ready": true}}]), &[1, 2], &["w1"])]
#[case::one_is_not(json!([{"nodeName": "n1", "conditions": {"ready": true}}]), &[1], &["w2"])]
#[case::one_is_not_and_has_it(json!([{"nodeName": "n2", "conditions": {"ready": true}}]), &[1], &["w2"])]
#[case::no_endpoint(json!([]), &[1, 2], &["w1", "w2"])]
fn an_exclusion_of_all_nodes_ends_no_traffic_with_policy_cluster(
    #[case] endpoints: Value,
    #[case] excluded: &[u8],
    #[case] served: &[&str],
) {
    let backends = [1, 2].map(|number| Backend { excluded: excluded.contains(&number), ..backend(number) });
    let slices = [slice("IPv4", &endpoints)];
    assert_eq!(names(&made(Spread::Preferred, true, &slices, &backends)), served);
    let counted = if excluded.len() == 2 { vec![] } else { vec!["w2"] };
    assert_eq!(names(&made(Spread::Everywhere, true, &slices, &backends)), counted, "as the framework does");
    let local = made(Spread::WithEndpoint, true, &slices, &backends);
    assert!(local.iter().all(|(vm, _)| counted.contains(&vm.as_str())), "{local:?}");
}

#[test]
fn with_policy_local_a_service_without_endpoints_has_no_backends() {
    let gone = slice("IPv4", &json!([{"nodeName": "gone", "conditions": {"ready": true}}]));
    assert!(made(Spread::WithEndpoint, true, &[gone], &[backend(1)]).is_empty());
}
