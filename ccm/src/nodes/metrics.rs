//! The framework's metrics of Nodes, under its names and with its bounds (k8s.io/cloud-provider,
//! `controllers/node/metrics.go`).

use prometheus_client::{
    metrics::{
        counter::Counter,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Bounds of the two histograms: 1 s to 1024 s.
const FIRST_BOUND: f64 = 1.0;
const GROWTH: f64 = 4.0;
const BOUNDS: u16 = 6;

/// Metrics of the Node controllers.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    taint_removal_delay: Histogram,
    initial_sync_delay: Histogram,
    deleted: Counter,
}

impl Default for NodeMetrics {
    fn default() -> Self {
        let histogram = || Histogram::new(exponential_buckets(FIRST_BOUND, GROWTH, BOUNDS));
        Self {
            taint_removal_delay: histogram(),
            initial_sync_delay: histogram(),
            deleted: Counter::default(),
        }
    }
}

impl NodeMetrics {
    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "node_controller_cloud_provider_taint_removal_delay",
            "Time from a Node's creation until its uninitialized taint was removed",
            Unit::Seconds,
            self.taint_removal_delay.clone(),
        );
        registry.register_with_unit(
            "node_controller_initial_node_sync_delay",
            "Time from a Node's creation until it was initialised",
            Unit::Seconds,
            self.initial_sync_delay.clone(),
        );
        registry.register(
            "kubevirt_ccm_nodes_deleted",
            "Nodes deleted because their VM is gone",
            self.deleted.clone(),
        );
    }

    /// Records that a Node was initialised this many seconds after it was created.
    pub(crate) fn initialised(&self, seconds: f64) {
        self.taint_removal_delay.observe(seconds);
        self.initial_sync_delay.observe(seconds);
    }

    /// Counts a deleted Node.
    pub(crate) fn deleted(&self) {
        self.deleted.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_frameworks() {
        let (mut registry, metrics) = (Registry::default(), NodeMetrics::default());
        metrics.register(&mut registry);
        metrics.initialised(2.0);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for name in ["cloud_provider_taint_removal_delay_seconds", "initial_node_sync_delay_seconds"] {
            let bucket =
                |bound: &str, count: u8| format!("node_controller_{name}_bucket{{le=\"{bound}\"}} {count}\n");
            for line in [bucket("1.0", 0), bucket("4.0", 1), bucket("1024.0", 1)] {
                assert!(text.contains(&line), "{line} in {text}");
            }
        }
    }
}
