//! The Services of both clusters, as the watches keep them, and which guest Service each change concerns.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::Resource;
use kube::api::Api;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector::Lookup};
use serde::de::DeserializeOwned;
use serving::Tasks;
use tokio::sync::watch;

use crate::{
    access::{GuestCluster, InfraCluster},
    changes::{Changes, Subscription},
    guest::services::GuestService,
    guest_names::{CLUSTER_NAME_LABEL, Identity, infra_name},
    infra::mirrors::InfraService,
    load_balancer::ahead::Ahead,
};

/// Objects per page of a list: small pages cost calls, large ones memory.
const PAGE: u32 = 100;

/// Which guest Service an infra Service mirrors, by the latter's name.
type Names = Arc<Mutex<HashMap<String, ObjectRef<GuestService>>>>;

/// Both watches. Clones share them.
#[derive(Clone)]
pub struct Watches {
    guests: Store<GuestService>,
    mirrors: Store<InfraService>,
    names: Names,
    namespace: String,
    /// The Services that changed.
    changes: Arc<Changes<ObjectRef<GuestService>>>,
    /// The Services that the service controller has to reconcile: those that changed, and those that are asked for.
    due: Arc<Changes<ObjectRef<GuestService>>>,
    /// Notifies of every event, also of those that concern no load balancer of this guest.
    events: Arc<watch::Sender<()>>,
    ahead: Arc<Ahead>,
}

impl Watches {
    /// Starts both watches. The service controller takes what it has to reconcile from the subscription.
    pub fn start(
        guest: &GuestCluster,
        infra: &InfraCluster,
        identity: &Identity,
        tasks: &Tasks,
    ) -> (Self, Subscription<ObjectRef<GuestService>>) {
        let (guests, guest_writer) = store();
        let (mirrors, mirror_writer) = store();
        let due = Arc::new(Changes::default());
        let subscription = due.subscribe();
        let watches = Self {
            guests,
            mirrors,
            names: Names::default(),
            namespace: infra.namespace.clone(),
            changes: Arc::default(),
            due,
            events: Arc::default(),
            ahead: Arc::default(),
        };

        let config = watcher::Config::default().page_size(PAGE);
        let all = watcher(Api::<GuestService>::all(guest.client.clone()), config.clone());
        let all = all.default_backoff().modify(GuestService::slim).reflect(guest_writer);
        let of_guest = watches.clone();
        let following = follow(all, "guest", move |event| of_guest.guest_event(event));
        tasks.spawn("the watch of the guest's Services", following);

        let config = config.labels(&format!("{CLUSTER_NAME_LABEL}={}", identity.cluster_label()));
        let own = watcher(Api::<InfraService>::namespaced(infra.client.clone(), &infra.namespace), config);
        let own = own.default_backoff().reflect(mirror_writer);
        let of_infra = watches.clone();
        let following = follow(own, "infra", move |event| of_infra.infra_event(event));
        tasks.spawn("the watch of the infra Services", following);
        (watches, subscription)
    }

    /// The guest's Services.
    pub(crate) fn guests(&self) -> Store<GuestService> {
        self.guests.clone()
    }

    /// Waits until both clusters have delivered their first list.
    pub(crate) async fn wait_until_complete(&self) {
        // The writers live as long as the process, so the case that they end does not occur.
        let (guests, mirrors) = tokio::join!(self.guests.wait_until_ready(), self.mirrors.wait_until_ready());
        if guests.is_err() || mirrors.is_err() {
            tracing::error!("a watch of Services ended");
        }
    }

    /// The infra Service of this name as the watch shows it; `None` also if infra has answered since that it is gone.
    pub(crate) fn mirror(&self, name: &str) -> Option<Arc<InfraService>> {
        self.shown(name).filter(|infra| !self.ahead.is_gone(name, infra.metadata.uid.as_deref()))
    }

    fn shown(&self, name: &str) -> Option<Arc<InfraService>> {
        self.mirrors.get(&ObjectRef::new(name).within(&self.namespace))
    }

    fn shown_uid(&self, name: &str) -> Option<String> {
        self.shown(name)?.metadata.uid.clone()
    }

    /// Records infra's answer that it was created.
    pub(crate) fn created(&self, name: &str) {
        self.ahead.created(name, self.shown_uid(name).as_deref());
    }

    /// Records infra's answer that the Service with this UID is gone.
    pub(crate) fn deleted(&self, name: &str, uid: &str) {
        self.ahead.deleted(name, uid, self.shown_uid(name).as_deref());
    }

    /// Records the guest's answer to a patch.
    pub(crate) fn patched(&self, now: &GuestService) {
        let shown = self.guests.get(&now.to_object_ref(()));
        if let Some(shown) = shown.filter(|shown| shown.uid() == now.uid()) {
            self.ahead.patched(&shown, now);
        }
    }

    /// How much longer the watch may take to show what we patched.
    pub(crate) fn is_behind(&self, shown: &GuestService) -> Option<Duration> {
        self.ahead.is_behind(shown)
    }

    /// How much longer the watch may take to show what we created.
    pub(crate) fn is_coming(&self, name: &str) -> Option<Duration> {
        self.ahead.is_coming(name)
    }

    /// All infra Services with the label of this cluster's name.
    pub(crate) fn mirrors(&self) -> Vec<Arc<InfraService>> {
        self.mirrors.state()
    }

    /// The names of this guest's infra Services.
    pub(crate) fn own_mirrors(&self, identity: &Identity) -> HashSet<String> {
        let mirrors = self.mirrors.state();
        let own = mirrors.iter().filter(|mirror| identity.owns(&***mirror));
        own.filter_map(|mirror| mirror.metadata.name.clone()).collect()
    }

    /// The guest Service whose mirror has this name.
    pub(crate) fn guest_of(&self, infra_name: &str) -> Option<Arc<GuestService>> {
        let reference = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(infra_name).cloned()?;
        self.guests.get(&reference)
    }

    /// Receives the Services that change from now on.
    pub(crate) fn subscribe(&self) -> Subscription<ObjectRef<GuestService>> {
        self.changes.subscribe()
    }

    /// Notifies of every event from now on; one notification may stand for several events.
    pub(crate) fn events(&self) -> watch::Receiver<()> {
        self.events.subscribe()
    }

    /// Triggers a reconcile of a Service.
    pub(crate) fn look_at(&self, service: ObjectRef<GuestService>) {
        self.due.notify(&[service]);
    }

    /// Triggers a reconcile of all Services.
    pub(crate) fn look_at_all(&self) {
        self.due.notify(&self.load_balancers());
    }

    /// The guest's Services that concern the CCM.
    pub(crate) fn load_balancers(&self) -> Vec<ObjectRef<GuestService>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn changed(&self, services: &[ObjectRef<GuestService>]) {
        self.due.notify(services);
        self.changes.notify(services);
    }

    fn guest_event(&self, event: Event<GuestService>) {
        let (service, deleted) = match event {
            Event::Apply(service) | Event::InitApply(service) => (service, false),
            Event::Delete(service) => (service, true),
            Event::Init => return,
            Event::InitDone => {
                self.forget_vanished();
                return self.changed(&self.load_balancers());
            }
        };
        let concerns_us = service.wants_load_balancer() || service.has_finalizer();
        let (name, reference) = (infra_name(service.uid()), service.to_object_ref(()));
        let known = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if deleted {
                names.remove(&name).is_some()
            } else if concerns_us {
                names.insert(name.clone(), reference.clone());
                true
            } else {
                names.contains_key(&name)
            }
        };
        if deleted {
            self.ahead.forget(service.uid());
        }
        self.events.send_replace(());
        if known && !deleted {
            self.changed(&[reference]);
        }
    }

    fn infra_event(&self, event: Event<InfraService>) {
        let name = match event {
            Event::Apply(service) | Event::Delete(service) => service.metadata.name.unwrap_or_default(),
            Event::Init | Event::InitApply(_) => return,
            // After a gap in the watch, only the absence of a mirror shows that it was deleted.
            Event::InitDone => {
                self.ahead.told_all(|name| self.shown_uid(name));
                return self.changed(&self.load_balancers());
            }
        };
        self.ahead.told(&name, self.shown_uid(&name).as_deref());
        self.events.send_replace(());
        let reference = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        if let Some(reference) = reference {
            self.changed(&[reference]);
        }
    }

    /// Drops the Services that were deleted during a gap in the watch: only their absence shows it.
    fn forget_vanished(&self) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        // A Service of the same name is another one, unless it has the UID that the mirror's name is made of.
        let is_there = |name: &String, service: &ObjectRef<GuestService>| {
            self.guests.get(service).is_some_and(|guest| infra_name(guest.uid()) == *name)
        };
        names.retain(|name, service| is_there(name, service));
    }
}

/// Passes on each event; logs once when a watch fails, and once when it works again.
async fn follow<K>(
    events: impl futures::Stream<Item = watcher::Result<Event<K>>>,
    cluster: &'static str,
    hand_on: impl Fn(Event<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut failing = false;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(cluster, "the watch of Services is back");
                }
                hand_on(event);
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(cluster, error = crate::access::chain(&error), "the watch of Services failed");
            }
            Err(error) => tracing::debug!(cluster, %error, "the watch of Services fails still"),
        }
    }
}
