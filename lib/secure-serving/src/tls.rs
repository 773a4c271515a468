//! TLS: the certificate, and a listener in which no handshake holds up another connection.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cluster::{Contents, Followed, FromFiles};
use serving::Tasks;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, SupportedCipherSuite,
        crypto::{CryptoProvider, ring},
        pki_types::{
            CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer,
            pem::{Error as PemError, PemObject},
        },
        version,
    },
    server::TlsStream,
};

use crate::certificate::AnyKeyHolder;

/// Timeout of a handshake: a client that connects and sends nothing must not keep a socket.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections that have finished their handshake and may wait to be accepted.
const BACKLOG: usize = 16;
/// Pause after a failed `accept`: it takes a moment until file descriptors are free again.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often certificate and key are read again (apiserver library, `dynamiccertificates.FileRefreshDuration`).
pub(crate) const REREAD_INTERVAL: Duration = Duration::from_mins(1);
/// Whether a socket on the unspecified IPv6 address is for IPv6 only, by default (Linux, ip-sysctl).
const BIND_V6_ONLY: &str = "/proc/sys/net/ipv6/bindv6only";
/// The lowest version that excludes TLS 1.2, by its Go name.
const ONLY_13: &str = "VersionTLS13";

/// How TLS is served.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificate and key. `None` = a self-signed certificate, made at each start.
    pub files: Option<(PathBuf, PathBuf)>,
    /// Lowest version, by its Go name.
    pub min_version: String,
    /// Cipher suites, by their Go names; empty = all safe ones.
    pub cipher_suites: Vec<String>,
}

/// Why HTTPS can't be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Certificate or key can't be read.
    #[error("can not use {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PemError,
    },
    /// No certificate could be made.
    #[error("can not make a certificate")]
    Make(#[from] rcgen::Error),
    /// Certificate, key, versions or suites do not fit together.
    #[error("can not serve TLS with these settings")]
    Config(#[from] tokio_rustls::rustls::Error),
    /// The address can't be bound.
    #[error("can not listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Tls {
    /// The suites that are both requested and safe. Those of TLS 1.3 can't be chosen, as in Go.
    fn suites(&self) -> Vec<SupportedCipherSuite> {
        let all = ring::default_provider().cipher_suites;
        if self.cipher_suites.is_empty() {
            return all;
        }
        let asked = |suite: &SupportedCipherSuite| {
            let name = format!("{:?}", suite.suite());
            // Go writes TLS_…, and CHACHA20_POLY1305 with or without its hash.
            suite.tls13().is_some() || self.cipher_suites.iter().any(|go| name.starts_with(go.trim()))
        };
        all.into_iter().filter(asked).collect()
    }
}

impl FromFiles for Tls {
    type Value = ServerConfig;
    type Error = TlsError;

    async fn make(&self, contents: &mut Contents) -> Result<ServerConfig, TlsError> {
        let (chain, key) = if let Some((certificate, key)) = &self.files {
            (read_certificates(certificate, contents).await?, read_key(key, contents).await?)
        } else {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
            let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
            (vec![made.cert.der().clone()], key.into())
        };
        let versions: &[_] = if self.min_version == ONLY_13 {
            &[&version::TLS13]
        } else {
            &[&version::TLS13, &version::TLS12]
        };
        let provider = CryptoProvider { cipher_suites: self.suites(), ..ring::default_provider() };
        let clients = Arc::new(AnyKeyHolder(provider.signature_verification_algorithms));
        let config =
            ServerConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions)?;
        Ok(config.with_client_cert_verifier(clients).with_single_cert(chain, key)?)
    }
}

async fn read_certificates(
    path: &Path,
    contents: &mut Contents,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path, contents).await?;
    let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>();
    chain.map_err(|source| TlsError::File { path: path.to_owned(), source })
}

async fn read_key(path: &Path, contents: &mut Contents) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path, contents).await?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

async fn read(path: &Path, contents: &mut Contents) -> Result<Vec<u8>, TlsError> {
    let wrong = |source| TlsError::File { path: path.to_owned(), source: PemError::Io(source) };
    contents.read(path).await.map_err(wrong)
}

/// Listens on `address`. The unspecified IPv4 address means all addresses of the host, of both families, as with Go's
/// `net.Listen`: kubelet probes an IPv6 address of the pod where that is its first. A host without IPv6 has IPv4 only.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && takes_both_families().await {
        let all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        match TcpListener::bind(all).await {
            Err(error) if error.kind() != ErrorKind::AddrInUse => {
                tracing::debug!(%error, "the host has no IPv6");
            }
            bound => return bound,
        }
    }
    TcpListener::bind(address).await
}

/// Whether a socket that is bound to the unspecified IPv6 address takes connections over IPv4 too (Linux, ip(7)).
async fn takes_both_families() -> bool {
    tokio::fs::read_to_string(BIND_V6_ONLY).await.is_ok_and(|text| text.trim() == "0")
}

/// Accepts connections and returns those whose handshake is done.
pub(crate) struct TlsListener {
    pub(crate) address: SocketAddr,
    ready: mpsc::Receiver<Connection>,
}

/// A connection whose handshake is done.
pub(crate) struct Connection {
    pub stream: TlsStream<TcpStream>,
    /// To be held as long as the connection is open.
    pub slot: OwnedSemaphorePermit,
}

impl TlsListener {
    /// Accepts at most `connections` at a time.
    pub(crate) async fn bind(
        address: SocketAddr,
        tls: &Tls,
        connections: usize,
        tasks: &Tasks,
    ) -> Result<Self, TlsError> {
        Self::bind_rereading(address, tls, connections, REREAD_INTERVAL, tasks).await
    }

    pub(crate) async fn bind_rereading(
        address: SocketAddr,
        tls: &Tls,
        connections: usize,
        interval: Duration,
        tasks: &Tasks,
    ) -> Result<Self, TlsError> {
        let (files, config) = Followed::open("certificate of the HTTPS endpoint", tls.clone()).await?;
        let (newer, config) = watch::channel(Arc::new(config));
        let bind = |source| TlsError::Bind { address, source };
        let listener = listen(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let (done, ready) = mpsc::channel(BACKLOG);
        let slots = Arc::new(Semaphore::new(connections));
        tasks.spawn_until_done("the HTTPS listener", accept(listener, slots, config, done));
        if tls.files.is_some() {
            tasks.spawn_until_done("the renewal of the HTTPS certificate", async move {
                let take = |config| {
                    newer.send_replace(Arc::new(config));
                };
                files.follow(interval, newer.closed(), take).await;
            });
        }
        Ok(Self { address, ready })
    }
}

async fn accept(
    listener: TcpListener,
    slots: Arc<Semaphore>,
    config: watch::Receiver<Arc<ServerConfig>>,
    done: mpsc::Sender<Connection>,
) {
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            next = next => next,
            () = done.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the HTTPS endpoint could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, done) = (TlsAcceptor::from(Arc::clone(&config.borrow())), done.clone());
        // Not supervised: the task serves one client and ends in time, and nothing that one client sends must end the
        // process.
        tokio::spawn(async move {
            match timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(done.send(Connection { stream, slot }).await),
                Ok(Err(error)) => tracing::debug!(%error, %peer, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
            }
        });
    }
}

impl TlsListener {
    /// The next connection whose handshake is done.
    pub(crate) async fn next(&mut self) -> Connection {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The task that accepts connections ends only after this listener.
            None => std::future::pending().await,
        }
    }
}
