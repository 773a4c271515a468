//! What each crate may depend on (`docs/decisions/0001-rooms.md`), read from the resolved dependency graph.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use rstest::rstest;
use serde_json::Value;

/// Name of a package → names of the packages that it is built from, for the platform on which the tests run.
/// Dependencies of tests are left out: they are not in the program.
fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").expect("cargo sets CARGO for a test");
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("is JSON");

    let list = |value: &Value| value.as_array().expect("a list").clone();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let names: BTreeMap<String, String> = list(&metadata["packages"])
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let in_the_program =
        |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let of = list(&node["deps"]);
        let of = of.iter().filter(|dependency| in_the_program(dependency));
        let of = of.map(|dependency| names[&text(&dependency["pkg"])].clone());
        graph.entry(names[&text(&node["id"])].clone()).or_default().extend(of);
    }
    graph
}

fn reachable(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(package) = open.pop() {
        if seen.insert(package.clone()) {
            open.extend(graph.get(&package).expect("every package is in the graph").iter().cloned());
        }
    }
    seen
}

/// The crates by floor: a crate depends only on crates of the floors below it. (`docs-pages` serves tests.)
const FLOORS: [&[&str]; 5] = [
    &["csi-proto", "kubevirt", "serving"],
    &["cluster", "csi-call"],
    &["secure-serving", "infra"],
    &["controller", "node", "ccm"],
    &["driver"],
];

#[test]
fn no_room_reaches_one_of_its_own_floor_or_above() {
    let graph = graph();
    for (floor, rooms) in FLOORS.iter().enumerate() {
        let above: Vec<&str> = FLOORS[floor..].iter().copied().flatten().copied().collect();
        for room in *rooms {
            let reachable = reachable(&graph, room);
            let reached: Vec<_> =
                above.iter().filter(|other| *other != room && reachable.contains(**other)).collect();
            assert!(reached.is_empty(), "{room} must not depend on {reached:?}");
        }
    }
}

#[rstest]
#[case::node_reaches_no_api_server("node", &["infra", "cluster", "kube", "kube-client", "k8s-openapi"])]
#[case::cluster_knows_no_csi("cluster", &["csi-proto"])]
#[case::infra_knows_no_csi("infra", &["csi-proto"])]
#[case::ccm_knows_no_csi("ccm", &["csi-proto", "infra"])]
#[case::kubevirt_holds_values_only("kubevirt", &["kube", "kube-core", "kube-client", "k8s-openapi", "tokio", "futures", "http"])]
#[case::serving_reaches_no_api_server("serving", &["cluster", "kube", "k8s-openapi"])]
#[case::the_bench_does_not_know_the_fault_proxy("bench", &["fault-proxy"])]
#[case::the_fault_proxy_does_not_know_the_bench("fault-proxy", &["csi-proto", "bench"])]
#[case::secure_serving_knows_no_csi("secure-serving", &["csi-proto", "csi-call", "infra"])]
#[case::csi_call_reaches_no_api_server("csi-call", &["infra", "cluster", "secure-serving", "kube", "k8s-openapi", "controller", "node", "serving"])]
fn a_room_does_not_reach(#[case] room: &str, #[case] forbidden: &[&str]) {
    let reachable = reachable(&graph(), room);
    let reached: Vec<_> = forbidden.iter().filter(|name| reachable.contains(**name)).collect();
    assert!(reached.is_empty(), "{room} must not depend on {reached:?}");
}

/// The bench and its tests see the programs from outside, as clusters and clients do: they share the protocol with them, and no
/// constant or type. So what a test expects does not change with the code that it tests.
#[rstest]
fn the_end_to_end_tests_link_no_product(#[values("bench", "fault-proxy", "e2e")] crate_of_tests: &str) {
    let reachable = reachable(&graph(), crate_of_tests);
    let product = FLOORS.iter().copied().flatten().copied().filter(|name| *name != "csi-proto");
    let reached: Vec<_> = product.filter(|name| reachable.contains(*name)).collect();
    assert!(reached.is_empty(), "{crate_of_tests} must not depend on {reached:?}");
}

#[test]
fn the_graph_is_read_rightly() {
    let reachable = reachable(&graph(), "driver");
    for room in [
        "infra",
        "cluster",
        "kubevirt",
        "serving",
        "csi-call",
        "controller",
        "node",
        "csi-proto",
        "kube",
        "tonic",
    ] {
        assert!(reachable.contains(room), "the driver depends on {room}");
    }
}
