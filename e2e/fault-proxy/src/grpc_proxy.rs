//! The front before a gRPC server.

use std::{io::ErrorKind, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::Protocol,
    faults::Faults,
    front::{self, Door},
    upstream::Upstream,
};

/// Where a gRPC server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port; port 0 of a new proxy means a free one.
    Tcp(SocketAddr),
}

/// A fault proxy before a gRPC server. It ends when it is dropped.
#[derive(Debug)]
pub struct GrpcProxy {
    faults: Faults,
    place: Address,
    _front: AbortOnDropHandle<()>,
}

impl GrpcProxy {
    /// Listens at `place` and stands before `upstream`, which need not be there yet: until it is, each call is cut.
    pub async fn start(place: Address, upstream: Address) -> Result<Self> {
        let (door, place) = match place {
            Address::Unix(path) => {
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                    _ => {}
                }
                let listener =
                    UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
                (Door::Unix(listener), Address::Unix(path))
            }
            Address::Tcp(address) => {
                let listener =
                    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
                let address = listener.local_addr()?;
                (Door::Tcp(listener), Address::Tcp(address))
            }
        };
        let upstream = match upstream {
            Address::Unix(path) => Upstream::Unix(path),
            Address::Tcp(address) => Upstream::Tcp(address),
        };
        let faults = Faults::default();
        let front = front::open(door, upstream, Protocol::Grpc, faults.clone());
        Ok(Self { faults, place, _front: front })
    }

    /// The faults, and the journal of calls.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Where it listens.
    pub fn place(&self) -> &Address {
        &self.place
    }
}
