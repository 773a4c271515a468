//! The metrics of the service controller: the framework's names, which dashboards use, and ours.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::repairs::Contested;

/// Bounds of the time to an address, in seconds: from an address that is there at once to that of a cloud's load
/// balancer.
const ADDRESS_BOUNDS: [f64; 11] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 180.0, 300.0];
/// Bounds of the two durations for a change of the Nodes: 1 s to 16384 s (k8s.io/cloud-provider,
/// `controllers/service/metrics.go`).
const FIRST_BOUND: f64 = 1.0;
const GROWTH: f64 = 2.0;
const BOUNDS: u16 = 15;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// The metrics of the service controller. Clones share them.
#[derive(Clone, Debug)]
pub struct ServiceMetrics {
    syncs: Counter,
    to_address: Histogram,
    refused: Family<ReasonLabels, Counter>,
    waiting: Gauge,
    node_sync_errors: Counter,
    node_sync: Histogram,
    host_update: Histogram,
    left_overs: Counter,
    /// Repairs of what another program writes too.
    pub contested: Contested,
}

impl Default for ServiceMetrics {
    fn default() -> Self {
        Self {
            syncs: Counter::default(),
            to_address: Histogram::new(ADDRESS_BOUNDS),
            refused: Family::default(),
            waiting: Gauge::default(),
            node_sync_errors: Counter::default(),
            node_sync: Histogram::new(exponential_buckets(FIRST_BOUND, GROWTH, BOUNDS)),
            host_update: Histogram::new(exponential_buckets(FIRST_BOUND, GROWTH, BOUNDS)),
            left_overs: Counter::default(),
            contested: Contested::default(),
        }
    }
}

impl ServiceMetrics {
    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        self.contested.register(registry);
        registry.register(
            "service_controller_loadbalancer_sync",
            "Passes of the service controller that changed a load balancer",
            self.syncs.clone(),
        );
        registry.register_with_unit(
            "kubevirt_ccm_time_to_address",
            "Time from the first sight of a Service without an address to the address in its status",
            Unit::Seconds,
            self.to_address.clone(),
        );
        registry.register(
            "kubevirt_ccm_refused",
            "Wishes of guest Services that were refused, by reason",
            self.refused.clone(),
        );
        registry.register(
            "kubevirt_ccm_services_without_address",
            "Services that wait for infra to give an address",
            self.waiting.clone(),
        );
        registry.register(
            "service_controller_nodesync_error",
            "Node changes that could not be carried out for at least one Service",
            self.node_sync_errors.clone(),
        );
        registry.register_with_unit(
            "service_controller_nodesync_latency",
            "Time to tell all Services about a change of the Nodes",
            Unit::Seconds,
            self.node_sync.clone(),
        );
        registry.register_with_unit(
            "service_controller_update_loadbalancer_host_latency",
            "Time to tell one Service about a change of the Nodes",
            Unit::Seconds,
            self.host_update.clone(),
        );
        registry.register(
            "kubevirt_ccm_left_overs_deleted",
            "Infra Services deleted because the guest does not have their Service any more",
            self.left_overs.clone(),
        );
    }

    /// Counts a change of a load balancer.
    pub fn synced(&self) {
        self.syncs.inc();
    }

    /// Records that an address reached the guest after this many seconds.
    pub fn address_after(&self, seconds: f64) {
        self.to_address.observe(seconds);
    }

    /// Records that all Services were updated after a change of the Nodes, in this many seconds.
    pub fn nodes_synced(&self, seconds: f64, failed: bool) {
        self.node_sync.observe(seconds);
        if failed {
            self.node_sync_errors.inc();
        }
    }

    /// Records that one Service was updated after such a change.
    pub fn hosts_updated(&self, seconds: f64) {
        self.host_update.observe(seconds);
    }

    /// Counts a deleted left-over.
    pub fn left_over_deleted(&self) {
        self.left_overs.inc();
    }

    /// Counts a refused request of the guest.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Sets how many Services wait for an address.
    pub fn waiting(&self, count: usize) {
        self.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
