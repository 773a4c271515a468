//! Where clients come in: listens, and serves each connection in a task of its own.

use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::{Connection, Protocol},
    faults::Faults,
    upstream::{Stream, Upstream},
};

/// What a front listens on.
pub(super) enum Door {
    /// TLS over TCP.
    Tls(TcpListener, TlsAcceptor),
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

/// Lets clients in until the handle is dropped; their connections end with it.
pub(super) fn open(
    door: Door,
    upstream: Upstream,
    protocol: Protocol,
    faults: Faults,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = door.accept() => match accepted {
                    Ok(_) if faults.is_away() => {}
                    Ok(entrant) => {
                        let connection = Connection::new(faults.clone(), upstream.clone(), protocol);
                        connections.spawn(async move {
                            match entrant.secured().await {
                                Ok(stream) => connection.serve(stream).await,
                                Err(error) => tracing::debug!("a client did not speak TLS: {error}"),
                            }
                        });
                    }
                    Err(error) => tracing::warn!("accept: {error}"),
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }))
}

/// A client that has connected and not yet authenticated.
enum Entrant {
    Tls(tokio::net::TcpStream, TlsAcceptor),
    Plain(Stream),
}

impl Door {
    async fn accept(&self) -> std::io::Result<Entrant> {
        Ok(match self {
            Self::Tls(listener, acceptor) => Entrant::Tls(tcp(listener).await?, acceptor.clone()),
            Self::Tcp(listener) => Entrant::Plain(Box::new(tcp(listener).await?)),
            Self::Unix(listener) => Entrant::Plain(Box::new(listener.accept().await?.0)),
        })
    }
}

impl Entrant {
    async fn secured(self) -> std::io::Result<Stream> {
        Ok(match self {
            Self::Tls(stream, acceptor) => Box::new(acceptor.accept(stream).await?),
            Self::Plain(stream) => stream,
        })
    }
}

async fn tcp(listener: &TcpListener) -> std::io::Result<tokio::net::TcpStream> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
