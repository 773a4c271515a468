//! Where a gRPC program listens: parses `unix:/x`, `unix:///x` and `tcp://host:port`, and binds.
//!
//! Guarantees for a unix socket: a socket that an earlier process left is removed, anything else at that path is kept
//! and refused; the mode is set before anybody can connect; nothing else is created beside it (CSI specification,
//! "Socket"). This module does not create the parent directory: that directory is a volume of the pod, and if it is
//! missing, a mount is wrong.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{TcpListener, UnixListener, UnixSocket};

/// Only our own user may connect. Go's default (0755) gives others no write permission either, and without it
/// they can't connect.
const SOCKET_MODE: u32 = 0o600;

/// Length of the queue of connections not yet accepted. A handful of sidecars and one kubelet connect;
/// Linux's own default (`net.core.somaxconn` before 5.4) is far more than they need.
const BACKLOG: u32 = 128;

/// What can be wrong with an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The text is not an endpoint.
    #[error("endpoint {text:?} is not understood; write unix:///dir/csi.sock or tcp://host:port")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// The text is not `host:port`.
    #[error("address {text:?} is not understood; write ip:port, or :port for every address")]
    MalformedAddress {
        /// What was given.
        text: String,
    },
    /// The directory that should hold the socket is not there.
    #[error("directory {} for the socket does not exist; mount a volume there or change --endpoint", .directory.display())]
    NoDirectory {
        /// The missing directory.
        directory: PathBuf,
    },
    /// Something that is no socket has the socket's path.
    #[error("{} exists and is not a socket; remove it or change --endpoint", .path.display())]
    Occupied {
        /// The occupied path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("can not listen on {target}; check that the address is free and permitted")]
    Io {
        /// Where.
        target: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A parsed endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket at this absolute path.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(TcpAddress),
}

/// `ip:port`, or every address of the machine when no host is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpAddress {
    ip: Option<std::net::IpAddr>,
    port: u16,
}

/// A bound endpoint.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket, and what to remove at the end.
    Unix(UnixListener, SocketFile),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// The file of a bound unix socket; dropping it removes the file if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let malformed = || EndpointError::Malformed { text: text.to_owned() };
        if let Some(rest) = text.strip_prefix("unix:") {
            // `unix:/x` has no authority part; `unix:///x` has an empty one; `unix://x/y` would name a host.
            let path = rest.strip_prefix("//").unwrap_or(rest);
            return if path.starts_with('/') && !path.ends_with('/') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(malformed())
            };
        }
        let address = text.strip_prefix("tcp://").ok_or_else(malformed)?;
        address.parse().map(Self::Tcp).map_err(|_: EndpointError| malformed())
    }
}

impl FromStr for TcpAddress {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let malformed = || EndpointError::MalformedAddress { text: text.to_owned() };
        if let Some(port) = text.strip_prefix(':') {
            return Ok(Self { ip: None, port: port.parse().map_err(|_| malformed())? });
        }
        let address: SocketAddr = text.parse().map_err(|_| malformed())?;
        Ok(Self { ip: Some(address.ip()), port: address.port() })
    }
}

impl TcpAddress {
    /// Binds. Without a host: every IPv6 and IPv4 address, or only IPv4 where the machine has no IPv6.
    pub(crate) async fn bind(&self) -> Result<TcpListener, EndpointError> {
        let any = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
        let candidates = self.ip.as_ref().map_or(any.as_slice(), std::slice::from_ref);
        let addresses: Vec<SocketAddr> =
            candidates.iter().map(|ip| SocketAddr::new(*ip, self.port)).collect();
        TcpListener::bind(addresses.as_slice()).await.map_err(|source| EndpointError::Io {
            target: addresses.first().map(ToString::to_string).unwrap_or_default(),
            source,
        })
    }
}

impl Endpoint {
    /// Binds the endpoint. Connections queue from here on, also before the first is accepted.
    pub async fn bind(&self) -> Result<Listener, EndpointError> {
        match self {
            Self::Unix(path) => bind_unix(path),
            Self::Tcp(address) => {
                let listener = address.bind().await?;
                tracing::warn!(
                    "--endpoint is a TCP address, at which nobody is authenticated: whoever reaches it may do all that this \
                     program may; use a unix socket"
                );
                Ok(Listener::Tcp(listener))
            }
        }
    }
}

fn bind_unix(path: &Path) -> Result<Listener, EndpointError> {
    let io = |source| EndpointError::Io { target: path.display().to_string(), source };
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        return Err(EndpointError::NoDirectory { directory: directory.to_owned() });
    }
    remove_stale(path)?;
    let socket = UnixSocket::new_stream().map_err(io)?;
    socket.bind(path).map_err(io)?;
    // Between bind and listen nobody can connect, so the mode is never too wide.
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(io)?;
    let listener = socket.listen(BACKLOG).map_err(io)?;
    let metadata = fs::symlink_metadata(path).map_err(io)?;
    let file = SocketFile { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
    Ok(Listener::Unix(listener, file))
}

fn remove_stale(path: &Path) -> Result<(), EndpointError> {
    let io = |source| EndpointError::Io { target: path.display().to_string(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(EndpointError::Occupied { path: path.to_owned() });
    }
    // A rolling update may start us while the old process drains; callers then come to us, and it ends alone.
    if BlockingUnixStream::connect(path).is_ok() {
        tracing::warn!(socket = %path.display(), "taking over a socket on which another process still listens");
    }
    fs::remove_file(path).map_err(io)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "can not remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("unix:/csi/csi.sock", Some("/csi/csi.sock"))]
    #[case("unix:///var/lib/csi/csi.sock", Some("/var/lib/csi/csi.sock"))]
    #[case("unix://csi/csi.sock", None)]
    #[case("unix:csi.sock", None)]
    #[case("unix:///csi/", None)]
    #[case("unix:", None)]
    #[case("/csi/csi.sock", None)]
    #[case("http://localhost:1", None)]
    #[case("tcp://localhost", None)]
    #[case("", None)]
    fn parses_unix_endpoints_with_an_absolute_path(#[case] text: &str, #[case] path: Option<&str>) {
        match (text.parse::<Endpoint>(), path) {
            (Ok(endpoint), Some(path)) => assert_eq!(endpoint, Endpoint::Unix(PathBuf::from(path))),
            (Err(EndpointError::Malformed { text: named }), None) => assert_eq!(named, text),
            (other, _) => panic!("{text}: {other:?}"),
        }
    }

    #[rstest]
    #[case("tcp://127.0.0.1:10000", Some("127.0.0.1"), 10000)]
    #[case("tcp://[::1]:10000", Some("::1"), 10000)]
    #[case("tcp://:10000", None, 10000)]
    fn parses_tcp_endpoints(#[case] text: &str, #[case] ip: Option<&str>, #[case] port: u16) {
        let ip = ip.map(|ip| ip.parse().expect("an address"));
        assert_eq!(text.parse::<Endpoint>().expect("parses"), Endpoint::Tcp(TcpAddress { ip, port }));
    }

    fn endpoint_in(directory: &Path) -> (Endpoint, PathBuf) {
        let path = directory.join("csi.sock");
        (Endpoint::Unix(path.clone()), path)
    }

    #[tokio::test]
    async fn binds_a_socket_that_only_its_owner_may_use_and_removes_it_at_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let (endpoint, path) = endpoint_in(directory.path());
        let listener = endpoint.bind().await.expect("binds");
        let mode = fs::symlink_metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 1, "nothing beside the socket");
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn replaces_a_socket_that_a_killed_process_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let (endpoint, path) = endpoint_in(directory.path());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "std leaves the file behind, as a killed process does");
        let _listener = endpoint.bind().await.expect("binds again");
        BlockingUnixStream::connect(&path).expect("is ours now");
    }

    #[tokio::test]
    async fn a_process_that_ends_late_leaves_the_socket_of_its_successor_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (endpoint, path) = endpoint_in(directory.path());
        let old = endpoint.bind().await.expect("binds");
        let _new = endpoint.bind().await.expect("takes over");
        drop(old);
        BlockingUnixStream::connect(&path).expect("the successor is still reachable");
    }

    #[tokio::test]
    async fn refuses_to_remove_what_is_no_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let (endpoint, path) = endpoint_in(directory.path());
        fs::write(&path, "precious").expect("writes");
        assert!(matches!(endpoint.bind().await, Err(EndpointError::Occupied { .. })));
        assert_eq!(fs::read_to_string(&path).expect("reads"), "precious");
    }

    #[tokio::test]
    async fn names_the_missing_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("not-mounted");
        let error = Endpoint::Unix(missing.join("csi.sock")).bind().await.expect_err("refuses");
        assert!(error.to_string().contains("not-mounted for the socket does not exist"), "{error}");
    }
}
