//! Each rule by name, and the properties that hold for all requests.

use super::*;
use proptest::prelude::*;
use rstest::rstest;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn patterns(texts: &[&str]) -> Vec<KeyPattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn texts(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn networks(items: &[&str]) -> Networks {
    Networks::parse(&texts(items)).unwrap()
}

fn passed(policy: &AnnotationPolicy, asked: &[(&str, &str)]) -> (BTreeMap<String, String>, Vec<Withheld>) {
    let policy = GuestPolicy { annotations: policy.clone(), ..GuestPolicy::default() };
    let mut withheld = Vec::new();
    (policy.annotations(map(asked), &mut withheld), withheld)
}

#[test]
fn without_a_policy_every_annotation_and_address_passes() {
    let policy = GuestPolicy::default();
    let (mut withheld, asked) = (Vec::new(), map(&[("a", "1"), ("metallb.io/loadBalancerIPs", "x")]));
    assert_eq!(policy.annotations(asked.clone(), &mut withheld), asked);
    assert_eq!(policy.load_balancer_ip("192.0.2.1", &mut withheld), "192.0.2.1");
    assert_eq!(withheld, []);
}

#[rstest]
#[case::allowed("metallb.io/pool", true)]
#[case::exact("example.org/zone", true)]
#[case::longer_than_exact("example.org/zone2", false)]
#[case::not_named("other.org/x", false)]
#[case::deny_is_stronger("metallb.io/allow-shared-ip", false)]
fn only_what_is_allowed_and_not_denied_passes(#[case] key: &str, #[case] passes: bool) {
    let policy = AnnotationPolicy {
        allow: Some(patterns(&["metallb.io/*", "example.org/zone"])),
        deny: patterns(&["metallb.io/allow-shared-ip"]),
        ..AnnotationPolicy::default()
    };
    let (got, withheld) = passed(&policy, &[(key, "1")]);
    assert_eq!(got.contains_key(key), passes);
    let refused = [Withheld::Annotations(vec![key.to_owned()])];
    assert_eq!(withheld.as_slice(), if passes { &[][..] } else { &refused[..] });
}

#[rstest]
#[case("*", true, true)]
#[case("a/*", true, false)]
#[case("a/b", true, false)]
#[case("a*b", false, false)]
#[case("**", false, false)]
#[case("", false, false)]
fn a_pattern_is_a_key_or_its_beginning(#[case] text: &str, #[case] is_pattern: bool, #[case] fits_all: bool) {
    let pattern = text.parse::<KeyPattern>();
    assert_eq!(pattern.is_ok(), is_pattern);
    assert_eq!(pattern.is_ok_and(|pattern| pattern.fits("x")), fits_all);
}

#[rstest]
#[case("metallb.io/address-pool", "public", true)]
#[case("metallb.io/address-pool", "private", false)]
#[case("metallb.io/address-pool", "public,private", false)]
#[case("metallb.io/address-pool", "", false)]
#[case("metallb.io/loadBalancerIPs", "192.0.2.7, 2001:db8::1", true)]
#[case("metallb.io/loadBalancerIPs", "192.0.2.7,203.0.113.1", false)]
#[case("metallb.io/loadBalancerIPs", "auto", true)]
#[case("free", "anything", true)]
fn of_chosen_annotations_only_listed_values_pass(
    #[case] key: &str,
    #[case] value: &str,
    #[case] passes: bool,
) {
    let addresses = Choice::new(texts(&["192.0.2.0/24", "2001:db8::/64", "auto"]));
    let policy = AnnotationPolicy {
        values: [
            ("metallb.io/address-pool".to_owned(), Choice::new(texts(&["public"]))),
            ("metallb.io/loadBalancerIPs".to_owned(), addresses),
        ]
        .into(),
        ..AnnotationPolicy::default()
    };
    let (got, withheld) = passed(&policy, &[(key, value)]);
    assert_eq!((got.contains_key(key), withheld.is_empty()), (passes, passes), "{withheld:?}");
}

#[test]
fn a_default_yields_to_the_guest_and_an_override_does_not() {
    let policy = AnnotationPolicy {
        deny: patterns(&["denied"]),
        defaults: map(&[("free", "ours"), ("denied", "ours"), ("absent", "ours")]),
        overrides: map(&[("fixed", "ours"), ("same", "ours"), ("added", "ours")]),
        ..AnnotationPolicy::default()
    };
    let asked = [("free", "theirs"), ("denied", "theirs"), ("fixed", "theirs"), ("same", "ours")];
    let (got, withheld) = passed(&policy, &asked);
    let wanted = [
        ("absent", "ours"),
        ("added", "ours"),
        ("denied", "ours"),
        ("fixed", "ours"),
        ("free", "theirs"),
        ("same", "ours"),
    ];
    assert_eq!(got, map(&wanted));
    let told = [Withheld::Annotations(texts(&["denied"])), Withheld::Overridden(texts(&["fixed"]))];
    assert_eq!(withheld, told);
}

#[rstest]
#[case::field("192.0.2.9", "192.0.2.9", None)]
#[case::none("", "", None)]
#[case::outside("203.0.113.9", "", Some("allowed are 192.0.2.0/24"))]
#[case::no_address("pool", "", Some("\"pool\""))]
fn an_address_outside_the_allowed_networks_is_not_asked_for(
    #[case] asked: &str,
    #[case] wanted: &str,
    #[case] says: Option<&str>,
) {
    let policy =
        GuestPolicy { load_balancer_ips: Some(networks(&["192.0.2.0/24"])), ..GuestPolicy::default() };
    let mut withheld = Vec::new();
    assert_eq!(policy.load_balancer_ip(asked, &mut withheld), wanted);
    assert_eq!(withheld.len(), usize::from(says.is_some()));
    for (withheld, says) in withheld.iter().zip(says) {
        assert!(withheld.to_string().contains(says), "{withheld}");
    }
}

#[rstest]
#[case("metallb.io/loadBalancerIPs", "203.0.113.9", false)]
#[case("lbipam.cilium.io/ips", "192.0.2.1,203.0.113.9", false)]
#[case("metallb.universe.tf/loadBalancerIPs", "192.0.2.1", true)]
#[case("other", "203.0.113.9", true)]
fn the_annotations_that_ask_for_addresses_are_no_way_around(
    #[case] key: &str,
    #[case] value: &str,
    #[case] passes: bool,
) {
    let policy =
        GuestPolicy { load_balancer_ips: Some(networks(&["192.0.2.0/24"])), ..GuestPolicy::default() };
    let mut withheld = Vec::new();
    let got = policy.annotations(map(&[(key, value)]), &mut withheld);
    assert_eq!((got.is_empty(), withheld.is_empty()), (!passes, passes));
}

#[test]
fn external_addresses_stay_without_a_policy_and_obey_one() {
    let (asked, present) = (texts(&["192.0.2.1", "203.0.113.1", "oops"]), texts(&["203.0.113.1", "x"]));
    let external = |policy: Option<&[&str]>| {
        let policy = GuestPolicy { external_ips: policy.map(networks), ..GuestPolicy::default() };
        let mut withheld = Vec::new();
        (policy.external_ips(&asked, &present, &mut withheld), withheld.first().map(ToString::to_string))
    };
    let (kept, said) = external(None);
    assert_eq!(kept, ["203.0.113.1"]);
    assert!(said.unwrap().contains("192.0.2.1, oops are not passed"));
    assert_eq!(external(Some(&["192.0.2.0/24"])).0, ["192.0.2.1"]);
    let (none, said) = external(Some(&[]));
    assert!(none.is_empty() && said.unwrap().ends_with("allowed are none"));
    assert_eq!(external(Some(&["0.0.0.0/0"])).1.unwrap().matches("oops").count(), 1);
}

#[rstest]
#[case(&["192.0.2.1"], "192.0.2.1")]
#[case(&["10.0.0.0/8", "lan"], "lan")]
fn what_is_no_network_is_named(#[case] given: &[&str], #[case] named: &str) {
    assert_eq!(Networks::parse(&texts(given)), Err(PolicyError::Network(named.to_owned())));
}

prop_compose! {
    fn policies()(
        allow in proptest::option::of(proptest::collection::vec("[ab]{1,2}\\*?", 0..3)),
        deny in proptest::collection::vec("[ab]{1,2}\\*?", 0..2),
        values in proptest::collection::btree_map("[ab]{1,2}", proptest::collection::vec("[0-2]", 0..2), 0..2),
        defaults in proptest::collection::btree_map("[ab]{1,2}", "[0-2]", 0..2),
        overrides in proptest::collection::btree_map("[ab]{1,2}", "[0-2]", 0..2),
    ) -> GuestPolicy {
        let patterns = |texts: Vec<String>| texts.iter().map(|text| text.parse().unwrap()).collect();
        let values = values.into_iter().map(|(key, list)| (key, Choice::new(list))).collect();
        let annotations =
            AnnotationPolicy { allow: allow.map(patterns), deny: patterns(deny), values, defaults, overrides };
        GuestPolicy { annotations, ..GuestPolicy::default() }
    }
}

proptest! {
    /// Whatever reaches infra, the policy lets the guest set it or the operator sets it; whatever does not is reported.
    #[test]
    fn nothing_passes_or_vanishes_unsaid(
        policy in policies(), asked in proptest::collection::btree_map("[ab]{1,2}", "[0-2]", 0..5),
    ) {
        let mut withheld = Vec::new();
        let passed = policy.annotations(asked.clone(), &mut withheld);
        let rules = &policy.annotations;
        for (key, value) in &passed {
            let by_operator = rules.overrides.get(key) == Some(value) || rules.defaults.get(key) == Some(value);
            let by_guest = asked.get(key) == Some(value)
                && rules.passes(key)
                && rules.values.get(key).is_none_or(|choice| choice.allows(value));
            prop_assert!(by_operator || by_guest, "{key}={value}");
        }
        for (key, value) in &asked {
            let told = withheld.iter().any(|withheld| match withheld {
                Withheld::Annotations(keys) | Withheld::Overridden(keys) => keys.contains(key),
                Withheld::Value { key: named, .. } => named == key,
                Withheld::LoadBalancerIp { .. } | Withheld::ExternalIps { .. } | Withheld::Fields(_) => false,
            });
            prop_assert!(passed.get(key) == Some(value) || told, "{key}={value} vanished");
            prop_assert!(!policy.passes(key, value) || passed.get(key) == Some(value), "{key}={value} counts");
        }
        for (key, value) in &rules.overrides {
            prop_assert_eq!(passed.get(key), Some(value));
        }
    }
}

#[test]
fn what_is_kept_of_annotations_is_planned_and_reported_as_the_whole() {
    let mut asked: BTreeMap<_, _> =
        (0..500).map(|number| (format!("other/{number:03}"), "y".repeat(400))).collect();
    asked.insert("passed/a".to_owned(), "kept".to_owned());
    asked.insert("set/a".to_owned(), "compared".to_owned());
    let annotations = AnnotationPolicy {
        allow: Some(vec![KeyPattern::Prefix("passed/".to_owned())]),
        overrides: [("set/a".to_owned(), "own".to_owned())].into(),
        ..AnnotationPolicy::default()
    };
    let policy = GuestPolicy { annotations, ..GuestPolicy::default() };
    let report = |asked: &BTreeMap<String, String>| {
        let mut withheld = Vec::new();
        (policy.annotations(asked.clone(), &mut withheld), withheld)
    };
    let whole = report(&asked);
    asked.insert(LAST_APPLIED.to_owned(), "z".repeat(200 * 1024));
    policy.annotations.keep_read(&mut asked);
    assert_eq!(report(&asked), whole);
    let size: usize = asked.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(size < 1024, "{size} bytes are kept");

    // Without a policy all reach infra.
    let mut asked =
        BTreeMap::from([("a".to_owned(), "1".to_owned()), (LAST_APPLIED.to_owned(), "{}".to_owned())]);
    GuestPolicy::default().annotations.keep_read(&mut asked);
    assert_eq!(asked, BTreeMap::from([("a".to_owned(), "1".to_owned())]));
}
