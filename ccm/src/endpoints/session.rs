//! One session of the endpoint controller, which lasts as long as its rights: it follows everything that endpoints
//! depend on, and reconciles each Service that a change concerns.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::controller::{Config, Error, applier};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::{Notify, watch};

use crate::{
    endpoints::{
        backend::{Backend, Member, backends},
        calls::SliceCalls,
        controller::{Ended, EndpointController, of_guest},
        observe::{ServiceKey, State},
        reconcile::{pass, retry},
        retries::Retries,
        watches::{Follow, follow, key},
    },
    guest::{
        nodes::{GuestNode, WireNode},
        services::GuestService,
        slices::{GuestSlice, WireGuestSlice},
    },
    handover::Work,
    infra::slices::{InfraSlice, WireSlice},
    queue_metrics::Item,
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

/// A Service in the queue.
fn item(service: &ObjectRef<GuestService>) -> Item {
    (service.namespace.clone().unwrap_or_default(), service.name.clone())
}

fn member(node: &Arc<WireNode>) -> Member {
    Member::from(&GuestNode::from(&**node))
}

/// What a session works with.
pub(crate) struct Session {
    pub(crate) controller: EndpointController,
    /// Whether the CCM may delete what a selector's controllers leave behind.
    pub(crate) may_convert: bool,
    pub(crate) calls: SliceCalls,
    pub(crate) state: State,
    pub(crate) retries: Retries,
    completed: Notify,
    refused: watch::Sender<Option<String>>,
}

impl Session {
    pub(crate) fn new(controller: EndpointController, may_convert: bool) -> Self {
        Self {
            calls: SliceCalls::new(&controller.infra),
            controller,
            may_convert,
            state: State::default(),
            retries: Retries::default(),
            completed: Notify::new(),
            refused: watch::Sender::new(None),
        }
    }

    /// Runs until a cluster refuses a call.
    pub(crate) async fn run(self) -> Ended {
        let session = Arc::new(self);
        let (guest, infra) = (&session.controller.guest.client, &session.controller.infra);
        let own = of_guest(&session.controller.identity);
        let guest_slices: Api<WireGuestSlice> = Api::all(guest.clone());
        let infra_slices: Api<WireSlice> = Api::namespaced(infra.client.clone(), &infra.namespace);
        let mut refused = session.refused.subscribe();
        let why = async {
            let why = refused.wait_for(Option::is_some).await;
            why.ok().and_then(|why| why.clone()).unwrap_or_default()
        };
        tokio::select! {
            why = follow(guest_slices, None, GUEST_SLICES, &*session) => why,
            () = session.follow_nodes() => Ended::Forbidden("nobody keeps the Nodes".to_owned()),
            () = session.controller.nodes.refused() => Ended::Forbidden(format!("no right to watch {NODES}")),
            why = follow(infra_slices, Some(own), INFRA_SLICES, &*session) => why,
            why = why => Ended::Forbidden(why),
            () = session.follow_machines() => Ended::Forbidden("nobody keeps the VMs".to_owned()),
            () = Arc::clone(&session).passes() => Ended::Forbidden("nobody takes the Services".to_owned()),
        }
    }

    /// Ends the session because a cluster refused a call.
    pub(crate) fn is_refused(&self, why: String) {
        self.refused.send_replace(Some(why));
    }

    /// The VMs that can take traffic. `None` = they can't be read now.
    pub(crate) fn backends(&self) -> Option<Arc<Vec<Backend>>> {
        let mut seen = self.state.lock();
        if seen.backends.is_none() {
            let (cluster, policy) = (&self.controller.identity.cluster, &self.controller.addresses);
            let members: Vec<_> = seen.nodes.values().map(member).collect();
            let found = backends(&members, &self.controller.index.snapshot(), cluster, policy);
            seen.backends = found.map(Arc::new);
        }
        seen.backends.clone()
    }

    /// Keeps the Nodes of this session up to date, without end.
    async fn follow_nodes(&self) {
        let nodes = &self.controller.nodes;
        nodes.start();
        // The rights were asked for before this session began.
        nodes.retry();
        let mut changes = nodes.subscribe();
        nodes.wait_until_complete().await;
        self.update_nodes(changes.take());
        self.backends_changed();
        self.is_complete(NODES);
        loop {
            let names = changes.next().await;
            if self.update_nodes(names) {
                // Where VMs are not watched, they have to be polled.
                self.controller.feed.hurry();
                self.backends_changed();
            }
        }
    }

    /// True = something changed that backends depend on.
    fn update_nodes(&self, names: HashSet<String>) -> bool {
        let (mut seen, mut has_changed) = (self.state.lock(), false);
        for name in names {
            let now = self.controller.nodes.get(&name);
            let before = match &now {
                Some(node) => seen.nodes.insert(name, Arc::clone(node)),
                None => seen.nodes.remove(&name),
            };
            has_changed |= before.as_ref().map(member) != now.as_ref().map(member);
        }
        has_changed
    }

    async fn follow_machines(&self) {
        let mut changes = self.controller.index.changes();
        while changes.changed().await.is_ok() {
            self.backends_changed();
            self.is_able().await;
        }
    }

    /// Reports that slices can be written once everything that they are made of is known, while VMs can be read.
    async fn is_able(&self) {
        if self.state.lock().complete.len() < WATCHES {
            return;
        }
        let reads_vms = self.controller.index.snapshot().known().vmis.is_some();
        self.controller.set(if reads_vms { Work::On } else { Work::Unknown }).await;
    }

    /// Reconciles Services that changed, once everything is known.
    async fn passes(self: Arc<Self>) {
        while self.state.lock().complete.len() < WATCHES {
            self.completed.notified().await;
        }
        self.is_able().await;
        let services = self.controller.services.clone();
        let _followed = services.changed().follow();
        services.changed().mark(services.load_balancers());
        let queue = stream::unfold(services.clone(), |services| async {
            let changed: Vec<_> =
                services.changed().take().await.into_iter().map(Ok::<_, Infallible>).collect();
            Some((stream::iter(changed), services))
        });
        let counted = self.controller.queue.clone();
        let queue = queue.flatten().inspect_ok(|service| counted.added(item(service)));
        let passes = applier(
            |guest, session| Box::pin(pass(guest, session)),
            retry,
            self,
            services.guests(),
            Box::pin(queue),
            Config::default().concurrency(CONCURRENCY),
        );
        passes
            .for_each(|passed| async {
                match passed {
                    Ok(_) => {}
                    Err(Error::ObjectNotFound(gone)) => {
                        counted.dropped(&(gone.namespace.unwrap_or_default(), gone.name));
                    }
                    Err(error) => tracing::debug!(%error, "a pass over endpoints ended without success"),
                }
            })
            .await;
    }

    /// Nodes or VMs changed, which may concern every Service.
    fn backends_changed(&self) {
        self.state.lock().backends = None;
        let services = &self.controller.services;
        services.changed().mark(services.load_balancers());
    }

    fn guest_slices_changed(&self, services: Vec<ServiceKey>) {
        let store = self.controller.services.guests();
        let references =
            services.into_iter().map(|(namespace, name)| ObjectRef::new(&name).within(&namespace));
        let ours = references.filter(|it| store.get(it).is_some_and(|service| service.wants_load_balancer()));
        let ours: Vec<_> = ours.collect();
        if !ours.is_empty() {
            // Where VMs are not watched, they have to be polled.
            self.controller.feed.hurry();
            self.controller.services.changed().mark(ours);
        }
    }

    fn infra_slices_changed(&self, services: &[String]) {
        let services = services.iter().filter_map(|name| self.controller.services.guest_of(name));
        self.controller.services.changed().mark(services.map(|service| ObjectRef::from_obj(&*service)));
    }

    fn is_complete(&self, what: &'static str) {
        self.state.lock().complete.insert(what);
        self.completed.notify_one();
    }
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

    fn remove(&self, object: WireGuestSlice) {
        let concerned = self.state.lock().guest_slices.remove(&key(&object));
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

    fn remove(&self, object: WireSlice) {
        let concerned = self.state.lock().infra_slices.remove(&object.name_any());
        self.infra_slices_changed(concerned.as_slice());
    }

    fn complete(&self, living: &HashSet<String>) {
        let names: HashSet<_> =
            living.iter().filter_map(|key| Some(key.rsplit_once('/')?.1.to_owned())).collect();
        let concerned = self.state.lock().infra_slices.retain(&names);
        self.infra_slices_changed(&concerned);
        self.is_complete(INFRA_SLICES);
    }
}
