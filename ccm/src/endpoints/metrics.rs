//! The metrics of the endpoint controller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// The endpoints of one load balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Endpoints that take new connections.
    pub ready: usize,
    /// All other endpoints.
    pub unready: usize,
}

/// The metrics of the endpoint controller. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct EndpointMetrics {
    endpoints: Family<StateLabels, Gauge>,
    services: Family<StateLabels, Gauge>,
    off: Gauge,
    counts: Arc<Mutex<HashMap<String, Count>>>,
}

impl EndpointMetrics {
    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_ccm_endpoints",
            "Endpoints in the slices that are written here, by state (ready, unready)",
            self.endpoints.clone(),
        );
        registry.register(
            "kubevirt_ccm_endpoint_services",
            "Load balancers whose slices are written here, by state: with a ready endpoint (ready) or without (unready)",
            self.services.clone(),
        );
        registry.register(
            "kubevirt_ccm_endpoints_off",
            "1 while slices should be written here and can not be, for want of a right or by --controllers",
            self.off.clone(),
        );
    }

    /// Sets whether slices should be written but can't be.
    pub fn off(&self, off: bool) {
        self.off.set(i64::from(off));
    }

    /// Records the endpoints of the guest Service with this UID. `None` = they are not ours to write.
    pub fn count(&self, uid: &str, count: Option<Count>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match count {
            Some(count) => counts.insert(uid.to_owned(), count),
            None => counts.remove(uid),
        };
        if before != count {
            self.show(&counts);
        }
    }

    /// Keeps only the Services that still exist.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = counts.len();
        counts.retain(|uid, _| is_there(uid));
        if counts.len() != before {
            self.show(&counts);
        }
    }

    fn show(&self, counts: &HashMap<String, Count>) {
        let (mut all, mut served) = (Count::default(), Count::default());
        for count in counts.values() {
            all = Count { ready: all.ready + count.ready, unready: all.unready + count.unready };
            let is_ready = usize::from(count.ready > 0);
            served = Count { ready: served.ready + is_ready, unready: served.unready + 1 - is_ready };
        }
        for (gauge, count) in [(&self.endpoints, all), (&self.services, served)] {
            for (state, number) in [("ready", count.ready), ("unready", count.unready)] {
                let number = i64::try_from(number).unwrap_or(i64::MAX);
                gauge.get_or_create(&StateLabels { state }).set(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_summed_over_services() {
        let (mut registry, metrics) = (Registry::default(), EndpointMetrics::default());
        metrics.register(&mut registry);
        metrics.count("a", Some(Count { ready: 2, unready: 1 }));
        metrics.count("b", Some(Count { ready: 0, unready: 3 }));
        metrics.count("c", Some(Count { ready: 9, unready: 0 }));
        metrics.count("c", None);
        metrics.count("gone", Some(Count { ready: 5, unready: 5 }));
        metrics.keep(|uid| uid != "gone");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "kubevirt_ccm_endpoints{state=\"ready\"} 2\n",
            "kubevirt_ccm_endpoints{state=\"unready\"} 4\n",
            "kubevirt_ccm_endpoint_services{state=\"ready\"} 1\n",
            "kubevirt_ccm_endpoint_services{state=\"unready\"} 1\n",
            "kubevirt_ccm_endpoints_off 0\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
