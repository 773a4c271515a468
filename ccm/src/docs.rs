//! Holds `docs/reference/cloud-controller-manager-*.md` to what the program accepts and registers.

use clap::CommandFactory;
use docs_pages::{compare, exposition, flags_table, metrics, metrics_table};
use prometheus_client::registry::Registry;

use crate::flags::Flags;
use crate::program::every_metric;

/// The crate that the pages describe.
const PACKAGE: &str = "ccm";

const FLAGS_HEAD: &str = "# Flags of kubevirt-cloud-controller-manager

<!-- Written by `UPDATE_DOCS=1 cargo test -p ccm`; a test compares it. -->

Each flag is written with two dashes (`-v` may have one), with `-` or `_` between its words, and its value after `=` or, unless
it is a BOOL, as the next argument. `--flag` alone means true for a BOOL. All other flags of k8s.io/cloud-provider v0.34 are accepted
without effect, and named in the log. Environment: `RUST_LOG` (filter directives such as `info,ccm=debug`) overrides `--v`.

";

const METRICS_HEAD: &str = "# Metrics of kubevirt-cloud-controller-manager

<!-- Written by `UPDATE_DOCS=1 cargo test -p ccm`; a test compares it. -->

At `/metrics` of `--secure-port`, in the OpenMetrics text format, or in Prometheus' format 0.0.4 for a client that takes only
that. The table has the names of the samples; those of a histogram continue with `_bucket`, `_sum` and `_count`. No label
carries the name of an object. What does not begin with `kubevirt_ccm` has the name, labels and bounds that Kubernetes' own
programs give it.

The queues of `workqueue_*` are `service` and `node` (the service controller's: Services, and changes of the set of Nodes), `Nodes`
(`cloud-node-controller` and `cloud-node-lifecycle-controller`, which share it) and `kubevirt_eps_controller`; a queue shows as soon as
something was in it. `node-route-controller` does nothing and has none.

";

#[test]
fn the_page_of_flags_is_true() {
    let page = FLAGS_HEAD.to_owned() + &flags_table(&Flags::command());
    compare("cloud-controller-manager-flags.md", &page, PACKAGE);
}

#[test]
fn the_page_of_metrics_is_true() {
    let mut registry = Registry::default();
    every_metric(&mut registry);
    let page = METRICS_HEAD.to_owned() + &metrics_table(&metrics(&exposition(&registry)));
    compare("cloud-controller-manager-metrics.md", &page, PACKAGE);
}
