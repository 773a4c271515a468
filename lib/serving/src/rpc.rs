//! A tower layer around a gRPC server: one span, one log line and three metrics per RPC.
//!
//! The layer knows an RPC by its path alone. Which volume and node it is about is in the message, which only its
//! handler decodes: the span has the empty fields `volume_id` and `node_id`, and the handler records them. They then
//! stand in every log line of the RPC, also in the last one. No other part of a request or answer is ever logged, so a
//! CSI `secrets` map can't be.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::{MAX_TEXT, cut};

/// Bounds of the duration histogram in seconds: from a cached answer to the three minutes of csi-provisioner and
/// csi-attacher in our manifests (`--timeout=3m`).
const DURATION_BUCKETS: [f64; 11] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 120.0, 180.0];

/// What the path of a request shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RpcMethod {
    /// The RPC's name, from a fixed list, because it is a metric label. `unknown` for a path that the program does not
    /// know.
    pub name: &'static str,
    /// Whether it is called all the time: then its line is at the debug level if it succeeds.
    pub routine: bool,
}

/// Finds the method of a path (`/package.Service/Method`).
pub type FindMethod = fn(&str) -> RpcMethod;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug)]
struct Metrics {
    finished: Family<OutcomeLabels, Counter>,
    duration: Family<MethodLabel, Histogram, fn() -> Histogram>,
    in_flight: Family<MethodLabel, Gauge>,
}

/// The layer. It registers its metrics once; clones share them.
#[derive(Clone, Debug)]
pub struct RpcLayer {
    metrics: Arc<Metrics>,
    method: FindMethod,
    unanswered: TaskTracker,
    stop: CancellationToken,
}

/// A service wrapped by [`RpcLayer`].
#[derive(Clone, Debug)]
pub struct RpcService<S> {
    inner: S,
    layer: RpcLayer,
}

impl RpcLayer {
    /// Registers `rpcs_total`, `rpc_duration_seconds` and `rpcs_in_flight` in `registry`.
    pub fn new(registry: &mut Registry, method: FindMethod) -> Self {
        let metrics = Metrics {
            finished: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            in_flight: Family::default(),
        };
        registry.register("rpcs", "RPCs answered, by method and gRPC code", metrics.finished.clone());
        registry.register_with_unit(
            "rpc_duration",
            "Time from the request to the end of its answer",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register("rpcs_in_flight", "RPCs not answered yet", metrics.in_flight.clone());
        let unanswered = TaskTracker::new();
        // Closed from the start: the tracker only counts, and a wait on it ends whenever the count is zero.
        unanswered.close();
        Self { metrics: Arc::new(metrics), method, unanswered, stop: CancellationToken::new() }
    }

    /// The same, but refuses new RPCs once `stop` is cancelled: a client may not have read the `GOAWAY` yet.
    pub(crate) fn until(self, stop: CancellationToken) -> Self {
        Self { stop, ..self }
    }

    /// Waits until every RPC has its answer.
    pub(crate) async fn answered(&self) {
        self.unanswered.wait().await;
    }

    /// Whether every RPC has its answer now.
    pub(crate) fn is_idle(&self) -> bool {
        self.unanswered.is_empty()
    }

    fn observe(&self, path: &str) -> Observation {
        let method = (self.method)(path);
        let span = tracing::info_span!("rpc", method = method.name, volume_id = Empty, node_id = Empty);
        self.metrics.in_flight.get_or_create(&MethodLabel { method: method.name }).inc();
        Observation {
            metrics: self.metrics.clone(),
            _unanswered: self.unanswered.token(),
            method,
            span,
            started: Instant::now(),
            outcome: (Code::Cancelled, "the caller went away or its deadline passed".to_owned()),
        }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService { inner, layer: self.clone() }
    }
}

impl<S> Service<Request<Body>> for RpcService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The service that was polled ready is moved into the future; its clone stays for the next request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let stopping = self.layer.stop.is_cancelled();
        let observation = self.layer.observe(request.uri().path());
        Box::pin(async move {
            let mut observation = observation;
            if stopping {
                let status = Status::unavailable("the driver is being stopped, try again");
                observation.outcome = (status.code(), status.message().to_owned());
                return Ok(status.into_http());
            }
            let span = observation.span.clone();
            let response = inner.call(request).instrument(span).await?;
            // An answer without a message carries its status here, every other answer in its trailers.
            observation.read_status(response.headers());
            Ok(response.map(|body| Body::new(ObservedBody { inner: body, observation })))
        })
    }
}

/// One RPC under observation. When it is dropped the RPC has ended, however it ended.
struct Observation {
    metrics: Arc<Metrics>,
    _unanswered: TaskTrackerToken,
    method: RpcMethod,
    span: Span,
    started: Instant,
    outcome: (Code, String),
}

impl Observation {
    fn read_status(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.outcome = (status.code(), status.message().to_owned());
        }
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let method = self.method.name;
        let elapsed = self.started.elapsed();
        let code = &self.outcome.0;
        let label = MethodLabel { method };
        self.metrics.in_flight.get_or_create(&label).dec();
        self.metrics.duration.get_or_create(&label).observe(elapsed.as_secs_f64());
        self.metrics.finished.get_or_create(&OutcomeLabels { method, code: code_name(*code) }).inc();
        let _entered = self.span.enter();
        let (code, ms) = (code_name(*code), elapsed.as_millis());
        if self.outcome.0 != Code::Ok {
            // The text quotes what the caller sent. As a field of its own it is written in quotes, with its line breaks
            // escaped; a field named `message` would be the line's own text, which is not.
            let error = &*cut(&self.outcome.1, MAX_TEXT);
            tracing::warn!(code, ms, error, "answered");
        } else if self.method.routine {
            tracing::debug!(code, ms, "answered");
        } else {
            tracing::info!(code, ms, "answered");
        }
    }
}

/// A response body that reads the status from its trailers.
struct ObservedBody {
    inner: Body,
    observation: Observation,
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.observation.read_status(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The names of grpc-go's Prometheus metrics, so that dashboards fit; in the order of the codes' numbers.
pub const CODE_NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

fn code_name(code: Code) -> &'static str {
    usize::try_from(i32::from(code))
        .ok()
        .and_then(|number| CODE_NAMES.get(number))
        .copied()
        .unwrap_or("Unknown")
}
