//! What each room may reach (design law 4, decision 1), read from the resolved dependency graph.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use rstest::rstest;
use serde_json::Value;

/// Package name → names of the packages it is built from, for the platform that the tests run on. Dependencies of
/// tests are left out: they are not in the program.
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

#[rstest]
#[case::node_reaches_no_api_server("node", &["infra", "tenant", "kube", "kube-client", "k8s-openapi", "controller"])]
#[case::controller_reaches_infra_only("controller", &["tenant", "node"])]
#[case::infra_is_not_tenant("infra", &["tenant", "controller", "node"])]
#[case::tenant_is_not_infra("tenant", &["infra", "controller", "node"])]
#[case::access_knows_no_cluster("cluster", &["infra", "tenant", "controller", "node", "csi-proto"])]
#[case::csi_call_reaches_no_api_server("csi-call", &["infra", "tenant", "cluster", "kube", "k8s-openapi", "controller", "node", "serving"])]
#[case::serving_knows_no_domain("serving", &["infra", "tenant", "controller", "node", "csi-proto", "kube"])]
#[case::the_bench_links_no_product("bench", &["infra", "tenant", "cluster", "controller", "node", "driver", "ccm", "fault-proxy"])]
#[case::the_fault_proxy_links_no_product("fault-proxy", &["infra", "tenant", "cluster", "controller", "node", "driver", "ccm", "bench"])]
fn a_room_does_not_reach(#[case] room: &str, #[case] forbidden: &[&str]) {
    let reachable = reachable(&graph(), room);
    let reached: Vec<_> = forbidden.iter().filter(|name| reachable.contains(**name)).collect();
    assert!(reached.is_empty(), "{room} must not depend on {reached:?}");
}

#[test]
fn the_graph_is_read_rightly() {
    let reachable = reachable(&graph(), "driver");
    for room in ["infra", "tenant", "serving", "csi-call", "controller", "node", "csi-proto", "kube", "tonic"]
    {
        assert!(reachable.contains(room), "the driver depends on {room}");
    }
}
