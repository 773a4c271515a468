//! The user that a client's certificate proves, and for whom a front proxy may speak.

use std::sync::Mutex;

use rstest::rstest;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::sign::CertifiedKey;

use super::*;
use crate::front_proxy::FrontProxyRules;
use crate::pki::{Ca, Identity, client, early, expired, member, server};
use crate::trust::{Trust, TrustSources};

/// How soon files are read again in these tests.
const INTERVAL: Duration = Duration::from_millis(10);
/// The headers that a front proxy sends.
const SPEAKS_FOR: &str = "X-Remote-User: reader\r\nX-Remote-Group: b\r\nX-Remote-Group: c\r\n\
                          X-Remote-Extra-Acme.com%2fProject: p1\r\n";

/// An endpoint that trusts the authorities in a folder.
struct World {
    folder: tempfile::TempDir,
    clients: Ca,
    proxies: Ca,
    address: SocketAddr,
    /// The users that the guest cluster was asked about.
    reviewed: Arc<Mutex<Vec<Value>>>,
    _stop: CancellationToken,
}

impl World {
    /// `allowed` names the front proxies that may speak for others; empty = every verified one.
    async fn new(allowed: &[&str]) -> Self {
        Self::with_proxies(Some(allowed)).await
    }

    /// `None` = no front proxies.
    async fn with_proxies(allowed: Option<&[&str]>) -> Self {
        let (clients, proxies) = (Ca::new("clients"), Ca::new("proxies"));
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("clients"), &clients.pem).unwrap();
        // Two authorities in one file.
        std::fs::write(file("proxies"), proxies.pem.clone() + &Ca::new("more").pem).unwrap();
        let rules = |allowed: &[&str]| FrontProxyRules {
            allowed_names: allowed.iter().map(|&name| name.to_owned()).collect(),
            username_headers: vec!["X-Remote-User".to_owned()],
            uid_headers: vec!["X-Remote-Uid".to_owned()],
            group_headers: vec!["X-Remote-Group".to_owned()],
            extra_headers_prefixes: vec!["X-Remote-Extra-".to_owned()],
        };
        let trust = Trust::rereading(
            TrustSources {
                client_ca: Some(file("clients")),
                front_proxy: allowed.map(|allowed| (file("proxies"), rules(allowed))),
                ..TrustSources::default()
            },
            INTERVAL,
            &Tasks::default(),
        )
        .await;
        let reviewed = Arc::<Mutex<Vec<Value>>>::default();
        let kept = reviewed.clone();
        let guest = guest_told(move |spec| {
            if spec.get("token").is_none() {
                kept.lock().unwrap().push(spec.clone());
            }
        });
        let (address, stop) = endpoint_trusting(trust.unwrap(), guest, &Tls::default()).await;
        Self { folder, clients, proxies, address, reviewed, _stop: stop }
    }

    /// Requests the metrics; returns the status code.
    async fn metrics(&self, identity: Option<&Identity>, more: &str) -> String {
        self.get("/metrics", identity, more).await
    }

    async fn get(&self, path: &str, identity: Option<&Identity>, more: &str) -> String {
        let stream = connect_as(self.address, identity.map(certified)).await;
        let answer = exchange(stream, path, more).await.unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    }

    /// The user that the guest cluster was asked about last.
    fn last_user(&self) -> Value {
        self.reviewed.lock().unwrap().last().cloned().unwrap()
    }
}

fn certified(identity: &Identity) -> Arc<dyn ResolvesClientCert> {
    certified_by(identity, identity)
}

/// The certificate of one client with the key of another.
fn certified_by(whose: &Identity, holder: &Identity) -> Arc<dyn ResolvesClientCert> {
    let key = ring::default_provider().key_provider.load_private_key(holder.key()).unwrap();
    Arc::new(Shows(Arc::new(CertifiedKey::new(whose.chain.clone(), key))))
}

/// Presents one certificate.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        assert!(hints.is_empty(), "a client is not told which certificates are known");
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_verified_certificate_is_its_subject() {
    let world = World::new(&[]).await;
    let reader = world.clients.sign(&member("reader", ["a", "b"], "42"));
    assert_eq!(world.metrics(Some(&reader), "").await, "200");
    let user = world.last_user();
    assert_eq!((&user["user"], &user["uid"]), (&json!("reader"), &json!("42")));
    assert_eq!(user["groups"], json!(["a", "b", "system:authenticated"]));
    let id = user["extra"]["authentication.kubernetes.io/credential-id"][0].as_str().unwrap();
    assert_eq!(id.strip_prefix("X509SHA256=").map(str::len), Some(64), "{id}");

    let other = world.clients.sign(&client("other"));
    assert_eq!(world.metrics(Some(&other), "").await, "403");
    assert_eq!(
        world.metrics(Some(&other), "Authorization: Bearer reader\r\n").await,
        "403",
        "a proof is taken first"
    );
    let below = world.clients.below("below");
    assert_eq!(world.metrics(Some(&below.sign_with_chain(&client("reader"))), "").await, "200");
    assert_eq!(world.metrics(Some(&below.sign(&client("reader"))), "").await, "401", "a gap in the chain");
}

#[rstest]
#[case::expired(|world: &World| world.clients.sign(&expired("reader")))]
#[case::not_yet_valid(|world: &World| world.clients.sign(&early("reader")))]
#[case::for_servers(|world: &World| world.clients.sign(&server("reader")))]
#[case::of_another_authority(|_: &World| Ca::new("clients").sign(&client("reader")))]
#[case::with_that_authority_beside_it(|_: &World| Ca::new("clients").sign_with_chain(&client("reader")))]
#[case::of_the_front_proxies(|world: &World| world.proxies.sign(&client("reader")))]
#[tokio::test]
async fn a_certificate_that_is_not_verified_is_worse_than_none(#[case] make: fn(&World) -> Identity) {
    let world = World::new(&["front-proxy"]).await;
    let wrong = make(&world);
    assert_eq!(world.metrics(Some(&wrong), "").await, "401");
    assert_eq!(world.metrics(Some(&wrong), SPEAKS_FOR).await, "401");
    assert_eq!(world.metrics(Some(&wrong), "Authorization: Bearer stranger\r\n").await, "401");
    assert!(world.reviewed.lock().unwrap().is_empty(), "nobody was asked what nobody may");
    assert_eq!(
        world.metrics(Some(&wrong), "Authorization: bearer reader\r\n").await,
        "200",
        "a token counts"
    );
    assert_eq!(world.get("/healthz", Some(&wrong), "").await, "200");
}

#[tokio::test]
async fn who_has_no_name_or_shows_nothing_is_anonymous() {
    for shows_one in [false, true] {
        let world = World::with_proxies(None).await;
        let nameless = world.clients.sign(&client(""));
        let identity = shows_one.then_some(&nameless);
        assert_eq!(world.metrics(identity, SPEAKS_FOR).await, "403");
        assert_eq!(world.last_user()["user"], "system:anonymous");
        assert_eq!(world.last_user()["groups"], json!(["system:unauthenticated"]));
        assert_eq!(world.metrics(identity, "Authorization: Bearer reader\r\n").await, "200");
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_gets_no_connection() {
    let world = World::new(&[]).await;
    let (reader, thief) = (world.clients.sign(&client("reader")), world.clients.sign(&client("thief")));
    let stream = connect_as(world.address, Some(certified_by(&reader, &thief))).await;
    let error = exchange(stream, "/healthz", "").await.unwrap_err();
    assert!(error.to_string().contains("DecryptError"), "{error}");
}

#[tokio::test]
async fn a_front_proxy_speaks_for_others() {
    let world = World::new(&["front-proxy", "second"]).await;
    for name in ["front-proxy", "second"] {
        let proxy = world.proxies.sign(&client(name));
        assert_eq!(world.metrics(Some(&proxy), SPEAKS_FOR).await, "200");
    }
    let user = world.last_user();
    assert_eq!(user["user"], "reader");
    assert_eq!(user["groups"], json!(["b", "c", "system:authenticated"]));
    assert_eq!(user["extra"], json!({"acme.com/project": ["p1"]}));
    let proxy = world.proxies.sign(&client("front-proxy"));
    assert_eq!(world.metrics(Some(&proxy), "X-Remote-User: other\r\n").await, "403");
    assert_eq!(world.metrics(Some(&proxy), "X-Remote-User: \r\n").await, "401", "it is no user itself");
    assert_eq!(world.metrics(Some(&proxy), "X-Remote-User: \u{fc}\r\n").await, "403", "any text is a name");
}

#[tokio::test]
async fn nobody_else_is_believed_a_header() {
    let world = World::new(&["front-proxy"]).await;
    for name in ["reader", "front-proxy-2", "Front-Proxy", ""] {
        let proxy = world.proxies.sign(&client(name));
        assert_eq!(world.metrics(Some(&proxy), SPEAKS_FOR).await, "401", "{name:?} is not allowed to");
    }
    assert!(world.reviewed.lock().unwrap().is_empty());
    // The name of the front proxy, signed by the authority that does not sign front proxies.
    let named_like_it = world.clients.sign(&client("front-proxy"));
    assert_eq!(world.metrics(Some(&named_like_it), SPEAKS_FOR).await, "403");
    assert_eq!(world.last_user()["user"], "front-proxy");
    let stale = world.proxies.sign(&expired("front-proxy"));
    assert_eq!(world.metrics(Some(&stale), SPEAKS_FOR).await, "401");
    let token = format!("Authorization: Bearer other\r\n{SPEAKS_FOR}");
    assert_eq!(world.metrics(None, &token).await, "403");
    assert_eq!(world.last_user()["user"], "other");
    assert_eq!(world.metrics(None, SPEAKS_FOR).await, "403");
    assert_eq!(world.last_user()["user"], "system:anonymous");
}

#[tokio::test]
async fn without_a_list_each_front_proxy_that_is_verified_speaks() {
    let world = World::new(&[]).await;
    let proxy = world.proxies.sign(&client("whoever"));
    assert_eq!(world.metrics(Some(&proxy), SPEAKS_FOR).await, "200");
    assert_eq!(world.metrics(Some(&world.clients.sign(&client("whoever"))), SPEAKS_FOR).await, "403");
}

#[tokio::test]
async fn an_authority_that_was_replaced_is_believed_no_more() {
    let world = World::new(&[]).await;
    let (old, renewed) = (world.clients.sign(&client("reader")), Ca::new("clients"));
    let new = renewed.sign(&client("reader"));
    let mut open = connect_as(world.address, Some(certified(&old))).await;
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    open.write_all(request.as_bytes()).await.unwrap();
    let mut begin = [0; "HTTP/1.1 200".len()];
    open.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");

    let file = world.folder.path().join("clients");
    std::fs::write(&file, "half written").unwrap();
    tokio::time::sleep(INTERVAL * 5).await;
    assert_eq!(world.metrics(Some(&old), "").await, "200", "what can't be used changes nothing");
    std::fs::write(&file, &renewed.pem).unwrap();
    let taken_up = async {
        while world.metrics(Some(&new), "").await != "200" {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), taken_up).await.unwrap();
    assert_eq!(world.metrics(Some(&old), "").await, "401");
    // The same on the connection that was open before.
    let rest = exchange(open, "/metrics", "").await.unwrap();
    assert!(rest.contains("HTTP/1.1 401"), "{rest}");
}
