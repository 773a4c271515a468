//! A real TLS endpoint with an API server that knows two tokens.

mod certificates;

use serving::metrics_page::{OPENMETRICS, PROMETHEUS_TEXT};

use super::*;
use crate::{reviews::ReviewTimes, shown_tokens::ShownTokens};
use kube::client::{Body, Client};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{DigitallySignedStruct, Error, SignatureScheme};

const TIMES: ReviewTimes = ReviewTimes {
    token: Duration::from_secs(10),
    allowed: Duration::from_secs(10),
    denied: Duration::from_secs(10),
};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Counts the reviews.
fn guest(reviews: Arc<AtomicUsize>) -> Client {
    guest_told(move |_| {
        reviews.fetch_add(1, Ordering::Relaxed);
    })
}

/// Answers reviews: `reader` may read /metrics, `other` is another user. `tell` gets each review.
fn guest_told(tell: impl Fn(&Value) + Clone + Send + 'static) -> Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let tell = tell.clone();
        async move {
            let path = request.uri().path().to_owned();
            let asked: Value = serde_json::from_slice(&request.into_body().collect_bytes().await?).unwrap();
            tell(&asked["spec"]);
            let status = if path.ends_with("/tokenreviews") {
                let name = asked["spec"]["token"].as_str().unwrap();
                let known = matches!(name, "reader" | "other");
                json!({ "authenticated": known, "user": { "username": name } })
            } else {
                let spec = &asked["spec"];
                let attributes = &spec["nonResourceAttributes"];
                let wanted = json!({ "path": "/metrics", "verb": "get" });
                json!({ "allowed": spec["user"] == "reader" && *attributes == wanted })
            };
            let (_, kind) = path.rsplit_once('/').unwrap();
            let (group, kind) = match kind {
                "tokenreviews" => ("authentication.k8s.io/v1", "TokenReview"),
                _ => ("authorization.k8s.io/v1", "SubjectAccessReview"),
            };
            let review =
                json!({ "apiVersion": group, "kind": kind, "metadata": {}, "spec": {}, "status": status });
            Ok::<_, kube::Error>(http::Response::new(Body::from(review.to_string().into_bytes())))
        }
    });
    Client::new(service, "default")
}

/// Accepts every server certificate: these tests do not check whose it is.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn connect(address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
    connect_as(address, None).await
}

async fn connect_as(
    address: SocketAddr,
    identity: Option<Arc<dyn ResolvesClientCert>>,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let config = config.unwrap().dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    let config = match identity {
        Some(identity) => config.with_client_cert_resolver(identity),
        None => config.with_no_client_auth(),
    };
    let connector = TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await.unwrap();
    connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

async fn get(address: SocketAddr, path: &str, token: Option<&str>) -> String {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    exchange(connect(address).await, path, &token).await.unwrap()
}

/// Sends the last request of a connection, with more lines in its head.
async fn exchange(
    mut stream: tokio_rustls::client::TlsStream<TcpStream>,
    path: &str,
    more: &str,
) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

async fn endpoint(client: Client, tls: &Tls) -> (SocketAddr, CancellationToken) {
    endpoint_trusting(Trust::nobody(), client, tls).await
}

async fn endpoint_trusting(trust: Trust, client: Client, tls: &Tls) -> (SocketAddr, CancellationToken) {
    endpoint_bounded(Bounds::DEFAULT, trust, client, tls).await
}

async fn endpoint_bounded(
    bounds: Bounds,
    trust: Trust,
    client: Client,
    tls: &Tls,
) -> (SocketAddr, CancellationToken) {
    showing(bounds, trust, client, tls, shown(Readiness::default(), Box::new(|_, _| {}))).await
}

async fn showing(
    bounds: Bounds,
    trust: Trust,
    client: Client,
    tls: &Tls,
    shown: Shown,
) -> (SocketAddr, CancellationToken) {
    let free = ["/healthz", "/readyz", "/livez"].map(str::to_owned).to_vec();
    let reviews = Reviews::new(trust, "guest", (client.clone(), ShownTokens::All), client, free, TIMES);
    let address = "127.0.0.1:0".parse().unwrap();
    let tasks = Tasks::default();
    let endpoint = SecureEndpoint::reviewing((address, bounds), tls, reviews, shown, &tasks).await.unwrap();
    let (address, stop) = (endpoint.local_addr(), CancellationToken::new());
    tokio::spawn(endpoint.serve(stop.clone()));
    (address, stop)
}

type HealthChecked = Box<dyn Fn(&'static str, bool) + Send + Sync>;

fn shown(readiness: Readiness, health_checked: HealthChecked) -> Shown {
    Shown { registry: Registry::default(), config: json!({ "a": 1 }), readiness, health_checked }
}

/// kubermatic/kubermatic#15506: a program that leads and serves nothing looked well.
#[tokio::test]
async fn a_program_that_serves_nothing_yet_is_alive_and_not_ready() {
    let failed = Arc::new(AtomicUsize::new(0));
    let readiness = Readiness::default();
    let served = readiness.condition("load balancers");
    let counted = failed.clone();
    let health_checked = Box::new(move |kind, passed| {
        assert!(passed || kind == "readyz");
        counted.fetch_add(usize::from(!passed), Ordering::Relaxed);
    });
    let (client, shown) = (guest(Arc::default()), shown(readiness, health_checked));
    let (address, _stop) = showing(Bounds::DEFAULT, Trust::nobody(), client, &Tls::default(), shown).await;
    let answer = get(address, "/readyz", None).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready: load balancers"), "{answer}");
    for path in ["/healthz", "/livez"] {
        assert!(get(address, path, None).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    assert_eq!(failed.load(Ordering::Relaxed), 1);
    served.set(true);
    assert!(get(address, "/readyz", None).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn the_guest_cluster_says_who_may_read_what() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (address, _stop) = endpoint(guest(asked.clone()), &Tls::default()).await;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert!(get(address, path, None).await.starts_with("HTTP/1.1 200"), "{path} is free");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0, "probes ask nobody");
    assert!(get(address, "/metrics", None).await.starts_with("HTTP/1.1 403"));
    assert!(get(address, "/metrics", Some("stranger")).await.starts_with("HTTP/1.1 401"));
    assert!(get(address, "/metrics", Some("other")).await.starts_with("HTTP/1.1 403"));
    assert!(get(address, "/configz", Some("reader")).await.starts_with("HTTP/1.1 403"));
    let metrics = get(address, "/metrics", Some("reader")).await;
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains(OPENMETRICS), "{metrics}");
    let old = "Authorization: Bearer reader\r\nAccept: text/plain;version=0.0.4\r\n";
    let metrics = exchange(connect(address).await, "/metrics", old).await.unwrap();
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains(PROMETHEUS_TEXT), "{metrics}");
    let before = asked.load(Ordering::Relaxed);
    assert!(get(address, "/metrics", Some("reader")).await.starts_with("HTTP/1.1 200"));
    assert_eq!(asked.load(Ordering::Relaxed), before, "a known answer is not asked for again");
}

#[tokio::test]
async fn a_guest_cluster_that_does_not_answer_opens_nothing() {
    let service = tower::service_fn(|_: http::Request<Body>| async {
        Err::<http::Response<Body>, _>(std::io::Error::other("gone"))
    });
    let (address, _stop) = endpoint(Client::new(service, "default"), &Tls::default()).await;
    let unknown = get(address, "/metrics", Some("reader")).await;
    assert!(unknown.starts_with("HTTP/1.1 500"), "{unknown}");
    assert!(unknown.ends_with("the guest cluster did not review it"), "{unknown}");
    assert!(get(address, "/healthz", None).await.starts_with("HTTP/1.1 200"));
}

/// An endpoint with these bounds that allows everybody /healthz.
async fn bounded(connections: usize, head: Duration) -> (SocketAddr, CancellationToken) {
    let client = guest(Arc::default());
    endpoint_bounded(Bounds { connections, head }, Trust::nobody(), client, &Tls::default()).await
}

/// Whether the server ends the connection: reads to its end.
async fn is_ended(mut stream: tokio_rustls::client::TlsStream<TcpStream>) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.is_ok()
}

#[rstest::rstest]
#[case::nothing("", false)]
#[case::half_a_head("GET /healthz HTTP/1.1\r\nHost: loc", false)]
#[case::nothing_after_an_answer("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", true)]
#[tokio::test]
async fn a_client_that_sends_nothing_is_not_waited_for(#[case] sent: &str, #[case] is_answered: bool) {
    let (address, _stop) = bounded(64, Duration::from_millis(100)).await;
    let mut stream = connect(address).await;
    stream.write_all(sent.as_bytes()).await.unwrap();
    if is_answered {
        let mut first = [0; 15];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
    }
    assert!(is_ended(stream).await, "the connection is still open");
}

#[tokio::test]
async fn connections_above_the_bound_wait_and_are_served_when_others_end() {
    let (address, _stop) = bounded(2, PATIENCE * 2).await;
    let held = [connect(address).await, connect(address).await];
    let third = get(address, "/healthz", None);
    let mut third = std::pin::pin!(third);
    // Each of the two has its slot before its handshake is done, so the third can't get one.
    assert!(tokio::time::timeout(Duration::from_millis(200), third.as_mut()).await.is_err());
    let [first, _second] = held;
    drop(first);
    let answer = tokio::time::timeout(PATIENCE, third).await.expect("a slot is free");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_stop_ends_connections_without_a_request() {
    let (address, stop) = bounded(64, PATIENCE * 2).await;
    let idle = connect(address).await;
    assert!(get(address, "/healthz", None).await.starts_with("HTTP/1.1 200"));
    stop.cancel();
    assert!(is_ended(idle).await, "the connection is still open");
}

#[tokio::test]
async fn the_settings_decide_what_needs_no_review_and_answered_checks_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca");
    let (asked, checked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let settings = || SecureServingSettings {
        address: "127.0.0.1:0".parse().unwrap(),
        tls: Tls::default(),
        cluster: "guest",
        authentication: guest(asked.clone()),
        shown_tokens: ShownTokens::All,
        authorization: guest(asked.clone()),
        always_allowed: vec!["/livez*".to_owned()],
        times: TIMES,
        client_ca: Some(file.clone()),
        front_proxy: None,
        lookup: false,
        tolerate_lookup_failure: false,
    };
    let counting = || {
        let checked = checked.clone();
        let health_checked = Box::new(move |kind, passed| {
            assert_eq!((kind, passed), ("livez", true));
            checked.fetch_add(1, Ordering::Relaxed);
        });
        shown(Readiness::default(), health_checked)
    };
    let bind = async || SecureEndpoint::bind(settings(), counting(), &Tasks::default()).await;
    assert!(matches!(bind().await, Err(BindError::Trust(_))), "the file does not exist");
    std::fs::write(&file, crate::pki::Ca::new("clients").pem).unwrap();
    let endpoint = bind().await.unwrap();
    let (address, stop) = (endpoint.local_addr(), CancellationToken::new());
    let serving = tokio::spawn(endpoint.serve(stop.clone()));
    assert!(get(address, "/livez", None).await.starts_with("HTTP/1.1 200"));
    assert_eq!((checked.load(Ordering::Relaxed), asked.load(Ordering::Relaxed)), (1, 0));
    assert!(get(address, "/healthz", None).await.starts_with("HTTP/1.1 403"));
    assert_eq!((checked.load(Ordering::Relaxed), asked.load(Ordering::Relaxed)), (1, 1));
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn serves_with_the_versions_and_suites_of_hypershift() {
    let tls = Tls {
        files: None,
        min_version: "VersionTLS12".to_owned(),
        cipher_suites: [
            "TLS_AES_128_GCM_SHA256",
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            "TLS_RSA_WITH_AES_128_CBC_SHA",
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    let (address, stop) = endpoint(guest(Arc::default()), &tls).await;
    assert!(get(address, "/healthz", None).await.starts_with("HTTP/1.1 200"));
    stop.cancel();
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up_when_it_is_whole() {
    const INTERVAL: Duration = Duration::from_millis(10);
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let renewed = || {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem(), made.cert.der().clone())
    };
    let shown = async |address| {
        let stream = connect(address).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let first = renewed();
    std::fs::write(&certificate, &first.0).unwrap();
    std::fs::write(&key, &first.1).unwrap();
    let tls = Tls { files: Some((certificate.clone(), key.clone())), ..Tls::default() };
    let (address, tasks) = ("127.0.0.1:0".parse().unwrap(), Tasks::default());
    let listener =
        TlsListener::bind_rereading(address, &tls, Bounds::DEFAULT.connections, INTERVAL, &tasks).await;
    let listener = listener.unwrap();
    let address = listener.address;
    assert_eq!(shown(address).await, first.2);

    let second = renewed();
    std::fs::write(&certificate, &second.0).unwrap();
    for _ in 0..5 {
        // The key is still the old one, which does not fit the new certificate.
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(shown(address).await, first.2);
    }
    std::fs::write(&key, &second.1).unwrap();
    let taken_up = async {
        while shown(address).await != second.2 {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), taken_up).await.unwrap();
    drop(listener);
}

/// kubelet probes the first address of a pod, which is an IPv6 one on IPv6-first infra.
#[tokio::test]
async fn the_unspecified_address_takes_both_families_and_a_specified_one_only_its_own() {
    let has_ipv6 = TcpListener::bind("[::1]:0").await.is_ok();
    for (bind, v4, v6) in [("0.0.0.0", true, true), ("::", true, true), ("127.0.0.1", true, false)] {
        let (address, tasks) = (SocketAddr::new(bind.parse().unwrap(), 0), Tasks::default());
        let listener =
            TlsListener::bind(address, &Tls::default(), Bounds::DEFAULT.connections, &tasks).await.unwrap();
        for (to, is_taken) in [("127.0.0.1", v4), ("::1", v6 && has_ipv6)] {
            let to = SocketAddr::new(to.parse().unwrap(), listener.address.port());
            assert_eq!(TcpStream::connect(to).await.is_ok(), is_taken, "{bind}, {to}");
        }
    }
}
