//! One HTTP call to the infra API: its deadline, the pause that the API may ask for, the counter, the typed error.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicU64},
    time::Duration,
};

use futures::{Stream, StreamExt};
use http::{Method, header};
use kube::{
    client::Body,
    core::{Status, WatchEvent},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    connection::{Connection, Current},
    error::{Class, Error, Failure},
};

/// Longest time of one call, pauses included. external-attacher's default RPC timeout is 15 s: one lost call must leave room
/// for the answer.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Longest pause that is honoured: a broken proxy must not switch the driver off for an hour.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// KubeVirt's subresource API answers 406 where `*/*` is missing (its handlers produce no JSON on success).
const ACCEPT: &str = "application/json, */*";
/// Bounds of the duration histogram in seconds, from a cached read to [`CALL_DEADLINE`].
const DURATION_BOUNDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// What a call may do after the API asked for a pause.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Wait and try again: reads.
    AfterPause,
    /// Fail: before a change the caller looks at its clock, and at the VM.
    Never,
}

/// One request, independent of the connection.
pub(crate) struct Request {
    pub verb: &'static str,
    pub resource: &'static str,
    pub name: Option<String>,
    pub method: Method,
    pub uri: String,
    pub content_type: &'static str,
    pub body: Vec<u8>,
    pub repeat: Repeat,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    verb: &'static str,
    resource: &'static str,
    code: Cow<'static, str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    verb: &'static str,
    resource: &'static str,
}

/// The pause that the API asked for.
struct Pause {
    until: Instant,
    /// The answer that asked for it last.
    asked: Error,
}

/// Makes calls.
pub(crate) struct Caller {
    connection: Connection,
    pause: Mutex<Option<Pause>>,
    calls: Family<CallLabels, Counter>,
    duration: Family<KindLabels, Histogram, fn() -> Histogram>,
    paused: Counter<f64, AtomicU64>,
}

impl Caller {
    pub(crate) fn new(connection: Connection) -> Self {
        Self {
            connection,
            pause: Mutex::new(None),
            calls: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(DURATION_BOUNDS)),
            paused: Counter::default(),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_csi_infra_requests",
            "Calls to the infra API, by verb, resource and HTTP code; the code is timeout or transport where none came",
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
    }

    /// Makes the call and reads the answer as `T`.
    pub(crate) async fn read<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Error> {
        let body = self.send(request).await?;
        serde_json::from_slice(&body).map_err(|error| request.failed(Failure::Unreadable(Arc::new(error))))
    }

    /// Makes the call.
    pub(crate) async fn send(&self, request: &Request) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let mut renewed = false;
        loop {
            self.wait_out_pause(request, deadline).await?;
            let current = self.connection.current().await;
            let error = match self.send_once(request, &current, deadline).await {
                Ok(body) => {
                    self.lock_pause().take_if(|pause| pause.until <= Instant::now());
                    return Ok(body);
                }
                Err(error) => error,
            };
            if let Some(pause) = error.retry_after() {
                self.pause_for(pause, &error);
            }
            // Other credentials may cure it: another token a 401, another CA the end of a connection.
            if !renewed && matches!(error.class(), Class::Unauthorized | Class::Transport) {
                renewed = self.connection.is_renewed(&current).await;
                // A 401 means that nothing was carried out, so even a hotplug call may be repeated.
                let harmless = request.repeat == Repeat::AfterPause || error.class() == Class::Unauthorized;
                if renewed && harmless {
                    continue;
                }
            }
            if request.repeat == Repeat::Never || error.retry_after().is_none() {
                return Err(error);
            }
        }
    }

    /// Opens a watch and gives its events as they come; that it ends is no error. Counted once, when it was answered.
    pub(crate) async fn watch<T>(
        &self,
        request: &Request,
    ) -> Result<impl Stream<Item = Result<WatchEvent<T>, Error>> + use<T>, Error>
    where
        T: Clone + DeserializeOwned,
    {
        let deadline = Instant::now() + CALL_DEADLINE;
        self.wait_out_pause(request, deadline).await?;
        let http = request.http(request.body.clone());
        let client = self.connection.current().await.client;
        let (code, opened) = match timeout_at(deadline, client.request_events::<T>(http)).await {
            Err(_) => (Cow::Borrowed("timeout"), Err(Failure::Timeout(CALL_DEADLINE))),
            Ok(Err(kube::Error::Api(status))) => {
                (Cow::Owned(status.code.to_string()), Err(refused_watch(&status)))
            }
            Ok(Err(error)) => (Cow::Borrowed("transport"), Err(Failure::Transport(Arc::new(error)))),
            Ok(Ok(events)) => (Cow::Borrowed("200"), Ok(events)),
        };
        self.count(request, code);
        let (verb, resource) = (request.verb, request.resource);
        let events = opened.map_err(|failure| request.failed(failure)).inspect_err(|error| {
            if let Some(pause) = error.retry_after() {
                self.pause_for(pause, error);
            }
        })?;
        Ok(events.map(move |event| {
            event.map_err(|error| {
                let failure = Box::new(Failure::Transport(Arc::new(error)));
                Error { verb, resource, name: None, failure }
            })
        }))
    }

    fn count(&self, request: &Request, code: Cow<'static, str>) {
        let labels = CallLabels { verb: request.verb, resource: request.resource, code };
        self.calls.get_or_create(&labels).inc();
    }

    /// Waits until the API wants to be called again, or fails when that is later than this call can wait.
    async fn wait_out_pause(&self, request: &Request, deadline: Instant) -> Result<(), Error> {
        let Some(until) = self.lock_pause().as_ref().map(|pause| pause.until) else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        if request.repeat == Repeat::Never || until >= deadline {
            return Err(request.failed(Failure::Paused(left)));
        }
        let began = Instant::now();
        sleep_until(until).await;
        self.paused.inc_by(began.elapsed().as_secs_f64());
        Ok(())
    }

    fn pause_for(&self, pause: Duration, asked: &Error) {
        let until = Instant::now() + pause.min(MAX_RETRY_AFTER);
        let mut paused = self.lock_pause();
        let until = paused.as_ref().map_or(until, |known| known.until.max(until));
        *paused = Some(Pause { until, asked: asked.clone() });
    }

    /// What the API said when it asked for a pause, as long as no call has succeeded after it.
    pub(crate) fn asked_to_wait(&self) -> Option<Error> {
        self.lock_pause().as_ref().map(|pause| pause.asked.clone())
    }

    fn lock_pause(&self) -> MutexGuard<'_, Option<Pause>> {
        self.pause.lock().expect("no holder of this lock panics")
    }

    async fn send_once(
        &self,
        request: &Request,
        current: &Current,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        let http = request.http(Body::from(request.body.clone()));
        let began = Instant::now();
        let exchange = async {
            let (parts, body) = current.client.send(http).await?.into_parts();
            Ok::<_, kube::Error>((parts, body.collect_bytes().await?))
        };
        let (code, result) = match timeout_at(deadline, exchange).await {
            Err(_) => (Cow::Borrowed("timeout"), Err(Failure::Timeout(CALL_DEADLINE))),
            Ok(Err(error)) => (Cow::Borrowed("transport"), Err(Failure::Transport(Arc::new(error)))),
            Ok(Ok((parts, body))) => {
                let code = Cow::Owned(parts.status.as_u16().to_string());
                let result =
                    if parts.status.is_success() { Ok(body.to_vec()) } else { Err(answer(&parts, &body)) };
                (code, result)
            }
        };
        self.count(request, code);
        let kind = KindLabels { verb: request.verb, resource: request.resource };
        self.duration.get_or_create(&kind).observe(began.elapsed().as_secs_f64());
        result.map_err(|failure| request.failed(failure))
    }
}

impl Request {
    fn http<B>(&self, body: B) -> http::Request<B> {
        http::Request::builder()
            .method(self.method.clone())
            .uri(&self.uri)
            .header(header::ACCEPT, ACCEPT)
            .header(header::CONTENT_TYPE, self.content_type)
            .body(body)
            .expect("method, header values and URLs of checked names are legal")
    }

    fn failed(&self, failure: Failure) -> Error {
        Error {
            verb: self.verb,
            resource: self.resource,
            name: self.name.clone(),
            failure: Box::new(failure),
        }
    }
}

/// The error of a non-2xx answer. Its body is a `Status`, or a proxy's text.
fn answer(parts: &http::response::Parts, body: &[u8]) -> Failure {
    let status: Option<Status> = serde_json::from_slice(body).ok();
    let asked =
        parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let retryable = matches!(parts.status.as_u16(), 429 | 503);
    let details = status.as_ref().and_then(|status| status.details.as_ref());
    let in_body =
        details.map(|details| u64::from(details.retry_after_seconds)).filter(|seconds| *seconds > 0);
    // A 429 without a number still asks for a pause; client-go takes one second.
    let seconds = asked.or(in_body).or((parts.status.as_u16() == 429).then_some(1));
    let has_causes = details.is_some_and(|details| !details.causes.is_empty());
    let object = details.map(|details| details.name.clone()).filter(|name| !name.is_empty());
    let (reason, message) = match status {
        Some(status) if !status.message.is_empty() => (status.reason, status.message),
        _ => (String::new(), plain_text(body, parts.status)),
    };
    Failure::Answer {
        code: parts.status.as_u16(),
        reason,
        message,
        has_causes,
        object,
        retry_after: seconds.filter(|_| retryable).map(Duration::from_secs),
    }
}

/// The error of a watch that was not opened.
fn refused_watch(status: &Status) -> Failure {
    let details = status.details.as_ref();
    let asked = details.map(|details| u64::from(details.retry_after_seconds)).filter(|seconds| *seconds > 0);
    Failure::Answer {
        code: status.code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        has_causes: details.is_some_and(|details| !details.causes.is_empty()),
        // A watch is not about one object.
        object: None,
        retry_after: asked.or((status.code == 429).then_some(1)).map(Duration::from_secs),
    }
}

/// A proxy's page must not fill an event: the first characters are enough.
const MAX_PLAIN_TEXT: usize = 300;

fn plain_text(body: &[u8], status: http::StatusCode) -> String {
    let text: String = String::from_utf8_lossy(body).trim().chars().take(MAX_PLAIN_TEXT).collect();
    if text.is_empty() { status.canonical_reason().unwrap_or("no message").to_owned() } else { text }
}
