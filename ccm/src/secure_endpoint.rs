//! The HTTPS endpoint, port 10258. Every client may read `/healthz`, `/livez` and `/readyz`. `/metrics` and `/configz`
//! are for clients that the guest cluster authorizes, by the framework's delegated authentication and authorization.

mod certificate;
mod front_proxy;
#[cfg(test)]
mod pki;
mod reread;
mod reviews;
mod tls;
mod trust;
mod user;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use serde_json::Value;
use serving::{Tasks, metrics_page::metrics_page};
use tokio_util::sync::CancellationToken;

use crate::framework_metrics::FrameworkMetrics;
use certificate::Presented;
pub use front_proxy::FrontProxyRules;
use reviews::{Asked, Verdict};
pub use reviews::{ReviewTimes, Reviews};
pub use tls::{Tls, TlsError};
pub use trust::{Trust, TrustError, TrustSources};

/// A bound endpoint.
pub struct SecureEndpoint {
    listener: tls::TlsListener,
    router: Router,
}

/// What the endpoint shows.
struct Shown {
    registry: Arc<Registry>,
    config: Value,
    health: FrameworkMetrics,
}

impl SecureEndpoint {
    /// Binds `address`. `config` is shown at `/configz`; `health` counts the checks.
    ///
    /// # Errors
    /// The address is taken, or the certificate can't be used.
    pub async fn bind(
        address: SocketAddr,
        tls: &Tls,
        reviews: Reviews,
        (registry, health): (Arc<Registry>, FrameworkMetrics),
        config: Value,
        tasks: &Tasks,
    ) -> Result<Self, TlsError> {
        let listener = tls::TlsListener::bind(address, tls, tasks).await?;
        let router = Router::new()
            .route("/healthz", get(async |State(shown): State<Arc<Shown>>| ok(&shown, "healthz")))
            .route("/livez", get(async |State(shown): State<Arc<Shown>>| ok(&shown, "livez")))
            .route("/readyz", get(async |State(shown): State<Arc<Shown>>| ok(&shown, "readyz")))
            .route("/metrics", get(metrics))
            .route("/metrics/slis", get(metrics))
            .route("/configz", get(configz))
            .with_state(Arc::new(Shown { registry, config, health }))
            .layer(from_fn_with_state(Arc::new(reviews), guard));
        Ok(Self { listener, router })
    }

    /// The address to which it is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.address
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// The socket fails.
    pub async fn serve(self, stop: CancellationToken) -> std::io::Result<()> {
        let stopped = async move { stop.cancelled().await };
        let service = self.router.into_make_service_with_connect_info::<Presented>();
        axum::serve(self.listener, service).with_graceful_shutdown(stopped).await
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
        Verdict::Allowed => next.run(request).await,
        Verdict::Unauthenticated => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
        Verdict::Forbidden => (StatusCode::FORBIDDEN, "Forbidden").into_response(),
        Verdict::Unknown => {
            (StatusCode::INTERNAL_SERVER_ERROR, "the guest cluster did not review it").into_response()
        }
    }
}

/// One thread does all the work. That it answers proves that it is alive.
fn ok(shown: &Shown, check: &'static str) -> &'static str {
    shown.health.answered(check);
    "ok"
}

async fn metrics(State(shown): State<Arc<Shown>>) -> Response {
    metrics_page(&shown.registry)
}

async fn configz(State(shown): State<Arc<Shown>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], shown.config.to_string()).into_response()
}

#[cfg(test)]
mod tests;
