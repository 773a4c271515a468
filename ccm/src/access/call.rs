//! One call: what it is, its deadline, and the metrics of all.

use std::borrow::Cow;

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::time::timeout;
use tower::BoxError;

use super::CALL_DEADLINE;

/// What a call is about, as Kubernetes authorizes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub verb: &'static str,
    pub resource: String,
}

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

/// Counts the calls to both clusters.
#[derive(Clone, Debug, Default)]
pub struct CallMetrics {
    calls: Family<CallLabels, Counter>,
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
    }

    pub(super) fn count(
        &self,
        cluster: &'static str,
        call: &Call,
        answer: &Result<Response<Body>, BoxError>,
    ) {
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
        Self { verb, resource }
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
