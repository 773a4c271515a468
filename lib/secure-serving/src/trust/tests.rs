//! Which authorities are trusted, and when that changes.

use std::sync::Mutex;

use futures::stream;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{Error, Event, Result as Watched};
use serde_json::json;
use serving::Tasks;

use super::*;
use crate::pki::{Ca, Identity, client};

const CONFIG_MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";
const INTERVAL: Duration = Duration::from_millis(10);

/// The content that an API server publishes.
struct Published {
    clients: Ca,
    proxies: Ca,
}

impl Published {
    fn new() -> Self {
        Self { clients: Ca::new("clients"), proxies: Ca::new("proxies") }
    }

    fn data(&self) -> serde_json::Value {
        json!({
            "client-ca-file": self.clients.pem,
            "requestheader-client-ca-file": self.proxies.pem,
            "requestheader-allowed-names": r#"["front-proxy-client"]"#,
            "requestheader-username-headers": r#"["X-Remote-User"]"#,
            "requestheader-group-headers": r#"["X-Remote-Group"]"#,
            "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
        })
    }

    fn map(&self) -> ConfigMap {
        map(&self.data())
    }
}

fn map(data: &serde_json::Value) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": "extension-apiserver-authentication"}, "data": data}))
        .unwrap()
}

/// A lookup, and the authorities that are trusted because of it.
struct World {
    lookup: Lookup,
    trust: Trust,
}

impl World {
    fn wanting(wanted: Wanted) -> Self {
        let (trusted, now) = watch::channel(Trusted::default());
        Self { lookup: Lookup::new(wanted, "guest", false, Arc::new(trusted)), trust: Trust(now) }
    }

    fn new() -> Self {
        Self::wanting(Wanted { clients: true, front_proxy: true })
    }

    async fn sees(&mut self, events: Vec<Watched<Event<ConfigMap>>>) {
        self.lookup.follow(stream::iter(events)).await;
    }

    fn user(&self, identity: &Identity) -> Result<Option<String>, Unproved> {
        user(&self.trust, identity)
    }
}

/// The user that this certificate proves, if the client also sends the name of another user.
fn user(trust: &Trust, identity: &Identity) -> Result<Option<String>, Unproved> {
    let headers: HeaderMap = [("x-remote-user", "else")]
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .into_iter()
        .collect();
    let presented = Presented(identity.chain.clone().into());
    Ok(trust.user(&presented, &headers)?.map(|user| user.name))
}

fn refusal() -> serde_json::Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403})
}

/// An API server with one answer to every request for the published ConfigMap, and the number of its requests.
#[derive(Clone)]
struct ConfigMaps(Arc<Mutex<(u16, serde_json::Value, usize)>>);

impl ConfigMaps {
    fn answering(code: u16, body: serde_json::Value) -> Self {
        Self(Arc::new(Mutex::new((code, body, 0))))
    }

    fn answer(&self, code: u16, body: serde_json::Value) {
        let mut state = self.0.lock().unwrap();
        (state.0, state.1) = (code, body);
    }

    fn requests(&self) -> usize {
        self.0.lock().unwrap().2
    }

    fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            assert_eq!((request.method(), request.uri().path()), (&http::Method::GET, CONFIG_MAPS));
            let mut state = api.0.lock().unwrap();
            state.2 += 1;
            let answer = http::Response::builder().status(state.0);
            let answer = answer.body(kube::client::Body::from(state.1.to_string().into_bytes()));
            async { answer }
        });
        Client::new(service, "default")
    }
}

fn forbidden() -> Error {
    let status = serde_json::from_value::<kube::core::Status>(refusal()).unwrap();
    Error::InitialListFailed(kube::Error::Api(status.boxed()))
}

#[tokio::test]
async fn what_arrives_late_and_what_changes_is_believed() {
    let (published, mut world) = (Published::new(), World::new());
    let reader = published.clients.sign(&client("reader"));
    let proxy = published.proxies.sign(&client("front-proxy-client"));
    let stranger = published.proxies.sign(&client("stranger"));
    world.sees(vec![Ok(Event::Init), Ok(Event::InitDone)]).await;
    for identity in [&reader, &proxy] {
        assert_eq!(world.user(identity).unwrap(), None, "nothing is known, so it says nothing");
    }
    world.sees(vec![Ok(Event::Apply(published.map()))]).await;
    assert_eq!(world.user(&reader).unwrap().as_deref(), Some("reader"));
    assert_eq!(world.user(&proxy).unwrap().as_deref(), Some("else"));
    assert!(world.user(&stranger).is_err());

    let renewed = Published::new();
    world.sees(vec![Ok(Event::Init), Ok(Event::InitApply(renewed.map())), Ok(Event::InitDone)]).await;
    assert!(world.user(&reader).is_err() && world.user(&proxy).is_err(), "the old authority is no more");
    let reader = renewed.clients.sign(&client("reader"));
    assert_eq!(world.user(&reader).unwrap().as_deref(), Some("reader"));
}

#[tokio::test]
async fn what_can_not_be_used_changes_nothing() {
    let (published, mut world) = (Published::new(), World::new());
    let reader = published.clients.sign(&client("reader"));
    let proxy = published.proxies.sign(&client("front-proxy-client"));
    world.sees(vec![Ok(Event::Apply(published.map()))]).await;
    let worse = |key: &str, value: &str| {
        let mut data = published.data();
        data[key] = json!(value);
        Ok(Event::Apply(map(&data)))
    };
    let events = vec![
        worse("client-ca-file", ""),
        worse("client-ca-file", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        worse("requestheader-client-ca-file", "none"),
        worse("requestheader-allowed-names", "front-proxy-client"),
        Ok(Event::Apply(map(&json!({})))),
        Ok(Event::Delete(published.map())),
        Err(Error::NoResourceVersion),
        Ok(Event::Init),
        Ok(Event::InitDone),
    ];
    for event in events {
        world.sees(vec![event]).await;
        assert_eq!(world.user(&reader).unwrap().as_deref(), Some("reader"));
        assert_eq!(world.user(&proxy).unwrap().as_deref(), Some("else"));
    }
}

#[tokio::test]
async fn lists_that_are_missing_allow_any_name_and_believe_no_header() {
    let (published, mut world) = (Published::new(), World::new());
    let proxy = published.proxies.sign(&client("whoever"));
    let mut data = published.data();
    data["requestheader-allowed-names"] = json!("[]");
    world.sees(vec![Ok(Event::Apply(map(&data)))]).await;
    assert_eq!(world.user(&proxy).unwrap().as_deref(), Some("else"));
    data["requestheader-username-headers"] = json!("null");
    world.sees(vec![Ok(Event::Apply(map(&data)))]).await;
    assert!(world.user(&proxy).is_err(), "it names nobody, and is no client itself");
}

#[tokio::test]
async fn what_a_file_names_is_not_taken_from_the_cluster() {
    let published = Published::new();
    let reader = published.clients.sign(&client("reader"));
    let proxy = published.proxies.sign(&client("front-proxy-client"));
    let mut world = World::wanting(Wanted { clients: false, front_proxy: true });
    world.sees(vec![Ok(Event::Apply(published.map()))]).await;
    assert_eq!(world.user(&proxy).unwrap().as_deref(), Some("else"));
    assert!(world.user(&reader).is_err());
    let mut world = World::wanting(Wanted { clients: true, front_proxy: false });
    world.sees(vec![Ok(Event::Apply(published.map()))]).await;
    assert_eq!(world.user(&reader).unwrap().as_deref(), Some("reader"));
    assert!(world.user(&proxy).is_err());
}

#[tokio::test]
async fn a_refusal_ends_the_watch() {
    let (published, mut world) = (Published::new(), World::new());
    let reader = published.clients.sign(&client("reader"));
    world.sees(vec![Err(forbidden()), Ok(Event::Apply(published.map()))]).await;
    assert_eq!(world.user(&reader).unwrap(), None);
}

#[tokio::test]
async fn a_right_that_comes_later_is_used() {
    let (published, api) = (Published::new(), ConfigMaps::answering(403, refusal()));
    let reader = published.clients.sign(&client("reader"));
    let sources = TrustSources { lookup: Some(api.client()), ..TrustSources::default() };
    let trust = Trust::rereading(sources, INTERVAL, &Tasks::default()).await.unwrap();
    let becomes = async |wanted: Option<&str>, calls: usize| {
        while user(&trust, &reader).unwrap().as_deref() != wanted || api.requests() < calls {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let within = Duration::from_secs(30);
    tokio::time::timeout(within, becomes(None, 2)).await.unwrap();
    let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "1"},
        "items": [published.map()]});
    api.answer(200, list);
    tokio::time::timeout(within, becomes(Some("reader"), 3)).await.unwrap();
}

#[tokio::test]
async fn files_must_be_usable_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca");
    for content in [None, Some(""), Some("none")] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let sources = || TrustSources { client_ca: Some(file.clone()), ..TrustSources::default() };
        let error = Trust::start(sources(), &Tasks::default()).await.err().expect("is refused");
        assert!(error.to_string().contains("ca as a bundle"), "{error}");
        let front_proxy = Some((file.clone(), FrontProxyRules::default()));
        let sources = TrustSources { front_proxy, ..TrustSources::default() };
        assert!(Trust::start(sources, &Tasks::default()).await.is_err());
    }
    std::fs::write(&file, Ca::new("clients").pem).unwrap();
    let sources = TrustSources { client_ca: Some(file), ..TrustSources::default() };
    assert!(Trust::start(sources, &Tasks::default()).await.is_ok());
}
