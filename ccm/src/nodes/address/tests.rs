use super::*;
use crate::guest::nodes::provided_node_ips;
use proptest::prelude::*;
use rstest::rstest;

const AGENT: bool = true;
const NO_AGENT: bool = false;

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn interface(name: &str, network: Network, addresses: &[&str]) -> Interface {
    Interface { name: name.into(), network, addresses: ips(addresses), ..Interface::default() }
}

fn vmi(interfaces: Vec<Interface>, agent_connected: bool) -> Vmi {
    Vmi { phase: Phase::Running, interfaces, agent_connected, ..Vmi::default() }
}

fn on_default(addresses: &[&str], agent: bool) -> Vmi {
    vmi(vec![interface("default", Network::Pod, addresses)], agent)
}

fn internal_ips(list: &[&str]) -> Vec<NodeAddress> {
    list.iter().map(|ip| NodeAddress { kind: INTERNAL_IP.into(), address: (*ip).into() }).collect()
}

/// The resulting internal addresses, as text.
fn chosen(policy: &AddressPolicy, vmi: Option<&Vmi>, provided: &[&str], current: &[&str]) -> Vec<String> {
    let all = addresses(policy, vmi, &ips(provided), &internal_ips(current));
    all.into_iter().map(|address| address.address).collect()
}

#[rstest]
#[case::one(&["10.0.0.7"], &["10.0.0.7"])]
#[case::one_per_family(&["10.0.0.7", "fd00::7", "10.0.0.8", "fd00::8"], &["10.0.0.7", "fd00::7"])]
#[case::six_first(&["fd00::7", "10.0.0.7"], &["fd00::7", "10.0.0.7"])]
#[case::no_link_local(&["fe80::1", "169.254.1.1", "10.0.0.7"], &["10.0.0.7"])]
#[case::nothing_of_its_own(&["127.0.0.1", "::1", "0.0.0.0", "ff02::1", "10.0.0.7"], &["10.0.0.7"])]
#[case::hardware_address_last(&["2001:db8::5054:ff:fe12:3456", "2001:db8::7"], &["2001:db8::7"])]
#[case::hardware_address_alone(&["2001:db8::5054:ff:fe12:3456"], &["2001:db8::5054:ff:fe12:3456"])]
#[case::privacy_address_last(&["2001:db8::a1b2:c3d4:e5f6:789a", "2001:db8::5054:ff:fe12:3456"], &["2001:db8::5054:ff:fe12:3456"])]
#[case::privacy_address_alone(&["2001:db8::a1b2:c3d4:e5f6:789a"], &["2001:db8::a1b2:c3d4:e5f6:789a"])]
#[case::random_in_another_network(&["2001:db8:1:0:a1b2:c3d4:e5f6:789a", "2001:db8::5054:ff:fe12:3456"], &["2001:db8:1:0:a1b2:c3d4:e5f6:789a"])]
#[case::given_by_hand(&["2001:db8::5054:ff:fe12:3456", "2001:db8::192:168:0:7"], &["2001:db8::192:168:0:7"])]
#[case::given_and_privacy(&["2001:db8::a1b2:c3d4:e5f6:789a", "2001:db8::5054:ff:fe12:3456", "2001:db8::7"], &["2001:db8::7"])]
fn one_address_per_family_of_those_that_count(#[case] shown: &[&str], #[case] expected: &[&str]) {
    let vmi = on_default(shown, AGENT);
    assert_eq!(chosen(&AddressPolicy::default(), Some(&vmi), &[], &[]), expected);
}

#[test]
fn the_interface_is_chosen_by_name_network_or_what_there_is() {
    let lan = || interface("lan", Network::Multus("hcp/lan".into()), &["192.168.0.7"]);
    let agents = || interface("", Network::Unknown, &["10.244.0.1"]);
    let pod = || interface("net0", Network::Pod, &["10.0.0.7"]);
    let with = |choice, interfaces| {
        let policy = AddressPolicy { interface: choice, ..AddressPolicy::default() };
        chosen(&policy, Some(&vmi(interfaces, AGENT)), &[], &[])
    };
    let named_default = interface("default", Network::Unknown, &["10.9.9.9"]);
    assert_eq!(with(InterfaceChoice::Automatic, vec![agents(), lan(), pod(), named_default]), ["10.9.9.9"]);
    assert_eq!(
        with(InterfaceChoice::Automatic, vec![agents(), lan(), pod()]),
        ["10.0.0.7"],
        "the pod network"
    );
    assert_eq!(
        with(InterfaceChoice::Automatic, vec![agents(), lan()]),
        ["192.168.0.7"],
        "the first that the spec names"
    );
    assert!(
        with(InterfaceChoice::Automatic, vec![agents()]).is_empty(),
        "never one that only the guest knows"
    );
    assert_eq!(with(InterfaceChoice::Named("lan".into()), vec![pod(), lan()]), ["192.168.0.7"]);
    assert_eq!(with(InterfaceChoice::Network("hcp/lan".into()), vec![pod(), lan()]), ["192.168.0.7"]);
    assert!(
        with(InterfaceChoice::Named("wan".into()), vec![pod(), lan()]).is_empty(),
        "no other in its place"
    );
}

#[test]
fn networks_limit_what_is_published() {
    let vmi = on_default(&["10.0.0.7", "192.168.0.7", "fd00::7", "2001:db8::7"], AGENT);
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    let within =
        AddressPolicy { within: nets(&["192.168.0.0/16", "2001:db8::/32"]), ..AddressPolicy::default() };
    assert_eq!(chosen(&within, Some(&vmi), &[], &[]), ["192.168.0.7", "2001:db8::7"]);
    let outside = AddressPolicy { outside: nets(&["10.0.0.0/8", "fc00::/7"]), ..AddressPolicy::default() };
    assert_eq!(chosen(&outside, Some(&vmi), &[], &[]), ["192.168.0.7", "2001:db8::7"]);
}

/// harvester/harvester#5794: kube-vip's address is listed first on the VM that has it now.
#[rstest]
#[case::another_shows_it(&["10.0.0.99", "10.0.0.7"], &["10.0.0.99", "10.0.0.8"], &["10.0.0.7"])]
#[case::of_either_family(&["10.0.0.99", "10.0.0.7", "fd00::99", "fd00::7"], &["fd00::99", "10.0.0.99"], &["10.0.0.7", "fd00::7"])]
#[case::nobody_else_shows_it(&["10.0.0.99", "10.0.0.7"], &["10.0.0.8"], &["10.0.0.99"])]
#[case::it_has_no_other(&["10.0.0.99", "fd00::7"], &["10.0.0.99"], &["10.0.0.99", "fd00::7"])]
#[case::all_are_shared(&["10.0.0.99", "10.0.0.7"], &["10.0.0.99", "10.0.0.7"], &["10.0.0.99"])]
#[case::link_local_is_no_other(&["10.0.0.99", "169.254.0.7"], &["10.0.0.99"], &["10.0.0.99"])]
fn an_address_that_several_vms_show_is_none_of_theirs(
    #[case] shown: &[&str],
    #[case] elsewhere: &[&str],
    #[case] expected: &[&str],
) {
    let (vmi, other) = (on_default(shown, AGENT), on_default(elsewhere, AGENT));
    let vmi = without_shared(&vmi, &std::iter::once(&other));
    assert_eq!(chosen(&AddressPolicy::default(), Some(&vmi), &[], &[]), expected);
    // A Node that has it loses it as soon as another VM shows it too.
    assert_eq!(chosen(&AddressPolicy::default(), Some(&vmi), &[], &shown[..1]), expected);
}

#[test]
fn an_address_that_is_still_there_stays() {
    let vmi = on_default(&["10.0.0.7", "10.0.0.8", "fd00::7"], AGENT);
    let policy = AddressPolicy::default();
    assert_eq!(chosen(&policy, Some(&vmi), &[], &["10.0.0.8"]), ["10.0.0.8", "fd00::7"]);
    assert_eq!(chosen(&policy, Some(&vmi), &[], &["fd00::7", "10.0.0.8"]), ["fd00::7", "10.0.0.8"]);
    assert_eq!(chosen(&policy, Some(&vmi), &[], &["10.0.0.99"]), ["10.0.0.7", "fd00::7"], "it moved");
    // The upstream cloud provider published every address of the interface.
    let all = ["10.0.0.7", "10.0.0.8", "fd00::7", "fe80::1"];
    assert_eq!(chosen(&policy, Some(&vmi), &[], &all), ["10.0.0.7", "fd00::7"]);
}

#[test]
fn the_last_known_address_outlives_a_silence() {
    let policy = AddressPolicy::default();
    let had = ["10.0.0.7", "fd00::7"];
    let with = |vmi: Option<&Vmi>| chosen(&policy, vmi, &[], &had);
    assert_eq!(with(None), had, "no instance: a restart");
    assert_eq!(with(Some(&on_default(&[], AGENT))), had, "nothing shown");
    assert_eq!(with(Some(&vmi(vec![], AGENT))), had, "no interface");
    assert_eq!(with(Some(&on_default(&["10.0.0.7"], NO_AGENT))), had, "the agent is silent");
    assert_eq!(with(Some(&on_default(&["10.0.0.7"], AGENT))), ["10.0.0.7"], "the agent shows one family");
    assert_eq!(with(Some(&on_default(&["10.0.0.9"], NO_AGENT))), ["10.0.0.9", "fd00::7"], "a new one");
    let link_local = chosen(&policy, Some(&on_default(&["10.0.0.7"], NO_AGENT)), &[], &["fe80::1"]);
    assert_eq!(link_local, ["10.0.0.7"], "what should never have been published is not kept");
}

#[rstest]
#[case::shown("10.0.0.8", &["10.0.0.8"])]
#[case::not_shown("192.0.2.1", &["192.0.2.1"])]
#[case::pair("fd00::9,10.0.0.8", &["fd00::9", "10.0.0.8"])]
#[case::any_address_of_a_family("::", &["10.0.0.7", "fd00::7"])]
#[case::no_address("worker-1", &["10.0.0.7", "fd00::7"])]
fn what_kubelet_was_given_is_satisfied(#[case] annotation: &str, #[case] expected: &[&str]) {
    let vmi = on_default(&["10.0.0.7", "10.0.0.8", "fd00::7"], AGENT);
    let provided = provided_node_ips(annotation);
    let all = addresses(&AddressPolicy::default(), Some(&vmi), &provided, &[]);
    assert_eq!(all, internal_ips(expected));
}

/// kubevirt/kubevirt#10171: behind masquerade every VM has 10.0.2.2.
#[rstest]
#[case::inner("10.0.2.2", &["10.0.0.7", "fd00::7"], &["10.0.0.7"])]
#[case::inner_pair("fd10:0:2::2,10.0.2.2", &["10.0.0.7", "fd00::7"], &["fd00::7", "10.0.0.7"])]
#[case::outer("10.0.0.7", &["10.0.0.7"], &["10.0.0.7"])]
#[case::the_second_of_a_family("10.0.0.8", &["10.0.0.7", "10.0.0.8"], &["10.0.0.8"])]
#[case::nothing_shown("10.0.2.2", &[], &["10.0.2.2"])]
#[case::another_family_shown("10.0.2.2", &["fd00::7"], &["10.0.2.2"])]
fn behind_masquerade_a_node_has_the_address_at_which_others_reach_it(
    #[case] annotation: &str,
    #[case] shown: &[&str],
    #[case] expected: &[&str],
) {
    let mut vmi = on_default(shown, AGENT);
    let provided = provided_node_ips(annotation);
    let all = |vmi: &Vmi| addresses(&AddressPolicy::default(), Some(vmi), &provided, &[]);
    let given: Vec<_> = provided.iter().map(ToString::to_string).collect();
    let given: Vec<_> = given.iter().map(String::as_str).collect();
    assert_eq!(all(&vmi), internal_ips(&given), "with another binding it stays");
    vmi.interfaces[0].masquerade = true;
    assert_eq!(all(&vmi), internal_ips(expected));
}

#[test]
fn what_is_not_an_internal_address_stays() {
    let current = [
        NodeAddress { kind: "Hostname".into(), address: "worker-1".into() },
        NodeAddress { kind: INTERNAL_IP.into(), address: "10.0.0.1".into() },
        NodeAddress { kind: "ExternalIP".into(), address: "203.0.113.1".into() },
    ];
    let vmi = on_default(&["10.0.0.7"], AGENT);
    let all = addresses(&AddressPolicy::default(), Some(&vmi), &[], &current);
    let shown: Vec<_> = all.iter().map(|a| (a.kind.as_str(), a.address.as_str())).collect();
    assert_eq!(shown, [("InternalIP", "10.0.0.7"), ("Hostname", "worker-1"), ("ExternalIP", "203.0.113.1")]);
    assert_eq!(addresses(&AddressPolicy::default(), None, &[], &current[..1]), current[..1]);
}

#[test]
fn a_policy_is_read_as_it_is_written() {
    let list = |items: &[&str]| items.iter().map(|&item| item.to_owned()).collect::<Vec<_>>();
    let parse = |interface, network, within: &[&str], outside: &[&str]| {
        AddressPolicy::parse(interface, network, &list(within), &list(outside))
    };
    assert_eq!(parse("", "", &[], &[]), Ok(AddressPolicy::default()));
    let policy = parse("", "hcp/lan", &["10.0.0.0/8"], &[" fd00::/8 "]).unwrap();
    assert_eq!(policy.interface, InterfaceChoice::Network("hcp/lan".into()));
    assert_eq!(policy.within, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(policy.outside, ["fd00::/8".parse().unwrap()]);
    assert_eq!(parse("lan", "", &[], &[]).unwrap().interface, InterfaceChoice::Named("lan".into()));
    let error = parse("", "", &["10.0.0.0"], &[]).unwrap_err();
    assert_eq!(error, PolicyError::Network("10.0.0.0".into()));
    assert!(matches!(parse("lan", "hcp/lan", &[], &[]), Err(PolicyError::TwoChoices { .. })));
}

fn some_ips() -> impl Strategy<Value = Vec<&'static str>> {
    let pool =
        vec!["10.0.0.7", "10.0.0.8", "192.168.0.7", "fd00::7", "2001:db8::5054:ff:fe12:3456", "fe80::1"];
    prop::sample::subsequence(pool, 0..=6).prop_shuffle()
}

proptest! {
    #[test]
    fn what_was_decided_stays_decided(
        shown in some_ips(), had in some_ips(), provided in some_ips(), agent: bool, there: bool,
    ) {
        let vmi = there.then(|| on_default(&shown, agent));
        let provided = provided_node_ips(&provided.join(","));
        let policy = AddressPolicy::default();
        let once = addresses(&policy, vmi.as_ref(), &provided, &internal_ips(&had));
        let twice = addresses(&policy, vmi.as_ref(), &provided, &once);
        prop_assert_eq!(&once, &twice);
        prop_assert!(had.is_empty() || !once.is_empty(), "a Node never loses its last address");
        let of = |family| internal(&once).filter(|ip| Family::of(*ip) == family).count();
        let changed = once != internal_ips(&had);
        prop_assert!(!changed || (of(Family::V4) <= 1 && of(Family::V6) <= 1));
    }
}
