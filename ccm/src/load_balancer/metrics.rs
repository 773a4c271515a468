//! What the service controller counts: the framework's names, which dashboards use, and ours.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The framework's name of the service controller's queue.
const QUEUE: &str = "service";
/// Bounds of the time to an address, in seconds: from an address that is there at once to a load balancer of a cloud.
const ADDRESS_BOUNDS: [f64; 11] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 180.0, 300.0];
/// Bounds of the time of one pass, in seconds (client-go: powers of ten from 10 ns; ours begin where calls do).
const WORK_BOUNDS: [f64; 7] = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 30.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabels {
    name: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// The metrics of the service controller. Clones share them.
#[derive(Clone, Debug)]
pub struct ServiceMetrics {
    syncs: Counter,
    adds: Family<QueueLabels, Counter>,
    retries: Family<QueueLabels, Counter>,
    work: Family<QueueLabels, Histogram, fn() -> Histogram>,
    to_address: Histogram,
    refused: Family<ReasonLabels, Counter>,
    waiting: Gauge,
}

impl Default for ServiceMetrics {
    fn default() -> Self {
        Self {
            syncs: Counter::default(),
            adds: Family::default(),
            retries: Family::default(),
            work: Family::new_with_constructor(|| Histogram::new(WORK_BOUNDS)),
            to_address: Histogram::new(ADDRESS_BOUNDS),
            refused: Family::default(),
            waiting: Gauge::default(),
        }
    }
}

impl ServiceMetrics {
    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "service_controller_loadbalancer_sync",
            "Passes of the service controller that changed a load balancer",
            self.syncs.clone(),
        );
        registry.register("workqueue_adds", "Passes of a controller, by queue", self.adds.clone());
        registry.register(
            "workqueue_retries",
            "Failed passes, which are repeated, by queue",
            self.retries.clone(),
        );
        registry.register_with_unit(
            "workqueue_work_duration",
            "Time of one pass, by queue",
            Unit::Seconds,
            self.work.clone(),
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
    }

    /// One pass, which took this many seconds, failed or not.
    pub fn pass(&self, seconds: f64, failed: bool) {
        let labels = QueueLabels { name: QUEUE };
        self.adds.get_or_create(&labels).inc();
        self.work.get_or_create(&labels).observe(seconds);
        if failed {
            self.retries.get_or_create(&labels).inc();
        }
    }

    /// A load balancer was changed.
    pub fn synced(&self) {
        self.syncs.inc();
    }

    /// An address reached the guest after this many seconds.
    pub fn address_after(&self, seconds: f64) {
        self.to_address.observe(seconds);
    }

    /// A wish was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// This many Services wait for an address.
    pub fn waiting(&self, count: usize) {
        self.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
