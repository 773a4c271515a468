//! TLS: the certificate, and a listener in which no handshake holds up another connection.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use serving::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, SupportedCipherSuite, version};
use tokio_rustls::server::TlsStream;

use crate::certificate::{AnyKeyHolder, Presented};
use crate::reread::reread;

/// Timeout of a handshake: a client that connects and sends nothing must not keep a socket.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections that have finished their handshake and may wait to be accepted.
const BACKLOG: usize = 16;
/// Pause after a failed `accept`: it takes a moment until file descriptors are free again.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often certificate and key are read again (apiserver library, `dynamiccertificates.FileRefreshDuration`).
pub(crate) const REREAD_INTERVAL: Duration = Duration::from_mins(1);
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
    fn config(&self) -> Result<ServerConfig, TlsError> {
        let (chain, key) = if let Some((certificate, key)) = &self.files {
            read(certificate, key)?
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

    /// The bytes of certificate and key.
    fn read(&self) -> Result<[Vec<u8>; 2], TlsError> {
        let bytes = |path: &PathBuf| {
            std::fs::read(path)
                .map_err(|source| TlsError::File { path: path.clone(), source: PemError::Io(source) })
        };
        self.files.as_ref().map_or(Ok([const { Vec::new() }; 2]), |(certificate, key)| {
            Ok([bytes(certificate)?, bytes(key)?])
        })
    }

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

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(certificate: &PathBuf, key: &PathBuf) -> Result<Identity, TlsError> {
    let wrong = |path: &PathBuf| {
        let path = path.clone();
        move |source| TlsError::File { path, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(wrong(certificate))?;
    Ok((chain, PrivateKeyDer::from_pem_file(key).map_err(wrong(key))?))
}

/// Accepts connections and returns those whose handshake is done.
pub(crate) struct TlsListener {
    pub(crate) address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    pub(crate) async fn bind(address: SocketAddr, tls: &Tls, tasks: &Tasks) -> Result<Self, TlsError> {
        Self::bind_rereading(address, tls, REREAD_INTERVAL, tasks).await
    }

    pub(crate) async fn bind_rereading(
        address: SocketAddr,
        tls: &Tls,
        interval: Duration,
        tasks: &Tasks,
    ) -> Result<Self, TlsError> {
        // Read before the files are used, so that a later read notices a change in between.
        let last = tls.read()?;
        let (newer, config) = watch::channel(Arc::new(tls.config()?));
        let bind = |source| TlsError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let (done, ready) = mpsc::channel(BACKLOG);
        tasks.spawn_until_done("the HTTPS listener", accept(listener, config, done));
        if tls.files.is_some() {
            let follow = follow(tls.clone(), last, interval, newer);
            tasks.spawn_until_done("the renewal of the HTTPS certificate", follow);
        }
        Ok(Self { address, ready })
    }
}

/// Switches to a renewed certificate when the files change.
async fn follow(
    tls: Tls,
    mut last: [Vec<u8>; 2],
    interval: Duration,
    newer: watch::Sender<Arc<ServerConfig>>,
) {
    let read = || {
        let bytes = tls.read()?;
        if last == bytes {
            return Ok(None);
        }
        let config = tls.config()?;
        last = bytes;
        Ok::<_, TlsError>(Some(config))
    };
    let take = |config| {
        newer.send_replace(Arc::new(config));
    };
    reread(&newer, interval, "certificate of the HTTPS endpoint", read, take).await;
}

async fn accept(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
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
                Ok(Ok(stream)) => drop(done.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%error, %peer, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The task that accepts connections ends only after this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Presented {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        Self(stream.io().get_ref().1.peer_certificates().unwrap_or_default().into())
    }
}
