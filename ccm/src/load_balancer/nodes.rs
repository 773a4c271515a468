//! Which of the guest's Nodes take traffic of load balancers, and what happens to the Services when none does.
//!
//! Where infra selects VMs by their labels, a change of the Nodes changes nothing in infra; the program that writes
//! endpoints follows each Node.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;

use crate::{
    access::chain,
    changes::Subscription,
    guest::{
        nodes::{
            GuestNode,
            watch::{Listing, NodeWatch},
        },
        services::GuestService,
    },
    guest_names::infra_name,
    load_balancer::{
        conditions::Backends,
        controller::Context,
        explain,
        plan::{Infra, plan},
        reconcile::Failure,
    },
    nodes::backends::{NodeSet, is_counted, update},
    queue_metrics::{Item, Queue},
};

/// Services that are updated at the same time.
const CONCURRENCY: usize = 32;
/// After a change, wait this long for more: Nodes come in groups.
const SETTLE: Duration = Duration::from_millis(100);

/// The Nodes that take traffic.
#[derive(Clone)]
pub(crate) struct Nodes {
    watch: NodeWatch,
    /// A queue with one item: that the set has changed.
    queue: Queue,
}

impl Nodes {
    /// Starts to watch the Nodes; a change of the set goes into `queue`.
    pub(crate) fn start(watch: NodeWatch, queue: Queue) -> Self {
        watch.start();
        Self { watch, queue }
    }

    /// Which backends there are.
    pub(crate) fn backends(&self) -> Backends {
        if self.watch.listing() != Listing::Complete {
            Backends::Unknown
        } else if self.watch.all().iter().any(|node| is_counted(&GuestNode::from(&**node))) {
            Backends::Nodes
        } else {
            Backends::NoNodes
        }
    }

    /// Waits until the Nodes are known, or known to be unreadable. Otherwise each start would update all Services
    /// twice.
    pub(crate) async fn wait_until_known(&self) {
        self.watch.wait_until_listed().await;
    }

    /// Follows the set from now on.
    pub(crate) fn followed(&self) -> Followed {
        Followed::of(self.watch.clone())
    }
}

/// The one item of the queue.
fn item() -> Item {
    (String::new(), "nodes".to_owned())
}

/// The set of the Nodes that take traffic, and its changes.
pub(crate) struct Followed {
    watch: NodeWatch,
    changes: Subscription<String>,
    /// `None` = the Nodes are not known.
    set: Option<NodeSet>,
}

impl Followed {
    fn of(watch: NodeWatch) -> Self {
        let changes = watch.subscribe();
        let set = (watch.listing() == Listing::Complete).then(|| Self::present(&watch));
        Self { watch, changes, set }
    }

    fn present(watch: &NodeWatch) -> NodeSet {
        let mut set = NodeSet::new();
        for node in watch.all() {
            let node = GuestNode::from(&*node);
            update(&mut set, &node.claims.name, Some(&node));
        }
        set
    }

    /// Waits until the set changes, or becomes known.
    async fn changed(&mut self) {
        if self.set.is_none() {
            self.watch.wait_until_complete().await;
            self.set = Some(Self::present(&self.watch));
            return;
        }
        loop {
            let names = self.changes.next().await;
            if self.update(names) {
                return;
            }
        }
    }

    /// Takes the changes that have come meanwhile.
    fn catch_up(&mut self) {
        let names = self.changes.take();
        self.update(names);
    }

    fn update(&mut self, names: HashSet<String>) -> bool {
        let Some(set) = &mut self.set else { return false };
        let mut has_changed = false;
        for name in names {
            let node = self.watch.get(&name).map(|node| GuestNode::from(&*node));
            has_changed |= update(set, &name, node.as_ref());
        }
        has_changed
    }
}

/// Updates all Services whenever the set changes, without end.
pub(crate) async fn follow(mut followed: Followed, context: &Context) {
    let nodes = &context.nodes;
    loop {
        followed.changed().await;
        nodes.queue.added(item());
        tokio::time::sleep(SETTLE).await;
        followed.catch_up();
        nodes.queue.taken(&item());
        let began = Instant::now();
        let served: Vec<_> = context.watches.guests().state();
        let served = served.into_iter().filter(|guest| guest.wants_load_balancer() && guest.has_finalizer());
        let failed = AtomicBool::new(false);
        futures::stream::iter(served)
            .for_each_concurrent(CONCURRENCY, async |guest| {
                let began = Instant::now();
                if let Err(error) = refresh(&guest, context).await {
                    failed.store(true, Ordering::Relaxed);
                    tracing::warn!(error = chain(&error), "a Service was not told about the nodes");
                    context.watches.look_at(ObjectRef::from_obj(&*guest)).await;
                }
                context.metrics.hosts_updated(began.elapsed().as_secs_f64());
            })
            .await;
        let (seconds, failed) = (began.elapsed().as_secs_f64(), failed.into_inner());
        nodes.queue.done(seconds, failed);
        context.metrics.nodes_synced(seconds, failed);
    }
}

/// Writes the conditions and events of one Service after a change of the Nodes. If the Service has steps to carry out,
/// its reconcile does that.
async fn refresh(guest: &GuestService, context: &Context) -> Result<(), Failure> {
    let mirror = context.watches.mirror(&infra_name(guest.uid()));
    let infra = mirror.as_deref().map_or(Infra::NotSeen, Infra::Present);
    let plan = plan(guest, infra, &context.settings_for(guest));
    if plan.steps.is_empty() {
        explain::write((guest, guest), &plan, Action::await_change(), context).await?;
    }
    Ok(())
}
