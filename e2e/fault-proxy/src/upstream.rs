//! The real server: how it is reached.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, rustls::ClientConfig, rustls::pki_types::ServerName};

/// A connected byte stream of any kind.
pub(super) type Stream = Box<dyn Io>;

/// What a byte stream must be.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Where the real server listens.
#[derive(Clone)]
pub(super) enum Upstream {
    /// TLS over TCP.
    Tls { address: SocketAddr, name: ServerName<'static>, config: Arc<ClientConfig> },
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl Upstream {
    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Stream> {
        Ok(match self {
            Self::Tls { address, name, config } => {
                let stream = tcp(*address).await?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name.clone(), stream).await.context("TLS with the real server")?)
            }
            Self::Tcp(address) => Box::new(tcp(*address).await?),
            Self::Unix(path) => Box::new(
                UnixStream::connect(path).await.with_context(|| format!("connect to {}", path.display()))?,
            ),
        })
    }
}

async fn tcp(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
