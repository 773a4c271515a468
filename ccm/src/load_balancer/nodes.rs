//! Which of the guest's Nodes take traffic of load balancers, and what happens to the Services when none does.
//!
//! Where infra selects VMs by their labels, a change of the Nodes changes nothing in infra; the program that writes
//! endpoints follows each Node.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::Resource;
use kube::api::{Api, ObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, watcher};
use serde::Deserialize;
use serving::Tasks;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{
    access::{GuestCluster, chain},
    guest::services::GuestService,
    guest_names::infra_name,
    load_balancer::{
        conditions::Backends,
        controller::Context,
        explain,
        plan::{Infra, plan},
        reconcile::Failure,
    },
    nodes::backends::{NodeSet, node_set},
    queue_metrics::{Item, Queue},
};

/// Objects per page of a list: a Node takes much space on the wire.
const PAGE: u32 = 20;
/// Services that are updated at the same time.
const CONCURRENCY: usize = 32;
/// After a change, wait this long for more: Nodes come in groups.
const SETTLE: Duration = Duration::from_millis(100);

/// A Node, with the fields that are read.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "Node")]
struct LoadBalancerNode {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeSpec {
    #[serde(rename = "providerID")]
    provider_id: String,
    taints: Vec<Taint>,
}

/// The Nodes that take traffic.
#[derive(Clone)]
pub(crate) struct Nodes {
    known: watch::Receiver<Known>,
    /// A queue with one item: that the set has changed.
    queue: Queue,
}

/// What is known of the Nodes.
#[derive(Debug, PartialEq, Eq)]
enum Known {
    /// Nothing yet.
    Nothing,
    /// The Nodes can't be read.
    Unreadable,
    /// These Nodes take traffic.
    Set(NodeSet),
}

impl LoadBalancerNode {
    fn slim(&mut self) {
        self.metadata.managed_fields = None;
        self.metadata.annotations = None;
    }
}

impl Nodes {
    /// Starts to watch the Nodes; a change of the set goes into `queue`.
    pub(crate) fn start(guest: &GuestCluster, queue: Queue, tasks: &Tasks) -> Self {
        let (nodes, writer) = store();
        let config = watcher::Config::default().page_size(PAGE);
        let all = watcher(Api::<LoadBalancerNode>::all(guest.client.clone()), config);
        let all = all.default_backoff().modify(LoadBalancerNode::slim).reflect(writer);
        let (known, shown) = watch::channel(Known::Nothing);
        let changed = queue.clone();
        tasks.spawn("the watch of Nodes for load balancers", async move {
            let mut failing = false;
            let mut events = std::pin::pin!(all);
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                    Ok(_) => {
                        failing = false;
                        if update(&known, Known::Set(set_of(&nodes))) {
                            changed.added(item());
                        }
                    }
                    Err(error) => {
                        known.send_if_modified(|known| {
                            let is_first = *known == Known::Nothing;
                            if is_first {
                                *known = Known::Unreadable;
                            }
                            is_first
                        });
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(
                                error = chain(&error),
                                "the nodes for load balancers can't be watched"
                            );
                        }
                    }
                }
            }
        });
        Self { known: shown, queue }
    }

    /// Which backends there are.
    pub(crate) fn backends(&self) -> Backends {
        match &*self.known.borrow() {
            Known::Nothing | Known::Unreadable => Backends::Unknown,
            Known::Set(nodes) if nodes.is_empty() => Backends::NoNodes,
            Known::Set(_) => Backends::Nodes,
        }
    }

    /// Waits until the Nodes are known, or known to be unreadable. Otherwise each start would update all Services
    /// twice.
    pub(crate) async fn wait_until_known(&mut self) {
        if self.known.wait_for(|known| *known != Known::Nothing).await.is_err() {
            tracing::error!("the watch of nodes ended");
        }
        // The start reconciles each Service anyway.
        self.queue.dropped(&item());
    }
}

/// The one item of the queue.
fn item() -> Item {
    (String::new(), "nodes".to_owned())
}

/// Records the set. True = it has changed.
fn update(known: &watch::Sender<Known>, now: Known) -> bool {
    known.send_if_modified(|known| {
        let is_new = *known != now;
        if is_new {
            *known = now;
        }
        is_new
    })
}

fn set_of(nodes: &Store<LoadBalancerNode>) -> NodeSet {
    let all = nodes.state();
    node_set(
        all.iter().map(|node| (&node.metadata, node.spec.taints.as_slice(), node.spec.provider_id.as_str())),
    )
}

/// Updates all Services whenever the set changes, without end.
pub(crate) async fn follow(context: &Context) {
    let mut nodes = context.nodes.clone();
    loop {
        if nodes.known.changed().await.is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(SETTLE).await;
        nodes.known.borrow_and_update();
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
