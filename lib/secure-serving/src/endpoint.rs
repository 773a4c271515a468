//! The routes, and the check in front of each.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use serde_json::Value;
use serving::{Tasks, metrics_page::metrics_page, readiness::Readiness};
use tokio_util::sync::CancellationToken;

use crate::{
    certificate::Presented,
    connections::{self, Bounds},
    reviews::{Access, Asked, Reviews},
    settings::SecureServingSettings,
    tls::{Tls, TlsError, TlsListener},
    trust::{Trust, TrustError, TrustSources},
};

/// A bound endpoint.
pub struct SecureEndpoint {
    listener: TlsListener,
    router: Router,
    bounds: Bounds,
}

/// What the endpoint shows.
pub struct Shown {
    /// The metrics of `/metrics` and `/metrics/slis`.
    pub registry: Registry,
    /// The content of `/configz`.
    pub config: Value,
    /// What `/readyz` waits for.
    pub readiness: Readiness,
    /// Called for each answered health check with its kind, `healthz`, `livez` or `readyz`, and whether it passed.
    pub health_checked: Box<dyn Fn(&'static str, bool) + Send + Sync>,
}

/// Why the endpoint can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A file of certificate authorities can't be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The address is taken, or the certificate can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl SecureEndpoint {
    /// Binds the address and reads the files that `settings` name. It does not wait for any API server.
    ///
    /// # Errors
    /// The address is taken, or a file can't be used.
    pub async fn bind(
        settings: SecureServingSettings,
        shown: Shown,
        tasks: &Tasks,
    ) -> Result<Self, BindError> {
        let SecureServingSettings { cluster, authentication, authorization, shown_tokens, .. } = settings;
        let sources = TrustSources {
            client_ca: settings.client_ca,
            front_proxy: settings.front_proxy,
            cluster,
            lookup: settings.lookup.then(|| authentication.clone()),
            tolerate_failure: settings.tolerate_lookup_failure,
        };
        let trust = Trust::start(sources, tasks).await?;
        let (always_allowed, times) = (settings.always_allowed, settings.times);
        let reviews = Reviews::new(
            trust,
            cluster,
            (authentication, shown_tokens),
            authorization,
            always_allowed,
            times,
        );
        Ok(Self::reviewing((settings.address, Bounds::DEFAULT), &settings.tls, reviews, shown, tasks).await?)
    }

    async fn reviewing(
        (address, bounds): (SocketAddr, Bounds),
        tls: &Tls,
        reviews: Reviews,
        shown: Shown,
        tasks: &Tasks,
    ) -> Result<Self, TlsError> {
        let listener = TlsListener::bind(address, tls, bounds.connections, tasks).await?;
        let router = Router::new()
            .route("/healthz", get(async |State(shown): State<Arc<Shown>>| ok(&shown, "healthz")))
            .route("/livez", get(async |State(shown): State<Arc<Shown>>| ok(&shown, "livez")))
            .route("/readyz", get(async |State(shown): State<Arc<Shown>>| ready(&shown)))
            .route("/metrics", get(metrics))
            .route("/metrics/slis", get(metrics))
            .route("/configz", get(configz))
            .with_state(Arc::new(shown))
            .layer(from_fn_with_state(Arc::new(reviews), guard));
        Ok(Self { listener, router, bounds })
    }

    /// The address to which it is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.address
    }

    /// Serves until `stop`, and then answers the requests that have begun.
    pub async fn serve(self, stop: CancellationToken) {
        connections::serve(self.listener, self.router, self.bounds, stop).await;
    }
}

/// Lets allowed requests through.
async fn guard(
    State(reviews): State<Arc<Reviews>>,
    ConnectInfo(presented): ConnectInfo<Presented>,
    request: Request,
    next: Next,
) -> Response {
    let (path, method) = (request.uri().path(), request.method().as_str());
    let asked = Asked { path, method, headers: request.headers(), presented: &presented };
    match reviews.judge(&asked).await {
        Access::Allowed => next.run(request).await,
        Access::Unauthenticated => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
        Access::Forbidden => (StatusCode::FORBIDDEN, "Forbidden").into_response(),
        Access::Unknown => {
            let answer = format!("the {} cluster did not review it", reviews.cluster());
            (StatusCode::INTERNAL_SERVER_ERROR, answer).into_response()
        }
    }
}

/// One thread does all the work. That it answers proves that it is alive.
fn ok(shown: &Shown, check: &'static str) -> &'static str {
    (shown.health_checked)(check, true);
    "ok"
}

fn ready(shown: &Shown) -> Response {
    let unmet = shown.readiness.unmet();
    if unmet.is_empty() {
        return ok(shown, "readyz").into_response();
    }
    (shown.health_checked)("readyz", false);
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}", unmet.join(", "))).into_response()
}

async fn metrics(State(shown): State<Arc<Shown>>, request: HeaderMap) -> Response {
    metrics_page(&shown.registry, &request)
}

async fn configz(State(shown): State<Arc<Shown>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], shown.config.to_string()).into_response()
}

#[cfg(test)]
mod tests;
