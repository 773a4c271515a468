//! Serves gRPC on a bound endpoint until told to stop, then drains.
//!
//! On the stop: no new connection, `GOAWAY` on the others, RPCs in flight are answered; then the socket is removed. A client
//! that holds its connection open and asks nothing does not hold up the end. How long an RPC may take is not bounded
//! here; [`crate::shutdown`] does that.

use std::time::Duration;

use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Error, Server};

use crate::endpoint::Listener;
use crate::rpc::RpcLayer;

/// How long a connection may take to say goodbye once nothing is asked on it. HTTP/2's graceful end is two round trips on
/// a local socket; a client that needs longer is frozen.
const GOODBYE: Duration = Duration::from_secs(1);

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

/// Ends with the server, or without it when only silent connections are left.
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

/// Ends when `stop` is cancelled and nothing has been asked for the time of a goodbye.
async fn answered(layer: &RpcLayer, stop: &CancellationToken) {
    stop.cancelled().await;
    loop {
        layer.answered().await;
        tokio::time::sleep(GOODBYE).await;
        if layer.is_idle() {
            return;
        }
    }
}
