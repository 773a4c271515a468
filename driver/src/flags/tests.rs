//! The command lines of the known manifests, and the mistakes that are refused.

use std::ffi::OsString;
use std::path::Path;

use rstest::rstest;

use serving::go_flags::with_two_dashes;

use super::*;

fn parse(arguments: &[&str]) -> Result<Flags, clap::Error> {
    let arguments = ["kubevirt-csi-driver"].iter().chain(arguments).map(OsString::from);
    Flags::try_parse_from(with_two_dashes(arguments))
}

#[test]
fn the_controller_manifest_of_the_reference_is_understood() {
    let flags = parse(&[
        "--endpoint=unix:///var/lib/csi/sockets/pluginproxy/csi.sock",
        "--infra-cluster-namespace=kvcluster",
        "--infra-cluster-labels=csi-driver/cluster=tenant",
        "--tenant-cluster-kubeconfig=/var/run/secrets/tenantcluster/value",
        "--run-node-service=false",
        "--run-controller-service=true",
        "--v=5",
    ])
    .expect("parses");
    flags.check().expect("is complete");
    assert_eq!(flags.endpoint, Endpoint::Unix("/var/lib/csi/sockets/pluginproxy/csi.sock".into()));
    assert_eq!((flags.run_controller_service, flags.run_node_service), (true, false));
    assert_eq!((flags.volume_prefix.as_str(), flags.verbosity), ("pvc", 5));
    assert_eq!(path(&flags.infra_cluster_kubeconfig), None);
}

#[test]
fn the_node_manifest_of_the_reference_is_understood() {
    let flags = parse(&[
        "--endpoint=unix:/csi/csi.sock",
        "--node-name=worker-1",
        "--run-node-service=true",
        "--run-controller-service=false",
        "--v=5",
    ])
    .expect("parses");
    flags.check().expect("is complete");
    assert_eq!(flags.endpoint, Endpoint::Unix("/csi/csi.sock".into()));
    assert_eq!((flags.run_controller_service, flags.run_node_service), (false, true));
}

/// The arguments of the container `csi-driver` in one of our own manifests, its variables filled in.
fn manifest(path: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    let text = std::fs::read_to_string(path).expect("is there");
    let workload: serde_json::Value = serde_saphyr::from_str(&text).expect("is YAML");
    let containers = workload["spec"]["template"]["spec"]["containers"].as_array().expect("has containers");
    let driver =
        containers.iter().find(|container| container["name"] == "csi-driver").expect("has the driver");
    let values = [
        ("$(CSI_ENDPOINT)", "unix:///var/lib/csi/sockets/pluginproxy/csi.sock"),
        ("$(INFRACLUSTER_NAMESPACE)", "hcp"),
        ("$(INFRACLUSTER_LABELS)", "csi-driver/cluster=tenant"),
        ("$(KUBE_NODE_NAME)", "worker-1"),
    ];
    let filled =
        |text: &str| values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value));
    let arguments = driver["args"].as_array().expect("has args").iter();
    arguments.map(|argument| filled(argument.as_str().expect("is text"))).collect()
}

#[rstest]
#[case("controller-infra/base/deployment.yaml", (true, false))]
#[case("controller-tenant/base/deployment.yaml", (true, false))]
#[case("tenant/base/daemonset.yaml", (false, true))]
fn our_own_manifests_are_understood(#[case] path: &str, #[case] roles: (bool, bool)) {
    let arguments = manifest(path);
    assert!(arguments.iter().all(|argument| !argument.contains("$(")), "{arguments:?}");
    let flags = parse(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).expect("parses");
    flags.check().expect("is complete");
    assert_eq!((flags.run_controller_service, flags.run_node_service), roles);
}

#[test]
fn new_flags_are_off_by_default() {
    let flags = parse(&[]).expect("parses");
    assert!(!flags.allow_format_nonzero);
    assert_eq!(flags.http_endpoint, "");
    assert_eq!(flags.log_format, LogFormat::Text);
}

#[test]
fn go_spellings_and_klog_flags_are_accepted() {
    let flags = parse(&[
        "-endpoint=unix:/x/csi.sock",
        "-node-name",
        "worker-1",
        "-run-controller-service=F",
        "-run-node-service",
        "-v=2",
        "--v",
        "4",
        "--logtostderr",
        "-alsologtostderr=true",
        "-stderrthreshold=INFO",
        "--vmodule",
        "node=5",
    ])
    .expect("parses");
    flags.check().expect("is complete");
    assert_eq!(flags.verbosity, 4, "the last one counts, as in Go");
    assert_eq!((flags.run_controller_service, flags.run_node_service), (false, true));
    assert_eq!(flags.klog.given, ["alsologtostderr", "logtostderr", "stderrthreshold", "vmodule"]);
}

#[rstest]
#[case(&["--run-node-service", "false"])]
#[case(&["--run-node-service=maybe"])]
#[case(&["--endpoint=/csi/csi.sock"])]
#[case(&["--log-format=xml"])]
#[case(&["--v=verbose"])]
#[case(&["--no-such-flag"])]
fn what_is_not_understood_is_refused(#[case] arguments: &[&str]) {
    assert!(parse(arguments).is_err());
}

const CONTROLLER: [&str; 3] =
    ["--run-node-service=false", "--infra-cluster-namespace=hcp", "--infra-cluster-labels=a=b"];

#[rstest]
#[case(&["--run-controller-service=false", "--run-node-service=false"], "no role")]
#[case(&[CONTROLLER[0], CONTROLLER[2]], "--infra-cluster-namespace")]
#[case(&[CONTROLLER[0], CONTROLLER[1]], "--infra-cluster-labels")]
#[case(&[CONTROLLER[0], CONTROLLER[1], CONTROLLER[2], "--volume-prefix="], "--volume-prefix")]
#[case(&["--run-controller-service=false"], "--node-name")]
fn what_a_role_needs_is_named(#[case] arguments: &[&str], #[case] named: &str) {
    let error = parse(arguments).expect("parses").check().expect_err("is incomplete");
    assert!(error.to_string().contains(named), "{error}");
}
