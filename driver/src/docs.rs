//! The test that `docs/reference/flags.md` and `docs/reference/metrics.md` list what the program accepts and registers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use docs_pages::{Metric, compare, exposition, flags_table, metrics, metrics_table, sample_name};
use prometheus_client::registry::Registry;
use serving::{ProcessMetrics, RpcLayer, Tasks};
use tempfile::TempDir;
use tonic::body::Body;
use tower::{Layer, ServiceExt};

use crate::flags::Flags;
use crate::roles::{Roles, VERSION};
use crate::{METRICS_PREFIX, methods};

/// The crate whose test this is.
const PACKAGE: &str = "driver";

const FLAGS_HEAD: &str = "# Flags of kubevirt-csi-driver

<!-- Written by `UPDATE_DOCS=1 cargo test -p driver`; a test compares it. -->

Each flag may be written with one dash or two, and its value after `=` or, unless it is a BOOL, as the next argument.
`--flag` alone means true for a BOOL. klog's other flags (`--logtostderr`, `--vmodule` and so on) are accepted without effect.
Environment: `RUST_LOG` (filter directives such as `info,controller=debug`) overrides `--v`.

";

const METRICS_HEAD: &str = "# Metrics of kubevirt-csi-driver

<!-- Written by `UPDATE_DOCS=1 cargo test -p driver`; a test compares it. -->

At `/metrics` of `--http-endpoint`, in the OpenMetrics text format, or in Prometheus' format 0.0.4 for a client that takes only
that. The table has the names of the samples; those of a histogram continue with `_bucket`, `_sum` and `_count`. No label
carries the name of an object. `controller` metrics are shown by the controller role, `node` metrics by the node role, all
others by both.

";

const KUBECONFIG: &str = "apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: u, user: {token: none}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
";

/// A driver of both roles, whose clusters do not answer, and the directory with its kubeconfig, which it may read again.
pub(crate) async fn both_roles(registry: &mut Registry) -> (Roles, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(&kubeconfig, KUBECONFIG).expect("writes");
    let flags = Flags::parse_from([
        "driver".to_owned(),
        "--infra-cluster-namespace=hcp".to_owned(),
        "--infra-cluster-labels=a=b".to_owned(),
        "--node-name=worker-1".to_owned(),
        format!("--infra-cluster-kubeconfig={}", kubeconfig.display()),
        format!("--tenant-cluster-kubeconfig={}", kubeconfig.display()),
    ]);
    (Roles::new(&flags, registry, &Tasks::default()).await.expect("starts"), directory)
}

/// The metrics of a process of both roles that has made a call and answered one.
async fn shown() -> String {
    let mut registry = Registry::default();
    ProcessMetrics::register(&mut registry, METRICS_PREFIX, VERSION);
    let layer = RpcLayer::new(registry.sub_registry_with_prefix(METRICS_PREFIX), methods::method);
    let (roles, _directory) = both_roles(&mut registry).await;
    let request = http::Request::post("/csi.v1.Identity/Probe").body(Body::empty()).expect("a request");
    let answer = layer.layer(roles.routes).oneshot(request).await.expect("is answered");
    drop(answer);
    // A separate task reads our rights at the start.
    let called = async {
        loop {
            let text = exposition(&registry);
            if text.contains("kubevirt_csi_infra_requests_total{") {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), called).await.expect("the infra cluster is called")
}

/// The values of a label, if they are a closed set.
fn values(metric: &str, label: &str, seen: &BTreeSet<String>) -> String {
    let list =
        |values: BTreeSet<&str>| values.into_iter().map(|value| format!("`{value}`")).collect::<Vec<_>>();
    let values = match (metric, label) {
        (_, "method") => list(methods::names().collect()),
        ("kubevirt_csi_rpcs", "code") => list(serving::rpc::CODE_NAMES.into_iter().collect()),
        (_, "code") => vec!["HTTP status".to_owned(), "`timeout`".to_owned(), "`transport`".to_owned()],
        (_, "verb") => list(infra::REQUIRED_RIGHTS.iter().map(|right| right.verb).collect()),
        (_, "resource") => list(infra::REQUIRED_RIGHTS.iter().map(|right| right.resource).collect()),
        (_, "version") => vec!["the version".to_owned()],
        _ => list(seen.iter().map(String::as_str).collect()),
    };
    values.join(", ")
}

fn page(metrics: &BTreeMap<String, Metric>) -> String {
    let mut page = METRICS_HEAD.to_owned() + &metrics_table(metrics);
    page.push_str("\n## Label values\n\n| metric | label | values |\n|---|---|---|\n");
    for (name, metric) in metrics {
        let sample = sample_name(name, &metric.kind);
        for (label, seen) in &metric.labels {
            let values = values(name, label, seen);
            writeln!(page, "| `{sample}` | `{label}` | {values} |").expect("writes to a String");
        }
    }
    page
}

#[test]
fn the_page_of_flags_is_true() {
    compare("flags.md", &(FLAGS_HEAD.to_owned() + &flags_table(&Flags::command())), PACKAGE);
}

#[tokio::test]
async fn the_page_of_metrics_is_true() {
    compare("metrics.md", &page(&metrics(&shown().await)), PACKAGE);
}
