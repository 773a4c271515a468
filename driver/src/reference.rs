//! `docs/reference/metrics.md`: written of what the program registers, and compared with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serving::{ProcessMetrics, RpcLayer};
use tonic::body::Body;
use tower::{Layer, ServiceExt};

use crate::flags::Flags;
use crate::roles::{Roles, VERSION};
use crate::{METRICS_PREFIX, subject};

/// Set it to write the page instead of comparing it.
const REWRITE_ENV: &str = "UPDATE_DOCS";
/// A bucket's bound is no label to choose by.
const BUCKET: &str = "le";

const HEAD: &str = "# Metrics of kubevirt-csi-driver

<!-- Written by `UPDATE_DOCS=1 cargo test -p driver`; a test compares it. -->

At `/metrics` of `--http-endpoint`, in the OpenMetrics text format. A counter's samples end in `_total`, a histogram's in
`_bucket`, `_sum` and `_count`. No label carries the name of an object. `controller` metrics are shown by the controller
role, `node` metrics by the node role, all others by both.

| metric | type | labels | meaning |
|---|---|---|---|
";

const KUBECONFIG: &str = "apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: u, user: {token: none}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
";

#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// What a process of both roles shows once it has made a call and answered one.
async fn exposition() -> String {
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
    let mut registry = Registry::default();
    ProcessMetrics::register(&mut registry, METRICS_PREFIX, VERSION);
    let layer = RpcLayer::new(registry.sub_registry_with_prefix(METRICS_PREFIX), subject::subject);
    let roles = Roles::new(&flags, &mut registry).await.expect("starts");
    let request = http::Request::post("/csi.v1.Identity/Probe").body(Body::empty()).expect("a request");
    let answer = layer.layer(roles.routes).oneshot(request).await.expect("is answered");
    drop(answer);
    // Asked at the start, in a task of its own: which rights do we have?
    let called = async {
        loop {
            let mut text = String::new();
            encode(&mut text, &registry).expect("encodes");
            if text.contains("kubevirt_csi_infra_requests_total{") {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), called).await.expect("the infra cluster is called")
}

fn read(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            metrics.entry(name.to_owned()).or_default().help = help.trim_end_matches('.').to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            metrics.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some((sample, rest)) = line.split_once('{') {
            let name =
                metrics.keys().filter(|name| sample.starts_with(name.as_str())).max_by_key(|name| name.len());
            let name = name.expect("a sample has its metric before it").clone();
            let labels = rest.split_once('}').expect("labels end").0;
            for label in labels.split("\",").filter(|label| !label.is_empty()) {
                let (key, value) = label.split_once("=\"").expect("a label has a value");
                if key != BUCKET {
                    let labels = &mut metrics.get_mut(&name).expect("is there").labels;
                    labels.entry(key.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
                }
            }
        }
    }
    metrics
}

/// The values of a label, where they are a closed set.
fn values(metric: &str, label: &str, seen: &BTreeSet<String>) -> String {
    let list =
        |values: BTreeSet<&str>| values.into_iter().map(|value| format!("`{value}`")).collect::<Vec<_>>();
    let values = match (metric, label) {
        (_, "method") => list(subject::methods().collect()),
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
    let mut page = HEAD.to_owned();
    for (name, Metric { kind, help, labels }) in metrics {
        let keys: Vec<_> = labels.keys().map(|key| format!("`{key}`")).collect();
        writeln!(page, "| `{name}` | {kind} | {} | {help} |", keys.join(", ")).expect("writes to a String");
    }
    page.push_str("\n## Label values\n\n| metric | label | values |\n|---|---|---|\n");
    for (name, metric) in metrics {
        for (label, seen) in &metric.labels {
            let values = values(name, label, seen);
            writeln!(page, "| `{name}` | `{label}` | {values} |").expect("writes to a String");
        }
    }
    page
}

#[tokio::test]
async fn the_page_of_metrics_is_true() {
    let wanted = page(&read(&exposition().await));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    if std::env::var_os(REWRITE_ENV).is_some() {
        fs::write(&path, &wanted).expect("writes the page");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not up to date; run {REWRITE_ENV}=1 cargo test -p driver",
        path.display()
    );
}
