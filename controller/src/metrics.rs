//! Counters and durations of the controller's RPCs. No label carries an object's name.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tonic::Code;

/// First bucket: a create takes some 10 ms.
const FIRST_BUCKET_SECONDS: f64 = 0.01;
/// Each bucket is this much longer; fourteen reach past the sidecars' three minutes.
const BUCKET_FACTOR: f64 = 2.0;
const BUCKETS: u16 = 15;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Rpc {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

/// Metrics of RPCs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    rpcs: Family<Rpc, Counter>,
    durations: Family<Method, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { rpcs: Family::default(), durations: Family::new_with_constructor(histogram) }
    }
}

fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(FIRST_BUCKET_SECONDS, BUCKET_FACTOR, BUCKETS))
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_csi_controller_rpcs",
            "RPCs of the CSI controller by method and gRPC code",
            self.rpcs.clone(),
        );
        registry.register(
            "kubevirt_csi_controller_rpc_duration_seconds",
            "Time to answer an RPC of the CSI controller",
            self.durations.clone(),
        );
    }

    pub(crate) fn count(&self, method: &'static str, code: Code, took: Duration) {
        self.rpcs.get_or_create(&Rpc { method, code: name(code) }).inc();
        self.durations.get_or_create(&Method { method }).observe(took.as_secs_f64());
    }
}

/// A code as the gRPC specification writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
