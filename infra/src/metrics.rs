//! The metrics of the calls to the infra API.

use std::{borrow::Cow, sync::atomic::AtomicU64, time::Duration};

use cluster::{Call, CountSkipped, Meter, Outcome};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Bounds of the duration histogram in seconds, from a cached read to [`cluster::CALL_DEADLINE`].
const DURATION_BOUNDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    verb: &'static str,
    resource: String,
    code: Cow<'static, str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    verb: &'static str,
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

/// Counts calls. Clones count together.
#[derive(Clone)]
pub(crate) struct CallMetrics {
    calls: Family<CallLabels, Counter>,
    duration: Family<KindLabels, Histogram, fn() -> Histogram>,
    paused: Counter<f64, AtomicU64>,
    waited: Counter<f64, AtomicU64>,
    skipped: Family<ResourceLabels, Counter>,
}

impl Default for CallMetrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(DURATION_BOUNDS)),
            paused: Counter::default(),
            waited: Counter::default(),
            skipped: Family::default(),
        }
    }
}

impl CallMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_csi_infra_requests",
            "Calls to the infra API, by verb, resource and HTTP code; the code is timeout, transport or too_long where none came that can be used",
            self.calls.clone(),
        );
        registry.register_with_unit(
            "kubevirt_csi_infra_request_duration",
            "Time of one call to the infra API, pauses not counted",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register_with_unit(
            "kubevirt_csi_infra_paused",
            "Time that reads waited because the infra API asked for a pause (Retry-After)",
            Unit::Seconds,
            self.paused.clone(),
        );
        registry.register_with_unit(
            "kubevirt_csi_infra_rate_limited",
            "Time that changes waited because --kube-api-qps bounds their rate",
            Unit::Seconds,
            self.waited.clone(),
        );
        registry.register(
            "kubevirt_csi_infra_unreadable_objects",
            "Objects of lists and watches that could not be read and were skipped, by resource; each read of one counts",
            self.skipped.clone(),
        );
    }
}

impl Meter for CallMetrics {
    fn called(&self, call: &Call, _host: &str, outcome: Outcome, time: Duration) {
        let (verb, resource) = (call.verb, call.resource.clone());
        // A watch ends here as soon as it is open; that time is not the time of a call.
        if verb != "watch" {
            let kind = KindLabels { verb, resource: resource.clone() };
            self.duration.get_or_create(&kind).observe(time.as_secs_f64());
        }
        self.calls.get_or_create(&CallLabels { verb, resource, code: outcome.label() }).inc();
    }

    fn paused(&self, time: Duration) {
        self.paused.inc_by(time.as_secs_f64());
    }

    fn waited(&self, _call: &Call, _host: &str, time: Duration) {
        self.waited.inc_by(time.as_secs_f64());
    }
}

impl CountSkipped for CallMetrics {
    fn skipped(&self, _cluster: &'static str, resource: &str) {
        self.skipped.get_or_create(&ResourceLabels { resource: resource.to_owned() }).inc();
    }
}
