//! A tower layer around a gRPC server: one span, one log line and three metrics per RPC.
//!
//! What a request is about is said by the program ([`Describe`]): it gets the undecoded message and returns only the
//! ids worth logging. No other part of a request or answer is ever logged, so a CSI `secrets` map can't be.
//! Messages are read once more for this; CSI's are a few KiB and unary, and the ids then stand in the span of
//! everything that the RPC logs, without a handler having to help.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Full, Limited};
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
use tracing::{Instrument, Span};

/// The largest request read: tonic's own limit for a message it decodes, plus its 5-byte prefix.
const MAX_REQUEST: usize = 4 * 1024 * 1024 + FRAME_PREFIX;

/// gRPC over HTTP/2, "Length-Prefixed-Message": one byte compressed flag, four bytes length.
const FRAME_PREFIX: usize = 5;

/// Bounds of the duration histogram in seconds: from a cached answer to the three minutes that the manifests give
/// provisioner and attacher (`--timeout=3m`).
const DURATION_BUCKETS: [f64; 11] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 120.0, 180.0];

/// What one request is about, as span, log line and metrics show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RpcSubject {
    /// The RPC's name, from a fixed list: it is a metric label. `unknown` for what the program does not know.
    pub method: &'static str,
    /// The volume (or snapshot), if the request names one.
    pub volume_id: Option<String>,
    /// The node, if the request names one.
    pub node_id: Option<String>,
    /// Asked all the time and not worth a line at the info level when it goes well.
    pub routine: bool,
}

/// Says what a request is about: `(path, message) → subject`. It must not return anything secret.
pub type Describe = fn(&str, &[u8]) -> RpcSubject;

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
    describe: Describe,
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
    pub fn new(registry: &mut Registry, describe: Describe) -> Self {
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
        // Closed from the start: the tracker counts, and waiting ends whenever it counts none.
        unanswered.close();
        Self { metrics: Arc::new(metrics), describe, unanswered, stop: CancellationToken::new() }
    }

    /// The same, and refuses what still comes once `stop` is cancelled: a client may not have read yet that we say goodbye.
    pub(crate) fn until(self, stop: CancellationToken) -> Self {
        Self { stop, ..self }
    }

    /// Waits until no RPC is without its answer.
    pub(crate) async fn answered(&self) {
        self.unanswered.wait().await;
    }

    /// Whether no RPC is without its answer now.
    pub(crate) fn is_idle(&self) -> bool {
        self.unanswered.is_empty()
    }

    fn observe(&self, subject: RpcSubject) -> Observation {
        let span = tracing::info_span!(
            "rpc",
            method = subject.method,
            volume_id = subject.volume_id.as_deref(),
            node_id = subject.node_id.as_deref()
        );
        self.metrics.in_flight.get_or_create(&MethodLabel { method: subject.method }).inc();
        Observation {
            metrics: self.metrics.clone(),
            _unanswered: self.unanswered.token(),
            subject,
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
        // The service that was polled ready goes into the future, its clone stays for the next request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let layer = self.layer.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let read = Limited::new(body, MAX_REQUEST).collect().await;
            let (subject, read) = match read {
                Ok(body) => {
                    let bytes = body.to_bytes();
                    let message = bytes.get(FRAME_PREFIX..).unwrap_or_default();
                    ((layer.describe)(head.uri.path(), message), Ok(bytes))
                }
                Err(error) => ((layer.describe)(head.uri.path(), &[]), Err(error)),
            };
            let mut observation = layer.observe(subject);
            let bytes = match read {
                Ok(bytes) => bytes,
                Err(error) => {
                    let status = Status::invalid_argument(format!("the request can not be read: {error}"));
                    observation.outcome = (status.code(), status.message().to_owned());
                    return Ok(status.into_http());
                }
            };
            if layer.stop.is_cancelled() {
                let status = Status::unavailable("the driver is being stopped, try again");
                observation.outcome = (status.code(), status.message().to_owned());
                return Ok(status.into_http());
            }
            let span = observation.span.clone();
            let request = Request::from_parts(head, Body::new(Full::new(bytes)));
            let response = inner.call(request).instrument(span).await?;
            // An answer without a message carries its status here, every other one in its trailers.
            observation.read_status(response.headers());
            Ok(response.map(|body| Body::new(ObservedBody { inner: body, observation })))
        })
    }
}

/// One RPC under observation. Its end, of whichever kind, is when it is dropped.
struct Observation {
    metrics: Arc<Metrics>,
    _unanswered: TaskTrackerToken,
    subject: RpcSubject,
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
        let method = self.subject.method;
        let elapsed = self.started.elapsed();
        let (code, message) = (&self.outcome.0, self.outcome.1.as_str());
        let label = MethodLabel { method };
        self.metrics.in_flight.get_or_create(&label).dec();
        self.metrics.duration.get_or_create(&label).observe(elapsed.as_secs_f64());
        self.metrics.finished.get_or_create(&OutcomeLabels { method, code: code_name(*code) }).inc();
        let _entered = self.span.enter();
        let (code, ms) = (code_name(*code), elapsed.as_millis());
        if self.outcome.0 != Code::Ok {
            tracing::warn!(code, ms, message, "answered");
        } else if self.subject.routine {
            tracing::debug!(code, ms, "answered");
        } else {
            tracing::info!(code, ms, "answered");
        }
    }
}

/// A response body that reads the status off its trailers.
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

/// The names that grpc-go's Prometheus metrics use, so that dashboards fit; in the order of the codes' numbers.
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
