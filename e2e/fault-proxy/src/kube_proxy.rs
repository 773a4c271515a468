//! The front before an API server.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};
use http::Uri;
use k8s_openapi::ByteString;
use kube::config::{Cluster, Kubeconfig};
use rcgen::generate_simple_self_signed;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::Protocol,
    faults::Faults,
    front::{self, Door},
    upstream::Upstream,
};

/// The only protocol that the front offers (RFC 7301): a cut of an HTTP/1.1 connection meets one call.
const ALPN: &[u8] = b"http/1.1";

/// The port of a URL that names none.
const HTTPS_PORT: u16 = 443;

/// A fault proxy before an API server, on a port of 127.0.0.1. It ends when it is dropped.
#[derive(Debug)]
pub struct KubeProxy {
    faults: Faults,
    kubeconfig: Kubeconfig,
    _front: AbortOnDropHandle<()>,
}

impl KubeProxy {
    /// Stands before the API server of `kubeconfig`'s first cluster. The client's bearer token passes through; a client
    /// certificate would not.
    pub async fn start(kubeconfig: &Kubeconfig) -> Result<Self> {
        let cluster = kubeconfig.clusters.first().and_then(|named| named.cluster.as_ref());
        let upstream = upstream(cluster.context("the kubeconfig has no cluster")?).await?;
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let address = listener.local_addr()?;
        let (tls, certificate) = acceptor(address.ip())?;
        let door = Door::Tls(listener, tls);
        let faults = Faults::default();
        let front = front::open(door, upstream, Protocol::Kubernetes, faults.clone());
        let kubeconfig = pointed_at(kubeconfig, address, &certificate)?;
        Ok(Self { faults, kubeconfig, _front: front })
    }

    /// The faults, and the journal of calls.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The kubeconfig for the program under test: the given one, with the proxy's address and authority.
    pub fn kubeconfig(&self) -> &Kubeconfig {
        &self.kubeconfig
    }
}

pub(super) async fn upstream(cluster: &Cluster) -> Result<Upstream> {
    let server: Uri = cluster.server.as_deref().context("the cluster has no server")?.parse()?;
    let host = server.host().context("the server has no host")?;
    let port = server.port_u16().unwrap_or(HTTPS_PORT);
    let mut addresses = tokio::net::lookup_host((host, port)).await?;
    let address = addresses.next().with_context(|| format!("{host} has no address"))?;
    let pem = cluster.certificate_authority_data.as_deref().context("the cluster has no inline authority")?;
    let pem: ByteString = serde_json::from_value(json!(pem)).context("the authority is not base64")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem.0) {
        roots.add(certificate.context("the authority is not PEM")?)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let name = ServerName::try_from(host.to_owned())?;
    Ok(Upstream::Tls { address, name, config: Arc::new(config) })
}

/// Serves TLS at `address` with a new self-signed certificate. A client trusts that certificate, which is returned as PEM.
pub(super) fn acceptor(address: IpAddr) -> Result<(TlsAcceptor, String)> {
    let signed =
        generate_simple_self_signed([address.to_string()]).context("sign the proxy's certificate")?;
    let chain = vec![signed.cert.der().clone()];
    let key = PrivateKeyDer::Pkcs8(signed.signing_key.serialize_der().into());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), signed.cert.pem()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn pointed_at(kubeconfig: &Kubeconfig, address: SocketAddr, authority: &str) -> Result<Kubeconfig> {
    let mut pointed = kubeconfig.clone();
    let cluster = pointed.clusters.first_mut().and_then(|named| named.cluster.as_mut());
    let cluster = cluster.context("the kubeconfig has no cluster")?;
    cluster.server = Some(format!("https://{address}"));
    // `ByteString` serializes as the Kubernetes API carries bytes: in base64.
    let encoded = serde_json::to_value(ByteString(authority.as_bytes().to_vec()))?;
    cluster.certificate_authority_data = encoded.as_str().map(str::to_owned);
    Ok(pointed)
}
