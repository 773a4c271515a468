//! The forms that installers write, the defaults, and what is refused.

use super::*;
use crate::config::policy::{AnnotationPolicy, Choice, KeyPattern, Networks};
use proptest::prelude::*;
use rstest::rstest;

fn parse(text: &str) -> CloudConfig {
    let (config, unknown) = CloudConfig::parse(text).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    config
}

#[rstest]
#[case("")]
#[case("  \n")]
#[case("---\n")]
#[case("{}")]
#[case("loadBalancer:\ninstancesV2:\n")]
fn what_says_nothing_has_the_defaults_of_the_reference(#[case] text: &str) {
    let config = parse(text);
    assert_eq!(config, CloudConfig::default());
    assert!(config.load_balancer.enabled && config.instances.enabled && config.instances.zone_and_region);
    assert!(!config.load_balancer.selectorless && !config.load_balancer.endpoint_slices);
    assert_eq!(config.load_balancer.poll_interval, Duration::from_secs(5));
    assert_eq!(config.load_balancer.poll_timeout, Duration::from_mins(5));
}

#[test]
fn reads_the_config_of_hypershift() {
    let config = parse(
        "kubeconfig: /etc/kubernetes/infra-kubeconfig/kubeconfig\n\
         namespace: clusters-guest\n\
         infraLabels:\n  hypershift.openshift.io/infra-id: guest-x7k2p\n\
         loadBalancer:\n  creationPollInterval: 0\n  enabled: true\n  selectorless: true\n\
         instancesV2:\n  enabled: true\n  zoneAndRegionEnabled: false\n",
    );
    assert_eq!(config.kubeconfig, Some(PathBuf::from("/etc/kubernetes/infra-kubeconfig/kubeconfig")));
    assert_eq!(config.namespace, "clusters-guest");
    assert_eq!(config.infra_labels["hypershift.openshift.io/infra-id"], "guest-x7k2p");
    assert!(config.load_balancer.selectorless && !config.instances.zone_and_region);
    assert_eq!(config.load_balancer.poll_interval, DEFAULT_POLL_INTERVAL);
}

#[test]
fn reads_the_config_of_the_reference() {
    let config = parse(
        "loadBalancer:\n  creationPollInterval: 5\n  creationPollTimeout: 60\n  enableEPSController: true\n\
         namespace: kvcluster\nkubeconfig: \"\"\n",
    );
    assert_eq!(config.kubeconfig, None);
    assert_eq!(config.load_balancer.poll_timeout, Duration::from_mins(1));
    assert!(config.load_balancer.endpoint_slices);
}

/// Installers write names without quotes, and a cluster may be named by a number.
#[test]
fn a_name_may_look_like_a_number_or_a_boolean() {
    let config = parse(
        "namespace: 2024\ninfraLabels: {a: 1.10, b: true, 7: null-ish}\n\
         loadBalancer:\n  enabled: yes\n  creationPollTimeout: \"60\"\n  owner: {apiVersion: v1, kind: ConfigMap, name: 0x10}\n\
         instancesV2:\n  enabled: Off\n",
    );
    assert_eq!(config.namespace, "2024");
    let labels = [("a", "1.10"), ("b", "true"), ("7", "null-ish")];
    assert_eq!(config.infra_labels, labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    assert!(config.load_balancer.enabled && !config.instances.enabled);
    assert_eq!(config.load_balancer.poll_timeout, Duration::from_mins(1));
    assert_eq!(config.load_balancer.owner.unwrap().name, "0x10");
}

#[test]
fn names_each_key_that_nobody_knows_once_with_its_section() {
    let (config, mut unknown) = CloudConfig::parse(
        "namespace: hcp\nnameSpace: other\nloadBalancer:\n  selectorLess: true\n  enabled: false\ninstances: {}\n",
    )
    .unwrap();
    unknown.sort();
    assert_eq!(unknown, ["instances", "loadBalancer.selectorLess", "nameSpace"]);
    assert!(!config.load_balancer.enabled && !config.load_balancer.selectorless);
}

#[rstest]
#[case("namespace: [a]", "namespace of the cloud-config must be a text, it is a list")]
#[case(
    "loadBalancer:\n  enabled: maybe",
    "loadBalancer.enabled of the cloud-config must be true or false, it is \"maybe\""
)]
#[case(
    "loadBalancer:\n  creationPollInterval: soon",
    "loadBalancer.creationPollInterval of the cloud-config must be whole seconds, it is \"soon\""
)]
#[case(
    "loadBalancer:\n  creationPollTimeout: 1.5",
    "loadBalancer.creationPollTimeout of the cloud-config must be whole seconds, it is \"1.5\""
)]
#[case(
    "loadBalancer:\n  endpoints: managed",
    "loadBalancer.endpoints of the cloud-config must be Managed or absent, it is \"managed\""
)]
#[case(
    "loadBalancer:\n  endpoints: true",
    "loadBalancer.endpoints of the cloud-config must be Managed or absent, it is \"true\""
)]
#[case("infraLabels:\n  a: [1]", "infraLabels.a of the cloud-config must be a text, it is a list")]
#[case("infraLabels: [a]", "infraLabels of the cloud-config must be a map of texts, it is a list")]
#[case("loadBalancer: true", "loadBalancer of the cloud-config must be a map of keys, it is \"true\"")]
#[case("just words", "the text of the cloud-config must be a map of keys, it is \"just words\"")]
fn a_wrong_type_is_named(#[case] text: &str, #[case] wanted: &str) {
    assert_eq!(CloudConfig::parse(text).unwrap_err().to_string(), wanted);
}

#[test]
fn what_is_no_yaml_is_refused() {
    let error = CloudConfig::parse("a: [1,\nb: {").unwrap_err();
    assert!(error.to_string().starts_with("the cloud-config is not YAML: "), "{error}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[a-zA-Z0-9:{}\\[\\]\n ,\"-]{0,80}") {
        // The test claims that no text causes a panic; the assertions hold for every accepted config.
        if let Ok((config, unknown)) = CloudConfig::parse(&text) {
            prop_assert!(unknown.len() <= text.len());
            prop_assert!(config.load_balancer.poll_timeout > Duration::ZERO);
        }
    }
}

#[test]
fn endpoints_are_managed_where_it_says_so() {
    let of = |text: &str| parse(text).load_balancer.endpoints;
    assert_eq!(of("loadBalancer: {endpoints: Managed}"), ManagedEndpoints::All);
    assert_eq!(of("loadBalancer: {endpoints: }"), ManagedEndpoints::AsReference);
}

#[test]
fn reads_which_addresses_are_a_nodes() {
    let config = parse(
        "instancesV2:\n  nodeAddresses:\n    network: clusters/lan\n    within: [\"10.0.0.0/8\"]\n    outside:\n    - 10.1.0.0/16\n",
    );
    let expected =
        AddressPolicy::parse("", "clusters/lan", &["10.0.0.0/8".to_owned()], &["10.1.0.0/16".to_owned()]);
    assert_eq!(config.instances.addresses, expected.unwrap());
}

#[rstest]
#[case("{interface: a, network: b}", "leave one of")]
#[case("{within: [lan]}", "\"lan\" is no network")]
#[case("{within: lan}", "instancesV2.nodeAddresses.within of the cloud-config must be a list of texts")]
fn a_choice_of_addresses_that_is_none_is_told(#[case] choice: &str, #[case] says: &str) {
    let text = format!("instancesV2: {{nodeAddresses: {choice}}}");
    let error = CloudConfig::parse(&text).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[test]
fn reads_a_policy() {
    let config = parse(
        "loadBalancer:\n  policy:\n    annotations:\n      allow: [\"metallb.io/*\"]\n      deny: [a]\n\
         \x20     values:\n        metallb.io/address-pool: [public]\n      defaults: {b: c}\n      overrides: {d: e}\n\
         \x20   externalIPs: []\n    loadBalancerIPs: [192.0.2.0/24]\n    maxLoadBalancers: 3\n\
         \x20   maxPorts: 40\n    maxSourceRanges: 50\n    denyFields: [appProtocol, sessionAffinity]\n",
    );
    let policy = config.load_balancer.policy;
    let one = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let annotations = AnnotationPolicy {
        allow: Some(vec![KeyPattern::Prefix("metallb.io/".to_owned())]),
        deny: vec![KeyPattern::Exact("a".to_owned())],
        values: [("metallb.io/address-pool".to_owned(), Choice::new(vec!["public".to_owned()]))].into(),
        defaults: one("b", "c"),
        overrides: one("d", "e"),
    };
    assert_eq!(policy.annotations, annotations);
    assert_eq!(policy.external_ips, Some(Networks::default()), "empty is not absent");
    assert_eq!(policy.load_balancer_ips, Some(Networks::parse(&["192.0.2.0/24".to_owned()]).unwrap()));
    assert_eq!(policy.max_load_balancers, Some(3));
    assert_eq!((policy.max_ports, policy.max_source_ranges), (Some(40), Some(50)));
    assert_eq!(policy.deny_fields, [policy::Field::AppProtocol, policy::Field::SessionAffinity].into());
}

#[rstest]
#[case("{externalIPs: none}", "loadBalancer.policy.externalIPs of the cloud-config must be a list of texts")]
#[case("{externalIPs: [lan]}", "loadBalancer.policy.externalIPs of the cloud-config: \"lan\" is no network")]
#[case(
    "{maxLoadBalancers: many}",
    "loadBalancer.policy.maxLoadBalancers of the cloud-config must be a whole"
)]
#[case("{maxPorts: 1.5}", "loadBalancer.policy.maxPorts of the cloud-config must be a whole")]
#[case("{denyFields: [ports]}", "loadBalancer.policy.denyFields of the cloud-config: \"ports\" is no field")]
#[case("{maxLoadBalancers: -1}", "loadBalancer.policy.maxLoadBalancers")]
#[case(
    "{annotations: {allow: [\"a*b\"]}}",
    "loadBalancer.policy.annotations.allow of the cloud-config: \"a*b\""
)]
#[case(
    "{annotations: {values: {a: b}}}",
    "loadBalancer.policy.annotations.values.a of the cloud-config must be"
)]
#[case("{annotations: {defaults: {a: [1]}}}", "loadBalancer.policy.annotations.defaults.a")]
#[case("restrictive", "loadBalancer.policy of the cloud-config must be a map of keys")]
fn a_policy_that_is_none_ends_the_program(#[case] policy: &str, #[case] says: &str) {
    let text = format!("loadBalancer: {{policy: {policy}}}");
    let error = CloudConfig::parse(&text).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[test]
fn a_misspelt_rule_shows() {
    let text = "loadBalancer: {policy: {externalIps: [], annotations: {allowed: []}}}";
    let (_, mut unknown) = CloudConfig::parse(text).unwrap();
    unknown.sort();
    assert_eq!(unknown, ["loadBalancer.policy.annotations.allowed", "loadBalancer.policy.externalIps"]);
}

#[rstest]
#[case("{}", Some(3600))]
#[case("{sweepInterval: 60}", Some(60))]
#[case("{sweepInterval: 0}", None)]
fn left_overs_are_looked_for_hourly_or_as_told(#[case] section: &str, #[case] seconds: Option<u64>) {
    let config = parse(&format!("loadBalancer: {section}"));
    assert_eq!(config.load_balancer.sweep_interval, seconds.map(Duration::from_secs));
}

#[test]
fn reads_the_owner_of_all_infra_services() {
    let config = parse("loadBalancer: {owner: {apiVersion: v1, kind: ConfigMap, name: guest}}");
    let owner = OwnerChoice { api_version: "v1".into(), kind: "ConfigMap".into(), name: "guest".into() };
    assert_eq!(config.load_balancer.owner, Some(owner));
    let missing = CloudConfig::parse("loadBalancer: {owner: {apiVersion: v1, kind: ConfigMap}}");
    assert_eq!(missing.unwrap_err().to_string(), "loadBalancer.owner.name of the cloud-config is missing");
}

#[rstest]
#[case("{}", Some(100), Some(100), Some(65_536))]
#[case("{limits: }", Some(100), Some(100), Some(65_536))]
#[case("{limits: {ports: 5, sourceRanges: 0}}", Some(5), None, Some(65_536))]
#[case("{limits: {ports: 0, sourceRanges: 100000, annotationBytes: 0}}", None, Some(100_000), None)]
fn a_service_has_limits_unless_they_are_zero(
    #[case] section: &str,
    #[case] ports: Option<usize>,
    #[case] source_ranges: Option<usize>,
    #[case] annotation_bytes: Option<usize>,
) {
    let limits = parse(&format!("loadBalancer: {section}")).load_balancer.limits;
    assert_eq!(limits, Limits { ports, source_ranges, annotation_bytes });
}

#[rstest]
#[case("{ports: -1}", "loadBalancer.limits.ports of the cloud-config must be a whole number, 0 for no limit")]
#[case("{sourceRanges: many}", "loadBalancer.limits.sourceRanges of the cloud-config must be")]
#[case("{annotationBytes: [1]}", "loadBalancer.limits.annotationBytes of the cloud-config must be")]
#[case("100", "loadBalancer.limits of the cloud-config must be a map of keys")]
fn a_limit_that_is_none_ends_the_program(#[case] limits: &str, #[case] says: &str) {
    let error = CloudConfig::parse(&format!("loadBalancer: {{limits: {limits}}}")).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[test]
fn a_misspelt_limit_shows() {
    let (_, unknown) = CloudConfig::parse("loadBalancer: {limits: {maxPorts: 3}}").unwrap();
    assert_eq!(unknown, ["loadBalancer.limits.maxPorts"]);
}
