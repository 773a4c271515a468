//! Follows everything that endpoints depend on, and reconciles each Service that a change concerns.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, stream};
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::reflector::ObjectRef;

use crate::{
    endpoints::{
        observe::ServiceKey,
        reconcile::{after_failure, reconcile},
        session::{Session, member},
        watches::{Follow, Refused, key, watch},
    },
    guest::slices::{GuestSlice, WireGuestSlice},
    guest_names::{CLUSTER_NAME_LABEL, GuestLabels},
    handover::Work,
    infra::slices::{InfraSlice, WireSlice},
    reconciles,
    unreadable::Readable,
    wire::endpoint_slice::SERVICE_LABEL,
};

/// Services that are reconciled at the same time.
const CONCURRENCY: u16 = 32;
/// The names of the watches, for logs.
const GUEST_SLICES: &str = "endpointslices in the guest";
const NODES: &str = "nodes in the guest";
const INFRA_SLICES: &str = "endpointslices in the infra namespace";
/// The number of watches.
const WATCHES: usize = 3;

/// Selects slices with this guest's labels: infra's controllers give slices the labels of their Service.
pub(crate) fn of_guest(identity: &GuestLabels) -> String {
    format!("{CLUSTER_NAME_LABEL}={}", identity.cluster_label())
}

/// Runs a session until a cluster refuses a call.
pub(crate) async fn follow(session: Session) -> Refused {
    let session = Arc::new(session);
    let (guest, infra) = (&session.context.guest, &session.context.infra);
    let own = of_guest(&session.context.identity);
    let guest_slices: Api<Readable<WireGuestSlice>> = Api::all(guest.client.clone());
    let guest_slices = (guest_slices, guest.reader.clone());
    let infra_slices: Api<Readable<WireSlice>> = Api::namespaced(infra.client.clone(), &infra.namespace);
    let infra_slices = (infra_slices, infra.reader.clone());
    let mut refused = session.refused.subscribe();
    let why = async {
        let why = refused.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_default()
    };
    tokio::select! {
        why = watch(guest_slices, None, GUEST_SLICES, &*session) => why,
        () = session.follow_nodes() => Refused("nobody keeps the Nodes".to_owned()),
        () = session.context.nodes.refused() => Refused(format!("no right to watch {NODES}")),
        why = watch(infra_slices, Some(own), INFRA_SLICES, &*session) => why,
        why = why => Refused(why),
        () = session.follow_machines() => Refused("nobody keeps the VMs".to_owned()),
        () = session.keep_asking_to_convert() => Refused("nobody asks for rights".to_owned()),
        () = session.keep_forgetting() => Refused("nobody forgets Services".to_owned()),
        () = reconcile_changes(&session) => Refused("nobody takes the Services".to_owned()),
    }
}

/// Reconciles Services that changed, once everything is known.
async fn reconcile_changes(session: &Arc<Session>) {
    while session.state.lock().complete.len() < WATCHES {
        session.completed.notified().await;
    }
    session.is_able();
    let context = &session.context;
    session.due.add(context.services.load_balancers());
    let due = stream::unfold(Arc::clone(session), async |session| {
        Some((stream::iter(session.due.next().await), session))
    });
    let (guests, queue) = (context.services.guests(), (context.queue.clone(), CONCURRENCY));
    reconciles::run(due.flatten(), guests, queue, Arc::clone(session), reconcile, after_failure).await;
}

impl Session {
    /// Keeps the Nodes of this session up to date, without end.
    async fn follow_nodes(&self) {
        let nodes = &self.context.nodes;
        nodes.start();
        // The rights were asked for before this session began.
        nodes.retry();
        let changes = nodes.subscribe();
        // An earlier session may have ended with the watch: what that knew of the Nodes is out of date.
        nodes.wait_until_current().await;
        self.update_nodes(changes.take());
        self.backends_changed();
        self.is_complete(NODES);
        loop {
            let names = changes.next().await;
            if self.update_nodes(names) {
                // Where VMs are not watched, they have to be polled.
                self.context.feed.hurry();
                self.backends_changed();
            }
        }
    }

    /// True = something changed that backends depend on.
    fn update_nodes(&self, names: HashSet<String>) -> bool {
        let (mut seen, mut has_changed) = (self.state.lock(), false);
        for name in names {
            let now = self.context.nodes.get(&name);
            let before = match &now {
                Some(node) => seen.nodes.insert(name, Arc::clone(node)),
                None => seen.nodes.remove(&name),
            };
            has_changed |= before.as_ref().map(member) != now.as_ref().map(member);
        }
        has_changed
    }

    async fn follow_machines(&self) {
        let mut changes = self.context.index.changes();
        while changes.changed().await.is_ok() {
            self.backends_changed();
            self.is_able();
        }
    }

    /// Reports that slices can be written once everything that they are made of is known, while VMs can be read.
    fn is_able(&self) {
        if self.state.lock().complete.len() < WATCHES {
            return;
        }
        let reads_vms = self.context.index.snapshot().known().vmis.is_some();
        self.context.set(if reads_vms { Work::On } else { Work::Unknown });
    }

    /// Nodes or VMs changed, which may concern every Service.
    fn backends_changed(&self) {
        self.state.lock().backends = None;
        self.due.add(self.context.services.load_balancers());
    }

    fn guest_slices_changed(&self, services: Vec<ServiceKey>) {
        let store = self.context.services.guests();
        let references =
            services.into_iter().map(|(namespace, name)| ObjectRef::new(&name).within(&namespace));
        let ours = references.filter(|it| store.get(it).is_some_and(|service| service.wants_load_balancer()));
        let ours: Vec<_> = ours.collect();
        if !ours.is_empty() {
            // Where VMs are not watched, they have to be polled.
            self.context.feed.hurry();
            self.due.add(ours);
        }
    }

    fn infra_slices_changed(&self, services: &[String]) {
        let services = services.iter().filter_map(|name| self.context.services.guest_of(name));
        self.due.add(services.map(|service| ObjectRef::from_obj(&*service)));
    }

    fn is_complete(&self, what: &'static str) {
        self.state.lock().complete.insert(what);
        self.completed.notify_one();
    }
}

/// The name in a [`key`].
fn name_of(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(_, name)| name)
}

impl Follow<WireGuestSlice> for Session {
    fn put(&self, object: WireGuestSlice) {
        let labels = object.metadata.labels.as_ref();
        let service = labels.and_then(|all| all.get(SERVICE_LABEL)).cloned();
        let service = service.map(|name| (object.namespace().unwrap_or_default(), name));
        let slice = GuestSlice::from(&object);
        let concerned = self.state.lock().guest_slices.put(&key(&object), service, slice);
        self.guest_slices_changed(concerned);
    }

    fn remove(&self, key: &str) {
        let concerned = self.state.lock().guest_slices.remove(key);
        self.guest_slices_changed(concerned.into_iter().collect());
    }

    fn complete(&self, living: &HashSet<String>) {
        let concerned = self.state.lock().guest_slices.retain(living);
        self.guest_slices_changed(concerned);
        self.is_complete(GUEST_SLICES);
    }
}

impl Follow<WireSlice> for Session {
    fn put(&self, object: WireSlice) {
        let (name, service) = (object.name_any(), object.service().map(str::to_owned));
        let concerned = self.state.lock().infra_slices.put(&name, service, InfraSlice::from(object));
        self.infra_slices_changed(&concerned);
    }

    fn remove(&self, key: &str) {
        let concerned = self.state.lock().infra_slices.remove(name_of(key));
        self.infra_slices_changed(concerned.as_slice());
    }

    fn complete(&self, living: &HashSet<String>) {
        let names: HashSet<_> = living.iter().map(|key| name_of(key).to_owned()).collect();
        let concerned = self.state.lock().infra_slices.retain(&names);
        self.infra_slices_changed(&concerned);
        self.is_complete(INFRA_SLICES);
    }
}

#[cfg(test)]
mod tests;
