//! What both clusters show, kept, and which guest Service each change concerns.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use kube::Resource;
use kube::api::Api;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector::Lookup};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::access::{GuestCluster, InfraCluster};
use crate::load_balancer::identity::{CLUSTER_NAME_LABEL, Identity, infra_name};
use crate::load_balancer::service::{GuestService, InfraService};

/// Objects per page of a list: many pages cost calls, large ones memory.
const PAGE: u32 = 100;

/// Has a guest Service looked at.
type Triggers = mpsc::Sender<ObjectRef<GuestService>>;
/// Which guest Service the infra Service of a name mirrors.
type Names = Arc<Mutex<HashMap<String, ObjectRef<GuestService>>>>;

/// Both watches. Clones share them.
#[derive(Clone)]
pub(super) struct Watches {
    guests: Store<GuestService>,
    mirrors: Store<InfraService>,
    names: Names,
    namespace: String,
}

impl Watches {
    /// Starts both watches; each change triggers.
    pub(super) fn start(
        guest: &GuestCluster,
        infra: &InfraCluster,
        identity: &Identity,
        triggers: Triggers,
    ) -> Self {
        let (guests, guest_writer) = store();
        let (mirrors, mirror_writer) = store();
        let names = Names::default();
        let watches = Self { guests, mirrors, names, namespace: infra.namespace.clone() };

        let config = watcher::Config::default().page_size(PAGE);
        let all = watcher(Api::<GuestService>::all(guest.client.clone()), config.clone());
        let all = all.default_backoff().modify(GuestService::slim).reflect(guest_writer);
        let (of_guest, queue) = (watches.clone(), triggers.clone());
        tokio::spawn(follow(all, "guest", move |event| {
            let (watches, queue) = (of_guest.clone(), queue.clone());
            async move { watches.guest_event(event, &queue).await }
        }));

        let cluster =
            identity.infra_labels.get(CLUSTER_NAME_LABEL).map_or(identity.cluster.as_str(), String::as_str);
        let config = config.labels(&format!("{CLUSTER_NAME_LABEL}={cluster}"));
        let own = watcher(Api::<InfraService>::namespaced(infra.client.clone(), &infra.namespace), config);
        let own = own.default_backoff().reflect(mirror_writer);
        let of_infra = watches.clone();
        tokio::spawn(follow(own, "infra", move |event| {
            let (watches, queue) = (of_infra.clone(), triggers.clone());
            async move { watches.infra_event(event, &queue).await }
        }));
        watches
    }

    /// The guest's Services.
    pub(super) fn guests(&self) -> Store<GuestService> {
        self.guests.clone()
    }

    /// Waits until both clusters have shown all that they have.
    pub(super) async fn wait_until_complete(&self) {
        // The writers live as long as the process: their ends are no case.
        let (guests, mirrors) = tokio::join!(self.guests.wait_until_ready(), self.mirrors.wait_until_ready());
        if guests.is_err() || mirrors.is_err() {
            tracing::error!("a watch of Services ended");
        }
    }

    /// The infra Service of this name, as it was seen last.
    pub(super) fn mirror(&self, name: &str) -> Option<Arc<InfraService>> {
        self.mirrors.get(&ObjectRef::new(name).within(&self.namespace))
    }

    /// The guest Service whose mirror has this name.
    pub(super) fn guest_of(&self, infra_name: &str) -> Option<Arc<GuestService>> {
        let reference = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(infra_name).cloned()?;
        self.guests.get(&reference)
    }

    async fn guest_event(&self, event: Event<GuestService>, triggers: &Triggers) {
        let (service, deleted) = match event {
            Event::Apply(service) | Event::InitApply(service) => (service, false),
            Event::Delete(service) => (service, true),
            Event::Init => return,
            Event::InitDone => return self.trigger_all(triggers).await,
        };
        let concerns_us = service.wants_load_balancer() || service.has_finalizer();
        let (name, reference) = (infra_name(service.uid()), service.to_object_ref(()));
        let known = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if deleted {
                names.remove(&name).is_some()
            } else if concerns_us {
                names.insert(name, reference.clone());
                true
            } else {
                names.contains_key(&name)
            }
        };
        if known && !deleted {
            trigger(triggers, reference).await;
        }
    }

    async fn infra_event(&self, event: Event<InfraService>, triggers: &Triggers) {
        let name = match event {
            Event::Apply(service) | Event::Delete(service) => service.metadata.name.unwrap_or_default(),
            Event::Init | Event::InitApply(_) => return,
            // After a gap in the watch, a mirror that went meanwhile shows by its absence only.
            Event::InitDone => return self.trigger_all(triggers).await,
        };
        let reference = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        if let Some(reference) = reference {
            trigger(triggers, reference).await;
        }
    }

    async fn trigger_all(&self, triggers: &Triggers) {
        let all: Vec<_> =
            self.names.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for reference in all {
            trigger(triggers, reference).await;
        }
    }
}

/// Nobody takes triggers any more when the controller was dropped.
async fn trigger(triggers: &Triggers, service: ObjectRef<GuestService>) {
    if triggers.send(service).await.is_err() {
        tracing::debug!("the service controller has ended");
    }
}

/// Hands on each event; says once when a watch fails, and once when it is back.
async fn follow<K, F>(
    events: impl futures::Stream<Item = watcher::Result<Event<K>>>,
    cluster: &'static str,
    mut hand_on: impl FnMut(Event<K>) -> F,
) where
    K: Resource + Clone + DeserializeOwned + Debug,
    F: Future<Output = ()>,
{
    let mut failing = false;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(cluster, "the watch of Services is back");
                }
                hand_on(event).await;
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(cluster, error = crate::access::chain(&error), "the watch of Services failed");
            }
            Err(error) => tracing::debug!(cluster, %error, "the watch of Services fails still"),
        }
    }
}
