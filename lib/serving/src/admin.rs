//! The admin HTTP endpoint: `/livez`, `/readyz`, `/metrics`. Plain HTTP/1, off unless an address is given.
//!
//! The one thread that does all the program's work answers `/livez`: if that thread is blocked, no answer comes, and
//! the failed probe restarts the process. `/livez` also fails when the program reports that it is wedged. It calls no
//! other system, so that an outage of the infra cluster restarts nothing. `/readyz` names what is not ready, and
//! whether the program is being stopped. No endpoint changes anything.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::endpoint::{EndpointError, TcpAddress};
use crate::metrics_page::metrics_page;
use crate::readiness::Readiness;

/// A bound admin endpoint, which serves once [`Admin::serve`] is awaited.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    router: Router,
}

/// Returns why the program will not recover by itself, if so.
pub type Wedged = Arc<dyn Fn() -> Option<String> + Send + Sync>;

#[derive(Clone)]
struct Shown {
    wedged: Wedged,
    readiness: Readiness,
    registry: Arc<Registry>,
}

impl Admin {
    /// Binds `address` (`host:port`, or `:port` for every address, as Go programs write it).
    pub async fn bind(
        address: &str,
        wedged: Wedged,
        readiness: Readiness,
        registry: Arc<Registry>,
    ) -> Result<Self, EndpointError> {
        let listener = address.parse::<TcpAddress>()?.bind().await?;
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(Shown { wedged, readiness, registry });
        Ok(Self { listener, router })
    }

    /// The address that is bound: it has the port also if port 0 was requested.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled; requests in flight are answered.
    pub async fn serve(self, stop: CancellationToken) -> io::Result<()> {
        axum::serve(self.listener, self.router)
            .with_graceful_shutdown(async move { stop.cancelled().await })
            .await
    }
}

async fn livez(State(shown): State<Shown>) -> impl IntoResponse {
    match (shown.wedged)() {
        None => (StatusCode::OK, "ok".to_owned()),
        Some(reason) => (StatusCode::INTERNAL_SERVER_ERROR, format!("wedged: {reason}")),
    }
}

async fn readyz(State(shown): State<Shown>) -> impl IntoResponse {
    let unmet = shown.readiness.unmet();
    if unmet.is_empty() {
        (StatusCode::OK, "ok".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}", unmet.join(", ")))
    }
}

async fn metrics(State(shown): State<Shown>, request: HeaderMap) -> Response {
    metrics_page(&shown.registry, &request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics_page::OPENMETRICS;
    use prometheus_client::metrics::counter::Counter;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        answer
    }

    #[tokio::test]
    async fn shows_liveness_readiness_and_metrics_until_stopped() {
        let readiness = Readiness::default();
        let socket = readiness.condition("socket");
        let mut registry = Registry::with_prefix("kubevirt_csi");
        let counter = Counter::<u64>::default();
        registry.register("seen", "Things seen", counter.clone());
        counter.inc();

        let hanging = Arc::new(AtomicBool::new(false));
        let wedged: Wedged = {
            let hanging = hanging.clone();
            Arc::new(move || hanging.load(Ordering::Relaxed).then(|| "an operation hangs".to_owned()))
        };
        let admin = Admin::bind("127.0.0.1:0", wedged, readiness, Arc::new(registry)).await.expect("binds");
        let address = admin.local_addr().expect("has an address");
        let stop = CancellationToken::new();
        let served = tokio::spawn(admin.serve(stop.clone()));

        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        hanging.store(true, Ordering::Relaxed);
        let wedged = get(address, "/livez").await;
        assert!(wedged.starts_with("HTTP/1.1 500") && wedged.ends_with("an operation hangs"), "{wedged}");
        let refused = get(address, "/readyz").await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.ends_with("not ready: socket"), "{refused}");
        socket.set(true);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let metrics = get(address, "/metrics").await;
        assert!(metrics.contains(OPENMETRICS) && metrics.contains("kubevirt_csi_seen_total 1"), "{metrics}");
        assert!(get(address, "/debug").await.starts_with("HTTP/1.1 404"));

        stop.cancel();
        served.await.expect("joins").expect("serves");
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens after the stop");
    }
}
