//! `docs/reference/cloud-controller-manager-*.md`: written of what the program accepts and registers, and compared with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use clap::CommandFactory;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::flags::Flags;
use crate::program::every_metric;

/// Set it to write the pages instead of comparing them.
const REWRITE_ENV: &str = "UPDATE_DOCS";
/// A bucket's bound is no label to choose by.
const BUCKET: &str = "le";

const FLAGS_HEAD: &str = "# Flags of kubevirt-cloud-controller-manager

<!-- Written by `UPDATE_DOCS=1 cargo test -p ccm`; a test compares it. -->

Each flag may be written with one dash or two, with `-` or `_` between its words, and its value after `=` or, unless it is a
BOOL, as the next argument. `--flag` alone means true for a BOOL. All other flags of k8s.io/cloud-provider v0.34 are accepted
without effect, and named in the log. Environment: `RUST_LOG` (filter directives such as `info,ccm=debug`) overrides `--v`.

| flag | default | meaning |
|---|---|---|
";

const METRICS_HEAD: &str = "# Metrics of kubevirt-cloud-controller-manager

<!-- Written by `UPDATE_DOCS=1 cargo test -p ccm`; a test compares it. -->

At `/metrics` of `--secure-port`, in the OpenMetrics text format. A counter's samples end in `_total`, a histogram's in
`_bucket`, `_sum` and `_count`. No label carries the name of an object. What does not begin with `kubevirt_ccm` has the name,
labels and bounds that Kubernetes' own programs give it.

The queues of `workqueue_*` are `service` and `node` (the service controller's: Services, and changes of the set of Nodes), `Nodes`
(`cloud-node-controller` and `cloud-node-lifecycle-controller`, which share it) and `kubevirt_eps_controller`; a queue shows as soon as
something was in it. `node-route-controller` does nothing and has none.

| metric | type | labels | meaning |
|---|---|---|---|
";

fn compare(file: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(file);
    if std::env::var_os(REWRITE_ENV).is_some() {
        std::fs::write(&path, wanted).expect("writes the page");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is not up to date; run {REWRITE_ENV}=1 cargo test -p ccm", path.display());
}

#[test]
fn the_page_of_flags_is_true() {
    let mut page = FLAGS_HEAD.to_owned();
    for argument in Flags::command().get_arguments().filter(|argument| !argument.is_hide_set()) {
        let Some(name) = argument.get_long() else { continue };
        let value = argument.get_value_names().into_iter().flatten().map(ToString::to_string);
        let value: Vec<_> = value.collect();
        let default: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = default.join(",");
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        writeln!(page, "| `--{name}={}` | {default} | {help} |", value.join(","))
            .expect("writes to a String");
    }
    compare("cloud-controller-manager-flags.md", &page);
}

#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
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
            let named = metrics.iter_mut().filter(|(name, _)| sample.starts_with(name.as_str()));
            let (_, metric) =
                named.max_by_key(|(name, _)| name.len()).expect("a sample has its metric before it");
            let labels = rest.split_once('}').expect("labels end").0;
            let keys = labels.split("\",").filter_map(|label| label.split_once("=\"")).map(|(key, _)| key);
            metric.labels.extend(keys.filter(|key| *key != BUCKET).map(str::to_owned));
        }
    }
    metrics
}

#[test]
fn the_page_of_metrics_is_true() {
    let (mut registry, mut text) = (Registry::default(), String::new());
    every_metric(&mut registry);
    encode(&mut text, &registry).expect("encodes");
    let mut page = METRICS_HEAD.to_owned();
    for (name, Metric { kind, help, labels }) in read(&text) {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).expect("writes to a String");
    }
    compare("cloud-controller-manager-metrics.md", &page);
}
