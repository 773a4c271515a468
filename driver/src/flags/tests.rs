//! The command lines of the known manifests, the mistakes that are refused, and `docs/reference/flags.md`.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

use clap::CommandFactory;
use rstest::rstest;

use super::*;
use crate::go_flags::with_two_dashes;

/// Set it to write `docs/reference/flags.md` instead of comparing it.
const REWRITE_ENV: &str = "UPDATE_DOCS";

const HEAD: &str = "# Flags of kubevirt-csi-driver

<!-- Written by `UPDATE_DOCS=1 cargo test -p driver`; a test compares it. -->

Each flag may be written with one dash or two, and its value after `=` or, unless it is a BOOL, as the next argument.
`--flag` alone means true for a BOOL. klog's other flags (`--logtostderr`, `--vmodule` and so on) are accepted without effect.
Environment: `RUST_LOG` (filter directives such as `info,controller=debug`) overrides `--v`.

| flag | default | meaning |
|---|---|---|
";

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

#[test]
fn the_reference_page_is_true() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/flags.md");
    let wanted = reference_page();
    if std::env::var_os(REWRITE_ENV).is_some() {
        std::fs::write(&page, &wanted).expect("writes the page");
    }
    let found = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not up to date; run {REWRITE_ENV}=1 cargo test -p driver",
        page.display()
    );
}

fn reference_page() -> String {
    let mut page = HEAD.to_owned();
    for arg in Flags::command().get_arguments().filter(|arg| !arg.is_hide_set()) {
        let name = arg.get_long().expect("each flag has a long name");
        let value = arg.get_value_names().and_then(<[_]>::first).expect("each flag takes a value");
        let default =
            arg.get_default_values().first().map(|value| value.to_string_lossy()).unwrap_or_default();
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let env = arg.get_env().map(|env| format!(". Environment: `{}`", env.to_string_lossy()));
        writeln!(page, "| `--{name}={value}` | {default} | {help}{} |", env.unwrap_or_default())
            .expect("writes to a String");
    }
    page
}
