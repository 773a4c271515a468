//! The metrics of a controller's queue, under the names of client-go (`k8s.io/component-base`, `workqueue/metrics.go`).
//!
//! Adding an item that waits already counts as one item. An item that comes back by its timer counts as added when the
//! timer expires, and as having waited for no time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

/// Bounds of both times: 10 ns to 10 s (client-go).
const FIRST_BOUND: f64 = 10e-9;
const GROWTH: f64 = 10.0;
const BOUNDS: u16 = 10;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabels {
    name: &'static str,
}

type Times = Family<QueueLabels, Histogram, fn() -> Histogram>;

/// The metrics of all queues. Clones share them.
#[derive(Clone, Debug)]
pub struct QueueMetrics {
    depth: Family<QueueLabels, Gauge>,
    adds: Family<QueueLabels, Counter>,
    retries: Family<QueueLabels, Counter>,
    waited: Times,
    worked: Times,
}

/// One queue. An item is named by the namespace and name of an object. Clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    labels: QueueLabels,
    metrics: QueueMetrics,
    waiting: Arc<Mutex<HashMap<Item, Instant>>>,
}

/// Namespace and name.
pub type Item = (String, String);

impl Default for QueueMetrics {
    fn default() -> Self {
        let times = || Family::new_with_constructor(histogram as fn() -> Histogram);
        Self {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            waited: times(),
            worked: times(),
        }
    }
}

fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(FIRST_BOUND, GROWTH, BOUNDS))
}

impl QueueMetrics {
    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "workqueue_depth",
            "Objects that wait for a reconcile, by queue",
            self.depth.clone(),
        );
        registry.register(
            "workqueue_adds",
            "Objects that were put into a queue, by queue",
            self.adds.clone(),
        );
        registry.register(
            "workqueue_retries",
            "Failed passes, which are repeated, by queue",
            self.retries.clone(),
        );
        registry.register_with_unit(
            "workqueue_queue_duration",
            "Time that an object waited for its reconcile, by queue",
            Unit::Seconds,
            self.waited.clone(),
        );
        registry.register_with_unit(
            "workqueue_work_duration",
            "Time of one pass, by queue",
            Unit::Seconds,
            self.worked.clone(),
        );
    }

    /// A new, empty queue of this name. Its metrics are there from now on, as client-go's are, also while nothing is in
    /// it. Only one queue of a name may be in use at a time.
    pub fn queue(&self, name: &'static str) -> Queue {
        let labels = QueueLabels { name };
        self.depth.get_or_create(&labels).set(0);
        drop((self.adds.get_or_create(&labels), self.retries.get_or_create(&labels)));
        drop((self.waited.get_or_create(&labels), self.worked.get_or_create(&labels)));
        Queue { labels, metrics: self.clone(), waiting: Arc::default() }
    }
}

impl Queue {
    /// An item was added.
    pub fn added(&self, item: Item) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let std::collections::hash_map::Entry::Vacant(place) = waiting.entry(item) {
            place.insert(Instant::now());
            self.metrics.adds.get_or_create(&self.labels).inc();
            self.metrics.depth.get_or_create(&self.labels).inc();
        }
    }

    /// The reconcile of an item starts.
    pub fn taken(&self, item: &Item) {
        let since = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(item);
        let waited = if let Some(since) = since {
            self.metrics.depth.get_or_create(&self.labels).dec();
            since.elapsed().as_secs_f64()
        } else {
            self.metrics.adds.get_or_create(&self.labels).inc();
            0.0
        };
        self.metrics.waited.get_or_create(&self.labels).observe(waited);
    }

    /// An item was removed before its reconcile.
    pub fn dropped(&self, item: &Item) {
        if self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(item).is_some() {
            self.metrics.depth.get_or_create(&self.labels).dec();
        }
    }

    /// A reconcile took this many seconds; if it failed, it is repeated.
    pub fn done(&self, seconds: f64, failed: bool) {
        self.metrics.worked.get_or_create(&self.labels).observe(seconds);
        if failed {
            self.metrics.retries.get_or_create(&self.labels).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn shown(metrics: &QueueMetrics) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        metrics.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    fn item(name: &str) -> Item {
        ("shop".to_owned(), name.to_owned())
    }

    #[test]
    fn a_queue_shows_its_metrics_before_anything_is_in_it() {
        let metrics = QueueMetrics::default();
        for name in ["service", "node", "Nodes"] {
            drop(metrics.queue(name));
        }
        let text = shown(&metrics);
        for metric in [
            "workqueue_depth",
            "workqueue_adds_total",
            "workqueue_retries_total",
            "workqueue_queue_duration_seconds_count",
            "workqueue_work_duration_seconds_count",
        ] {
            for name in ["service", "node", "Nodes"] {
                assert!(
                    text.contains(&format!("{metric}{{name=\"{name}\"}} 0\n")),
                    "{metric} of {name} in {text}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn counts_as_client_go_does() {
        let metrics = QueueMetrics::default();
        let queue = metrics.queue("service");
        for name in ["a", "a", "b", "gone"] {
            queue.added(item(name));
        }
        assert!(shown(&metrics).contains("workqueue_depth{name=\"service\"} 3\n"));
        tokio::time::advance(Duration::from_secs(2)).await;
        queue.taken(&item("a"));
        queue.taken(&item("timer"));
        queue.dropped(&item("gone"));
        queue.dropped(&item("gone"));
        queue.done(0.05, true);
        let text = shown(&metrics);
        for line in [
            "workqueue_depth{name=\"service\"} 1\n",
            "workqueue_adds_total{name=\"service\"} 4\n",
            "workqueue_retries_total{name=\"service\"} 1\n",
            "workqueue_queue_duration_seconds_sum{name=\"service\"} 2.0\n",
            "workqueue_queue_duration_seconds_count{name=\"service\"} 2\n",
            "workqueue_work_duration_seconds_count{name=\"service\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
