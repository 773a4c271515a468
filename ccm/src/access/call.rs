//! One call: what it is, its deadline, and the metrics of all.

use std::borrow::Cow;

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::timeout;
use tower::BoxError;

use super::CALL_DEADLINE;

/// What a call is about, as Kubernetes authorizes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub verb: &'static str,
    pub resource: String,
    pub method: Method,
}

/// client-go's code of a request without an answer.
const NO_CODE: &str = "<error>";
/// Bounds of the time of a request, in seconds (client-go).
const DURATION_BOUNDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", CALL_DEADLINE.as_secs())]
pub struct NoAnswer;

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

/// Counts the calls to both clusters: in our words, and under the names of client-go (`k8s.io/component-base`,
/// `restclient/metrics.go`).
#[derive(Clone, Debug)]
pub struct CallMetrics {
    calls: Family<CallLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
}

impl Default for CallMetrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BOUNDS)),
        }
    }
}

impl CallMetrics {
    /// Registers the counter.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_ccm_requests",
            "Calls to the API servers, by cluster, verb, resource and HTTP code; the code is timeout or transport where \
             none came",
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
    }

    /// Counts a call that nobody made, so that the labels show.
    #[cfg(test)]
    pub(crate) fn sample(&self) {
        let call = Call::of(&Request::get("/api/v1/services").body(()).expect("is a request"));
        self.count("guest", (&call, "host"), 0.0, &Err(NoAnswer.into()));
    }

    pub(super) fn count(
        &self,
        cluster: &'static str,
        (call, host): (&Call, &str),
        seconds: f64,
        answer: &Result<Response<Body>, BoxError>,
    ) {
        let (host, method) = (host.to_owned(), call.method.to_string());
        let status = answer.as_ref().map(|response| Cow::Owned(response.status().as_u16().to_string()));
        let code = status.unwrap_or(Cow::Borrowed(NO_CODE));
        self.durations
            .get_or_create(&DurationLabels { verb: method.clone(), host: host.clone() })
            .observe(seconds);
        self.requests.get_or_create(&RequestLabels { code, method, host }).inc();
        let code = match answer {
            Ok(response) => Cow::Owned(response.status().as_u16().to_string()),
            Err(error) if error.is::<NoAnswer>() => Cow::Borrowed("timeout"),
            Err(_) => Cow::Borrowed("transport"),
        };
        let labels = CallLabels { cluster, verb: call.verb, resource: call.resource.clone(), code };
        self.calls.get_or_create(&labels).inc();
    }
}

impl Call {
    /// Reads method and URL.
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let mut parts = request.uri().path().split('/').filter(|part| !part.is_empty());
        // /api/v1/…, /apis/<group>/<version>/…; what is neither has no resource.
        let prefix = match parts.next() {
            Some("api") => parts.next().is_some(),
            Some("apis") => parts.next().is_some() && parts.next().is_some(),
            _ => false,
        };
        let parts: Vec<&str> = if prefix { parts.collect() } else { Vec::new() };
        let parts = match parts.as_slice() {
            ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
            parts => parts,
        };
        let watch =
            request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let (resource, named) = match parts {
            [] => ("none".to_owned(), false),
            [resource] => ((*resource).to_owned(), false),
            [resource, _] => ((*resource).to_owned(), true),
            [resource, _, subresource, ..] => (format!("{resource}/{subresource}"), true),
        };
        let method = request.method();
        let verb = match (method, named) {
            _ if watch => "watch",
            (&Method::GET, true) => "get",
            (&Method::GET, false) => "list",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, true) => "delete",
            _ => "other",
        };
        Self { verb, resource, method: method.clone() }
    }

    /// Sends it, with the deadline on the whole answer; of a watch, on its opening.
    pub(super) async fn send(
        &self,
        client: &Client,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
        let exchange = async {
            let response = client.send(request).await?;
            if self.verb == "watch" {
                return Ok(response);
            }
            let (parts, body) = response.into_parts();
            let body = body.collect_bytes().await?;
            Ok(Response::from_parts(parts, Body::from(Vec::from(body))))
        };
        match timeout(CALL_DEADLINE, exchange).await {
            Ok(answer) => answer.map_err(|error: kube::Error| error.into()),
            Err(_) => Err(NoAnswer.into()),
        }
    }
}
