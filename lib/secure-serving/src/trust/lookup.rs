//! The ConfigMap in which an API server publishes the authorities that it trusts, for programs that delegate to it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cluster::{chain, status_code};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::ListParams,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{sync::watch, time::sleep};

use super::{FrontProxy, Trusted, Wanted};
use crate::{
    certificate::{Authority, BundleError},
    front_proxy::FrontProxyRules,
};

/// Its namespace, name and keys (apiserver library, `server/options/authentication.go`).
const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
const CLIENT_CA: &str = "client-ca-file";
const FRONT_PROXY_CA: &str = "requestheader-client-ca-file";
const ALLOWED_NAMES: &str = "requestheader-allowed-names";
const USERNAME_HEADERS: &str = "requestheader-username-headers";
const UID_HEADERS: &str = "requestheader-uid-headers";
const GROUP_HEADERS: &str = "requestheader-group-headers";
const EXTRA_PREFIXES: &str = "requestheader-extra-headers-prefix";
/// What does not work without it.
const OFF: &str =
    "client certificates and the headers of front proxies prove nobody unless it was read before";

/// HTTP: the right is missing.
const FORBIDDEN: u16 = 403;

/// The data of the ConfigMap.
type Data = BTreeMap<String, String>;

/// Follows the ConfigMap.
pub(super) struct Lookup {
    wanted: Wanted,
    cluster: &'static str,
    tolerate_failure: bool,
    trusted: Arc<watch::Sender<Trusted>>,
    said: Option<String>,
}

/// Why the published authorities can't be used.
#[derive(Debug, thiserror::Error)]
enum PublishedError {
    #[error("key {key} is no bundle of certificate authorities")]
    Bundle {
        key: &'static str,
        #[source]
        source: BundleError,
    },
    #[error("key {key} is no list of texts")]
    List {
        key: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

impl Lookup {
    pub(super) fn new(
        wanted: Wanted,
        cluster: &'static str,
        tolerate_failure: bool,
        trusted: Arc<watch::Sender<Trusted>>,
    ) -> Self {
        Self { wanted, cluster, tolerate_failure, trusted, said: None }
    }

    /// Follows the ConfigMap, without end. If RBAC refuses that, it tries a list after each `pause`, because the right
    /// may be granted after the program started. A watch would log an error each time.
    pub(super) async fn run(mut self, client: Client, pause: Duration) {
        let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        let one = ListParams::default().fields(&format!("metadata.name={NAME}"));
        let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        loop {
            self.follow(watcher(api.clone(), config.clone()).default_backoff()).await;
            loop {
                sleep(pause).await;
                match api.list(&one).await {
                    Err(error) if status_code(&error) == Some(FORBIDDEN) => {}
                    _ => break,
                }
            }
        }
    }

    /// Ends when RBAC refuses to read it.
    pub(super) async fn follow(&mut self, events: impl Stream<Item = watcher::Result<Event<ConfigMap>>>) {
        let (mut events, mut there) = (std::pin::pin!(events), false);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => there = false,
                Ok(Event::InitApply(found)) => {
                    there = true;
                    self.take(&found.data.unwrap_or_default());
                }
                Ok(Event::Apply(found)) => self.take(&found.data.unwrap_or_default()),
                Ok(Event::InitDone) if !there => self.fails("it does not exist".to_owned()),
                // Its last content stays in use: an API server publishes it again at once.
                Ok(Event::InitDone | Event::Delete(_)) => {}
                Err(error) => {
                    self.fails(chain(&error));
                    if is_forbidden(&error) {
                        return;
                    }
                }
            }
        }
    }

    /// Uses newer authorities; if they can't be used, nothing changes.
    fn take(&mut self, data: &Data) {
        let clients = if self.wanted.clients { authority(data, CLIENT_CA) } else { Ok(None) };
        let front_proxy = if self.wanted.front_proxy { front_proxy(data) } else { Ok(None) };
        let mut wrong = None;
        self.trusted.send_modify(|trusted| {
            match clients {
                Ok(found) => trusted.clients = found.or(trusted.clients.take()),
                Err(error) => wrong = Some(error),
            }
            match front_proxy {
                Ok(found) => trusted.front_proxy = found.or(trusted.front_proxy.take()),
                Err(error) => wrong = Some(error),
            }
        });
        if let Some(error) = wrong {
            self.fails(chain(&error));
        } else {
            self.said = None;
            tracing::info!(
                "read whom the {} cluster's API server believes (ConfigMap {NAMESPACE}/{NAME})",
                self.cluster
            );
        }
    }

    /// Logs each new error once.
    fn fails(&mut self, error: String) {
        if self.said.as_ref() == Some(&error) {
            return;
        }
        let what = format!("can't use the {} cluster's ConfigMap {NAMESPACE}/{NAME}; {OFF}", self.cluster);
        if self.tolerate_failure {
            tracing::info!(error, "{what}");
        } else {
            tracing::warn!(error, "{what}");
        }
        self.said = Some(error);
    }
}

/// The authorities of a key. `None` if nothing is published there.
fn authority(data: &Data, key: &'static str) -> Result<Option<Authority>, PublishedError> {
    let bundle = data.get(key).filter(|bundle| !bundle.is_empty());
    let read = bundle.map(|bundle| Authority::of_bundle(bundle.as_bytes())).transpose();
    read.map_err(|source| PublishedError::Bundle { key, source })
}

fn front_proxy(data: &Data) -> Result<Option<Arc<FrontProxy>>, PublishedError> {
    let Some(authority) = authority(data, FRONT_PROXY_CA)? else { return Ok(None) };
    let rules = FrontProxyRules {
        allowed_names: list(data, ALLOWED_NAMES)?,
        username_headers: list(data, USERNAME_HEADERS)?,
        uid_headers: list(data, UID_HEADERS)?,
        group_headers: list(data, GROUP_HEADERS)?,
        extra_headers_prefixes: list(data, EXTRA_PREFIXES)?,
    };
    Ok(Some(Arc::new(FrontProxy { authority, rules })))
}

fn list(data: &Data, key: &'static str) -> Result<Vec<String>, PublishedError> {
    match data.get(key).filter(|text| !text.is_empty()) {
        None => Ok(Vec::new()),
        Some(text) => serde_json::from_str::<Option<_>>(text)
            .map(Option::unwrap_or_default)
            .map_err(|source| PublishedError::List { key, source }),
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) = error else {
        return false;
    };
    status_code(cause) == Some(FORBIDDEN)
}
