//! Serves gRPC on a bound endpoint until the stop, then drains.
//!
//! At the stop the server accepts no new connection, sends `GOAWAY` on the others, answers the RPCs in flight and
//! removes the socket. An idle client that keeps its connection open does not delay the end. Nothing here bounds the
//! time of an RPC; [`crate::shutdown`] does.

use std::time::Duration;

use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Error, Server};

use crate::endpoint::Listener;
use crate::rpc::RpcLayer;

/// How long a connection may take to close once it has no RPC. HTTP/2's graceful end is two round trips on a local
/// socket; a client that needs longer is frozen.
const CLOSE_BOUND: Duration = Duration::from_secs(1);

/// Serves `routes` on `listener` behind `layer` until `stop` is cancelled and every RPC is answered.
pub async fn serve(
    listener: Listener,
    routes: Routes,
    layer: RpcLayer,
    stop: CancellationToken,
) -> Result<(), Error> {
    let layer = layer.until(stop.clone());
    let server = Server::builder().layer(layer.clone());
    let stopped = stop.clone().cancelled_owned();
    match listener {
        Listener::Unix(socket, _removed_at_the_end) => {
            let incoming = UnixListenerStream::new(socket);
            drained(server.serve_with_incoming_shutdown(routes, incoming, stopped), &layer, &stop).await
        }
        Listener::Tcp(socket) => {
            let incoming = TcpListenerStream::new(socket);
            drained(server.serve_with_incoming_shutdown(routes, incoming, stopped), &layer, &stop).await
        }
    }
}

/// Ends with the server, or without it when only idle connections are left.
async fn drained(
    served: impl Future<Output = Result<(), Error>>,
    layer: &RpcLayer,
    stop: &CancellationToken,
) -> Result<(), Error> {
    tokio::select! {
        ended = served => ended,
        () = answered(layer, stop) => Ok(()),
    }
}

/// Ends once `stop` is cancelled and no RPC was in flight for [`CLOSE_BOUND`].
async fn answered(layer: &RpcLayer, stop: &CancellationToken) {
    stop.cancelled().await;
    loop {
        layer.answered().await;
        tokio::time::sleep(CLOSE_BOUND).await;
        if layer.is_idle() {
            return;
        }
    }
}
