//! The command lines of the field, and the mistakes that are refused.

use std::ffi::OsString;

use clap::CommandFactory;
use rstest::rstest;

use serving::go_flags::with_dashes;

use super::*;

fn parse(arguments: &[&str]) -> Result<Flags, clap::Error> {
    let arguments = ["kubevirt-cloud-controller-manager"].iter().chain(arguments).map(OsString::from);
    Flags::try_parse_from(with_dashes(arguments))
}

#[test]
fn clap_finds_the_definition_sound() {
    Flags::command().debug_assert();
}

#[test]
fn the_arguments_of_hypershift_are_understood() {
    let flags = parse(&[
        "--cloud-provider=kubevirt",
        "--cloud-config=/etc/cloud/cloud-config",
        "--kubeconfig=/etc/kubernetes/kubeconfig/kubeconfig",
        "--authentication-skip-lookup",
        "--cluster-name=guest-x7k2p",
        "--tls-min-version=VersionTLS12",
        "--tls-cipher-suites=TLS_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,\
         TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    ])
    .unwrap();
    assert_eq!(flags.cloud_config, PathBuf::from("/etc/cloud/cloud-config"));
    assert_eq!(path(&flags.kubeconfig), Some(PathBuf::from("/etc/kubernetes/kubeconfig/kubeconfig")));
    assert!(flags.serving.authentication_skip_lookup && flags.leader.leader_elect);
    assert_eq!(flags.cluster_name.as_str(), "guest-x7k2p");
    assert_eq!(flags.serving.tls_cipher_suites.len(), 3);
    assert_eq!((flags.serving.secure_port, flags.verbosity), (10258, 0));
    assert!(flags.ignored.given.is_empty());
}

#[test]
fn the_arguments_of_the_reference_and_of_its_templates_are_understood() {
    let flags = parse(&[
        "--cloud-provider=kubevirt",
        "--cloud-config=/etc/cloud/cloud-config",
        "--kubeconfig=/etc/kubernetes/kubeconfig/value",
        "--authentication-skip-lookup=true",
        "--cluster-name=\"guest\"",
        "--allow-untagged-cloud",
        "--leader_elect=false",
        "--controllers=*,-service-lb-controller",
        "--use-service-account-credentials=true",
        "--kube-api-qps",
        "100",
        "--min-resync-period=12h0m0s",
        "--feature-gates=A=true,B=false",
        "-v=4",
    ])
    .unwrap();
    assert_eq!((flags.cluster_name.as_str(), flags.verbosity), ("guest", 4));
    assert!(!flags.leader.leader_elect && !flags.controllers.runs(Controller::Service));
    let ignored = &flags.ignored.given;
    for name in ["allow-untagged-cloud", "use-service-account-credentials", "feature-gates"] {
        assert!(ignored.contains(&name), "{name} in {ignored:?}");
    }
    assert_eq!(ignored.len(), 4);
    assert_eq!(flags.write_rate(), WriteRate::of_flags(100.0, 200));
}

#[rstest]
#[case(&[], WriteRate::default())]
#[case(&["--kube-api-qps=20", "--kube-api-burst", "30"], WriteRate::of_flags(20.0, 30))]
#[case(&["--kube-api-qps=-1"], WriteRate::of_flags(-1.0, 200))]
#[case(&["--kube-api-qps=0.5", "--kube-api-burst=0"], WriteRate::of_flags(0.5, 200))]
fn the_rate_of_changes_is_read(#[case] arguments: &[&str], #[case] rate: WriteRate) {
    let flags = parse(&[&["--cloud-config=/c"], arguments].concat()).unwrap();
    assert_eq!(flags.write_rate(), rate);
}

#[rstest]
#[case(&["-v", "2"], 2)]
#[case(&["-v=3"], 3)]
#[case(&["-v4"], 4)]
#[case(&["--v=5"], 5)]
#[case(&["--v", "6", "--v=7"], 7)]
fn klogs_verbosity_is_read_in_each_spelling(#[case] arguments: &[&str], #[case] wanted: u8) {
    let arguments: Vec<_> = ["--cloud-config=x"].iter().chain(arguments).copied().collect();
    assert_eq!(parse(&arguments).unwrap().verbosity, wanted);
}

#[rstest]
#[case("15s", 15_000)]
#[case("1m30s", 90_000)]
#[case("12h0m0s", 43_200_000)]
#[case("300ms", 300)]
#[case("1.5s", 1500)]
#[case("0", 0)]
fn durations_are_read_as_go_writes_them(#[case] text: &str, #[case] milliseconds: u64) {
    let flags = parse(&["--cloud-config=x", &format!("--leader-elect-lease-duration={text}")]).unwrap();
    assert_eq!(flags.leader.leader_elect_lease_duration, Duration::from_millis(milliseconds));
}

#[rstest]
#[case(&[], "--cloud-config")]
#[case(&["--cloud-config=x", "--cloud-provider=aws"], "aws")]
#[case(&["--cloud-config=x", "--controllers=nodeipam"], "nodeipam")]
#[case(&["--cloud-config=x", "--cluster-name=a b"], "label value")]
#[case(&["--cloud-config=x", "--leader-elect=maybe"], "maybe")]
#[case(&["--cloud-config=x", "--leader-elect-retry-period=soon"], "no duration")]
#[case(&["--cloud-config=x", "--leader-elect-resource-lock=configmaps"], "configmaps")]
#[case(&["--cloud-config=x", "--tls-cert-file=y"], "--tls-private-key-file")]
#[case(&["--cloud-config=x", "--no-such-flag"], "--no-such-flag")]
fn a_mistake_is_refused_and_named(#[case] arguments: &[&str], #[case] named: &str) {
    let error = parse(arguments).expect_err("is refused").to_string();
    assert!(error.contains(named), "{error}");
}

#[test]
fn every_flag_without_effect_is_accepted_and_named() {
    for argument in Flags::command().get_arguments().filter(|argument| argument.is_hide_set()) {
        let name = argument.get_long().unwrap();
        let flags = parse(&["--cloud-config=x", &format!("--{name}=1")]).unwrap();
        assert_eq!(flags.ignored.given, [name]);
    }
}

#[test]
fn who_is_believed_by_a_certificate_is_read() {
    let defaults = parse(&["--cloud-config=x"]).unwrap().serving;
    assert_eq!(names(&defaults.requestheader_username_headers).unwrap(), ["x-remote-user"]);
    assert_eq!(names(&defaults.requestheader_group_headers).unwrap(), ["x-remote-group"]);
    assert_eq!(names(&defaults.requestheader_extra_headers_prefix).unwrap(), ["x-remote-extra-"]);
    assert!(names(&defaults.requestheader_uid_headers).unwrap().is_empty());
    assert!(names(&defaults.requestheader_allowed_names).unwrap().is_empty());
    let given = parse(&[
        "--cloud-config=x",
        "--client-ca-file=/ca",
        "--requestheader-client-ca-file=/proxies",
        "--requestheader-allowed-names=front-proxy-client, other",
        "--requestheader-username-headers=X-Remote-User",
        "--authentication-tolerate-lookup-failure",
    ])
    .unwrap();
    assert!(given.ignored.given.is_empty() && given.serving.authentication_tolerate_lookup_failure);
    let given = given.serving;
    assert_eq!(
        (given.client_ca_file.as_str(), given.requestheader_client_ca_file.as_str()),
        ("/ca", "/proxies")
    );
    assert_eq!(names(&given.requestheader_allowed_names).unwrap(), ["front-proxy-client", "other"]);
    assert_eq!(names(&given.requestheader_username_headers).unwrap(), ["X-Remote-User"]);
    // Two empty names are no empty list, which would allow everybody.
    let empty = parse(&["--cloud-config=x", "--requestheader-allowed-names=,"]).unwrap().serving;
    assert!(names(&empty.requestheader_allowed_names).is_err());
}
