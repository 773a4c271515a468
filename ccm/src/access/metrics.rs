//! The metrics of the calls to both clusters.

use std::{borrow::Cow, time::Duration};

use cluster::{Call, Meter, Outcome};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::unreadable::{Reader, SkippedMetrics};

/// The code that client-go's metrics give to a request without an answer.
const NO_CODE: &str = "<error>";
/// Bounds of the duration of a request, in seconds (client-go).
const DURATION_BOUNDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    cluster: &'static str,
    verb: &'static str,
    resource: String,
    code: Cow<'static, str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    code: Cow<'static, str>,
    method: String,
    host: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    host: String,
}

/// Counts the calls to both clusters, under names of our own and under those of client-go (`k8s.io/component-base`,
/// `restclient/metrics.go`).
#[derive(Clone, Debug)]
pub struct CallMetrics {
    calls: Family<CallLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    waits: Family<DurationLabels, Histogram, fn() -> Histogram>,
    skipped: SkippedMetrics,
}

impl Default for CallMetrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BOUNDS)),
            waits: Family::new_with_constructor(|| Histogram::new(DURATION_BOUNDS)),
            skipped: SkippedMetrics::default(),
        }
    }
}

impl CallMetrics {
    /// Reports and counts the unreadable objects of `cluster`.
    pub fn reader(&self, cluster: &'static str) -> Reader {
        Reader::of(cluster, self.skipped.clone())
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        self.skipped.register(registry);
        registry.register(
            "kubevirt_ccm_requests",
            "Calls to the API servers, by cluster, verb, resource and HTTP code; the code is timeout, transport or \
             too_long where none came that can be used",
            self.calls.clone(),
        );
        registry.register(
            "rest_client_requests",
            "HTTP requests to the API servers, by status code, method and host; the code is <error> where no answer came",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "rest_client_request_duration",
            "Time until an API server answered; of a watch, until it was opened",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register_with_unit(
            "rest_client_rate_limiter_duration",
            "Time that a change waited because --kube-api-qps bounds the rate of changes to infra",
            Unit::Seconds,
            self.waits.clone(),
        );
    }

    /// Counts the calls to `cluster`.
    pub(super) fn of(self, cluster: &'static str) -> impl Meter {
        OneCluster { cluster, metrics: self }
    }

    /// Adds one sample to each metric, without a call, so that the labels show.
    #[cfg(test)]
    pub(crate) fn sample(&self) {
        self.skipped.sample();
        let call = Call::of(&http::Request::get("/api/v1/services").body(()).expect("is a request"));
        let meter = self.clone().of("guest");
        meter.called(&call, "host", Outcome::Timeout, Duration::ZERO);
        meter.waited(&call, "host", Duration::ZERO);
    }
}

/// Counts the calls to one cluster.
struct OneCluster {
    cluster: &'static str,
    metrics: CallMetrics,
}

impl Meter for OneCluster {
    fn called(&self, call: &Call, host: &str, outcome: Outcome, time: Duration) {
        let CallMetrics { calls, requests, durations, .. } = &self.metrics;
        let (host, method) = (host.to_owned(), call.method.to_string());
        let duration = DurationLabels { verb: method.clone(), host: host.clone() };
        durations.get_or_create(&duration).observe(time.as_secs_f64());
        let code = match outcome {
            Outcome::Answered(_) => outcome.label(),
            Outcome::Timeout | Outcome::Transport | Outcome::TooLong => Cow::Borrowed(NO_CODE),
        };
        requests.get_or_create(&RequestLabels { code, method, host }).inc();
        let (verb, resource) = (call.verb, call.resource.clone());
        let labels = CallLabels { cluster: self.cluster, verb, resource, code: outcome.label() };
        calls.get_or_create(&labels).inc();
    }
    fn waited(&self, call: &Call, host: &str, time: Duration) {
        let labels = DurationLabels { verb: call.method.to_string(), host: host.to_owned() };
        self.metrics.waits.get_or_create(&labels).observe(time.as_secs_f64());
    }
}
