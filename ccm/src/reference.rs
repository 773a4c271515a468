//! `docs/reference/cloud-controller-manager-*.md`: written of what the program accepts and registers, and compared with it.

use std::fmt::Write;

use clap::CommandFactory;
use docs_pages::{Metric, compare, metrics};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::flags::Flags;
use crate::program::every_metric;

/// Whose pages these are.
const PACKAGE: &str = "ccm";

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
    compare("cloud-controller-manager-flags.md", &page, PACKAGE);
}

#[test]
fn the_page_of_metrics_is_true() {
    let (mut registry, mut text) = (Registry::default(), String::new());
    every_metric(&mut registry);
    encode(&mut text, &registry).expect("encodes");
    let mut page = METRICS_HEAD.to_owned();
    for (name, Metric { kind, help, labels }) in metrics(&text) {
        let labels: Vec<_> = labels.keys().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).expect("writes to a String");
    }
    compare("cloud-controller-manager-metrics.md", &page, PACKAGE);
}
