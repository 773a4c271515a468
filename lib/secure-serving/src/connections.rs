//! Serves the connections of the endpoint, within bounds: anybody who reaches the port can open a connection and then send
//! nothing, and each holds a file descriptor and memory.

use std::{pin::pin, time::Duration};

use axum::{Extension, Router, extract::ConnectInfo};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    certificate::Presented,
    tls::{Connection, TlsListener},
};

/// What the clients together, and each of them, may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at a time, also those in their handshake; further ones wait in the kernel's queue.
    pub connections: usize,
    /// How long a connection may take for the head of a request, or be without one.
    pub head: Duration,
}

impl Bounds {
    /// The bounds of a program. A scraper and kubelet have a connection or two each.
    pub(crate) const DEFAULT: Self = Self { connections: 64, head: Duration::from_secs(10) };
}

/// Serves until `stop`, and then answers the requests that have begun.
pub(crate) async fn serve(
    mut listener: TlsListener,
    router: Router,
    bounds: Bounds,
    stop: CancellationToken,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.head);
    let connections = TaskTracker::new();
    while let Some(connection) = stop.run_until_cancelled(listener.next()).await {
        let Connection { stream, slot } = connection;
        let presented = Extension(ConnectInfo(Presented::of(&stream)));
        let service = TowerToHyperService::new(router.clone().layer(presented));
        let served = http.serve_connection(TokioIo::new(stream), service);
        let stop = stop.clone();
        // Not supervised: the task serves one client, and nothing that one client sends must end the process.
        connections.spawn(async move {
            let _slot = slot;
            let mut served = pin!(served);
            let ended = tokio::select! {
                ended = served.as_mut() => ended,
                () = stop.cancelled() => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the HTTPS endpoint ended");
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}
