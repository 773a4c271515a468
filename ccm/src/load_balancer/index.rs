//! All that is known of the guest's Services and their mirrors: what the watches show, what the API servers have
//! answered since, who has a place of the quota, and what happened before. It makes no call.

mod answers;
mod history;
mod places;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::runtime::{
    reflector::{
        Lookup, ObjectRef, Store,
        store::{Writer, store},
    },
    watcher::Event,
};

use crate::{
    changes::{Changes, Subscription},
    guest::services::GuestService,
    guest_names::{GuestLabels, infra_name},
    infra::mirrors::InfraService,
    load_balancer::plan::{Plan, PlanConfig},
};
use answers::Answers;
use history::History;
use places::{Places, Shown};

/// The index. Clones share it.
#[derive(Clone)]
pub struct Index(Arc<Inner>);

struct Inner {
    guests: Store<GuestService>,
    mirrors: Store<InfraService>,
    identity: GuestLabels,
    namespace: String,
    /// Which guest Service an infra Service mirrors, by the latter's name.
    names: Mutex<HashMap<String, ObjectRef<GuestService>>>,
    answers: Answers,
    history: History,
    places: Places,
    /// The Services that changed.
    changes: Changes<ObjectRef<GuestService>>,
    /// The Services that the service controller has to reconcile: those that changed, and those that are asked for.
    due: Changes<ObjectRef<GuestService>>,
}

/// What the watches write to.
pub struct Writers {
    pub(crate) guests: Writer<GuestService>,
    pub(crate) mirrors: Writer<InfraService>,
}

impl Index {
    /// An empty index of the guest that `config` identifies, with mirrors in `namespace`.
    pub fn new(config: &PlanConfig, namespace: String) -> (Self, Writers) {
        let (guests, guest_writer) = store();
        let (mirrors, mirror_writer) = store();
        let inner = Inner {
            guests,
            mirrors,
            identity: config.identity.clone(),
            namespace,
            names: Mutex::default(),
            answers: Answers::default(),
            history: History::default(),
            places: Places::new(Arc::clone(&config.policy), config.limits),
            changes: Changes::default(),
            due: Changes::default(),
        };
        (Self(Arc::new(inner)), Writers { guests: guest_writer, mirrors: mirror_writer })
    }

    /// The guest's Services.
    pub(crate) fn guests(&self) -> Store<GuestService> {
        self.0.guests.clone()
    }

    /// The infra Services.
    pub(crate) fn mirror_store(&self) -> Store<InfraService> {
        self.0.mirrors.clone()
    }

    /// Receives the Services that the service controller has to reconcile from now on.
    pub fn due(&self) -> Subscription<ObjectRef<GuestService>> {
        self.0.due.subscribe()
    }

    /// Gives the Service what `plan` needs of the quota, and returns the plan. If too little is left, returns the part of
    /// the plan that needs nothing.
    pub(crate) fn limit(&self, guest: &GuestService, plan: Plan) -> Plan {
        self.0.places.limit(guest, plan, || self.shown_now())
    }

    /// The last try of this Service failed: another Service may have its place of the quota until it tries again.
    pub(crate) fn set_aside(&self, uid: &str) {
        self.0.places.set_aside(uid);
    }

    /// Waits until a place of the quota may have become free.
    pub(crate) async fn place_freed(&self) {
        self.0.places.freed().await;
    }

    /// The waiting Services that may have a place of the quota now.
    pub(crate) fn next_places(&self) -> Vec<ObjectRef<GuestService>> {
        self.0.places.next(|| self.shown_now())
    }

    fn shown_now(&self) -> Shown {
        let mirrors = self.0.mirrors.state();
        let own = mirrors.iter().filter(|mirror| self.0.identity.owns(&***mirror));
        let mirrors = own.filter_map(|mirror| Some((mirror.metadata.name.clone()?, Arc::clone(mirror))));
        let mirrors = mirrors.collect();
        Shown { guests: self.0.guests.state(), mirrors }
    }

    /// Records that the Service waits for an address; returns how long it has waited.
    pub(crate) fn waits(&self, uid: &str) -> Duration {
        self.0.history.waits(uid)
    }

    /// How long the Service has waited for an address; zero = it does not wait.
    pub(crate) fn waited(&self, uid: &str) -> Duration {
        self.0.history.waited(uid)
    }

    /// Ends the wait for an address; returns how long it was.
    pub(crate) fn has_address(&self, uid: &str) -> Option<Duration> {
        self.0.history.has_address(uid)
    }

    /// Records that the infra Service with the UID `mirror` shows no address; returns for how long. `None` = it never had
    /// one.
    pub(crate) fn lost_address(&self, uid: &str, mirror: &str) -> Option<Duration> {
        self.0.history.lost_address(uid, mirror)
    }

    /// Records that the infra Service shows an address.
    pub(crate) fn found_address(&self, uid: &str) {
        self.0.history.found_address(uid);
    }

    /// How many Services wait for an address.
    pub(crate) fn waiting(&self) -> usize {
        self.0.history.waiting()
    }

    /// Whether these texts differ from those that the Service's users were sent last.
    pub(crate) fn is_news(&self, uid: &str, texts: &[String]) -> bool {
        self.0.history.is_news(uid, texts)
    }

    /// The Service needs no load balancer any more.
    pub(crate) fn forget(&self, uid: &str) {
        self.0.history.forget(uid);
        self.0.places.forget(uid);
    }

    /// Drops what is kept of Services that are gone.
    pub(crate) fn drop_vanished(&self) {
        let is_there = |uid: &str| self.guest_of(&infra_name(uid)).is_some();
        self.0.history.keep(is_there);
        self.0.places.keep(is_there);
    }

    /// Waits until both clusters have delivered their first list.
    pub(crate) async fn wait_until_complete(&self) {
        // The writers live as long as the process, so the case that they end does not occur.
        let (guests, mirrors) =
            tokio::join!(self.0.guests.wait_until_ready(), self.0.mirrors.wait_until_ready());
        if guests.is_err() || mirrors.is_err() {
            tracing::error!("a watch of Services ended");
        }
    }

    /// The infra Service of this name as the watch shows it; `None` also if infra has answered since that it is gone.
    pub(crate) fn mirror(&self, name: &str) -> Option<Arc<InfraService>> {
        self.shown(name).filter(|infra| !self.0.answers.is_gone(name, infra.metadata.uid.as_deref()))
    }

    fn shown(&self, name: &str) -> Option<Arc<InfraService>> {
        self.0.mirrors.get(&ObjectRef::new(name).within(&self.0.namespace))
    }

    fn shown_uid(&self, name: &str) -> Option<String> {
        self.shown(name)?.metadata.uid.clone()
    }

    /// Records infra's answer that it was created.
    pub(crate) fn created(&self, name: &str) {
        self.0.answers.created(name, self.shown_uid(name).as_deref());
    }

    /// Records infra's answer that the Service with this UID is gone.
    pub(crate) fn deleted(&self, name: &str, uid: &str) {
        self.0.answers.deleted(name, uid, self.shown_uid(name).as_deref());
    }

    /// Records the guest's answer to a patch.
    pub(crate) fn patched(&self, now: &GuestService) {
        let shown = self.0.guests.get(&now.to_object_ref(()));
        if let Some(shown) = shown.filter(|shown| shown.uid() == now.uid()) {
            self.0.answers.patched(&shown, now);
        }
    }

    /// How much longer the watch may take to show what we patched.
    pub(crate) fn is_behind(&self, shown: &GuestService) -> Option<Duration> {
        self.0.answers.is_behind(shown)
    }

    /// How much longer the watch may take to show what we created.
    pub(crate) fn is_coming(&self, name: &str) -> Option<Duration> {
        self.0.answers.is_coming(name)
    }

    /// All infra Services with the label of this cluster's name.
    pub(crate) fn mirrors(&self) -> Vec<Arc<InfraService>> {
        self.0.mirrors.state()
    }

    /// What identifies the guest.
    pub(crate) fn identity(&self) -> &GuestLabels {
        &self.0.identity
    }

    /// The guest Service whose mirror has this name.
    pub(crate) fn guest_of(&self, infra_name: &str) -> Option<Arc<GuestService>> {
        let reference =
            self.0.names.lock().unwrap_or_else(PoisonError::into_inner).get(infra_name).cloned()?;
        self.0.guests.get(&reference)
    }

    /// Receives the Services that change from now on.
    pub(crate) fn subscribe(&self) -> Subscription<ObjectRef<GuestService>> {
        self.0.changes.subscribe()
    }

    /// Triggers a reconcile of a Service.
    pub(crate) fn enqueue(&self, service: ObjectRef<GuestService>) {
        self.0.due.notify(&[service]);
    }

    /// Triggers a reconcile of all Services.
    pub(crate) fn enqueue_all(&self) {
        self.0.due.notify(&self.load_balancers());
    }

    /// The guest's Services that concern the CCM.
    pub(crate) fn load_balancers(&self) -> Vec<ObjectRef<GuestService>> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn changed(&self, services: &[ObjectRef<GuestService>]) {
        self.0.due.notify(services);
        self.0.changes.notify(services);
    }

    /// The watch of the guest has had this event, and the store shows it.
    pub(crate) fn guest_event(&self, event: Event<GuestService>) {
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
            let mut names = self.0.names.lock().unwrap_or_else(PoisonError::into_inner);
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
            self.0.answers.forget(service.uid());
        }
        self.0.places.free();
        if known && !deleted {
            self.changed(&[reference]);
        }
    }

    /// The watch of infra has had this event, and the store shows it.
    pub(crate) fn infra_event(&self, event: Event<InfraService>) {
        let name = match event {
            Event::Apply(service) | Event::Delete(service) => service.metadata.name.unwrap_or_default(),
            Event::Init | Event::InitApply(_) => return,
            // After a gap in the watch, only the absence of a mirror shows that it was deleted.
            Event::InitDone => {
                self.0.answers.watch_restarted(|name| self.shown_uid(name));
                return self.changed(&self.load_balancers());
            }
        };
        self.0.answers.watch_showed(&name, self.shown_uid(&name).as_deref());
        self.0.places.free();
        let reference = self.0.names.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        if let Some(reference) = reference {
            self.changed(&[reference]);
        }
    }

    /// Drops the Services that were deleted during a gap in the watch: only their absence shows it.
    fn forget_vanished(&self) {
        let mut names = self.0.names.lock().unwrap_or_else(PoisonError::into_inner);
        // A Service of the same name is another one, unless it has the UID that the mirror's name is made of.
        let is_there = |name: &String, service: &ObjectRef<GuestService>| {
            self.0.guests.get(service).is_some_and(|guest| infra_name(guest.uid()) == *name)
        };
        names.retain(|name, service| is_there(name, service));
        self.0.answers.keep(|name| names.contains_key(name));
    }
}

#[cfg(test)]
mod tests;
