//! The service controller: watches the Services of both clusters, reconciles a Service when either changes, and carries
//! out the plan. No reconcile blocks on another system: changes arrive as watch events, and one Service never holds up
//! another.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use serving::{
    Tasks,
    readiness::{Condition, Readiness},
};

use crate::{
    access::{GuestCluster, InfraCluster, chain},
    announcer::EventSink,
    backoff::Backoff,
    change_pace::{ChangePace, PaceLimits},
    changes::Subscription,
    config::OwnerChoice,
    guest::{nodes::watch::NodeWatch, services::GuestService},
    handover::Gate,
    load_balancer::{
        announce,
        calls::Services,
        context::Context,
        error::ReconcileError,
        index::Index,
        metrics::ServiceMetrics,
        node_sync,
        nodes::Nodes,
        owner_lookup::{self, GuestCluster as KnownGuest, Owner},
        plan::PlanConfig,
        reconcile, relay, sweep,
    },
    queue_metrics::Queue,
    reconciles,
    repairs::Repairs,
};

/// The component that the events name, as in the framework.
pub const COMPONENT: &str = "service-controller";
/// How many Services are reconciled at the same time, at least: a call that hangs ends after 10 s, and must not hold up
/// other Services until then.
const MIN_CONCURRENCY: u16 = 32;
/// How long to wait at the start until it is known whether our own endpoints can be written.
const ENDPOINTS_KNOWN: Duration = Duration::from_secs(10);

/// First pause after a failure (the framework's `minRetryDelay`).
const MIN_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause after failures (the framework's `maxRetryDelay`).
const MAX_PAUSE: Duration = Duration::from_mins(5);
/// Longest pause while an API server does not answer: this affects all Services, and they should recover soon after it
/// is back.
const MAX_OUTAGE_PAUSE: Duration = Duration::from_secs(30);
/// How fast one Service may change. Two changes are its life, create and delete, and a user who tries something out makes
/// a few more. After these, a Service that is changed without end costs infra one change in five seconds.
pub(crate) const PACE: PaceLimits = PaceLimits {
    free: 5,
    first_pause: Duration::from_millis(250),
    longest_pause: Duration::from_secs(5),
    forgotten_after: Duration::from_secs(15),
};

/// What the service controller needs.
pub struct ServiceController {
    /// The cluster with the users' Services.
    pub guest: GuestCluster,
    /// The cluster with their mirrors.
    pub infra: InfraCluster,
    /// What identifies the guest, and which program writes endpoints.
    pub config: PlanConfig,
    /// The Services of both clusters, and the queue of those to reconcile.
    pub services: (Index, Subscription<ObjectRef<GuestService>>),
    /// The guest's Nodes.
    pub nodes: NodeWatch,
    /// The progress of our own endpoints.
    pub gate: Arc<Gate>,
    /// After this time without an address, the Service gets a warning event.
    pub address_timeout: Duration,
    /// The infra object that owns everything of this guest in infra.
    pub owner: Option<OwnerChoice>,
    /// How often left-overs are swept. `None` = never.
    pub sweep_interval: Option<Duration>,
    /// `--concurrent-service-syncs`.
    pub concurrency: u16,
    /// Where events go.
    pub events: EventSink,
    /// The metrics of Services.
    pub metrics: ServiceMetrics,
    /// The metrics of its queue.
    pub queue: Queue,
    /// The metrics of its queue for changes of Nodes.
    pub node_queue: Queue,
    /// Owns the tasks of its watches.
    pub tasks: Tasks,
    /// Reports when it begins to serve.
    pub begins: Begins,
}

/// A condition of `/readyz`: while this replica leads, it is unmet until Services are served. A replica that does not lead is
/// ready, so it is met when this is dropped.
pub struct Begins(Condition);

impl Begins {
    /// The condition of `readiness`, unmet.
    pub fn of(readiness: &Readiness) -> Self {
        Self(readiness.condition("LoadBalancer Services are served"))
    }
}

impl Drop for Begins {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

impl ServiceController {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let (index, due) = self.services;
        relay::start(&self.infra, index.clone(), self.events.clone(), &self.tasks);
        let nodes = Nodes::start(self.nodes);
        let services = Services::new(&self.guest, &self.infra);
        // The CCM must know infra's Services before it acts, or it would create each mirror a second time; and which
        // guest this is.
        let (guest_cluster, (), ()) = tokio::join!(
            owner_lookup::guest_cluster(&services),
            index.wait_until_complete(),
            nodes.wait_until_known()
        );
        if self.config.endpoints.choice.is_ours() {
            // Otherwise a new Service would start with a selector. An existing one keeps what it has.
            drop(tokio::time::timeout(ENDPOINTS_KNOWN, self.gate.wait_until_known()).await);
        }
        tracing::info!(namespace = self.infra.namespace, "serving LoadBalancer Services");
        let (concurrency, guests) = (self.concurrency.max(MIN_CONCURRENCY), index.guests());
        let context = Arc::new(Context {
            services,
            index,
            config: self.config,
            guest_cluster: KnownGuest::new(guest_cluster),
            owner: Owner::new(self.owner, self.infra),
            gate: self.gate,
            address_timeout: self.address_timeout,
            events: self.events,
            repairs: Repairs::new(self.metrics.contested.clone()),
            pace: ChangePace::new(PACE),
            metrics: self.metrics,
            backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
            nodes,
        });
        let is_owner_known = context.owner.read_until_answered().await;
        let owner = async {
            if !is_owner_known {
                context.owner.keep_reading().await;
                context.index.enqueue_all();
            }
        };
        let guest_cluster = async {
            if context.guest_cluster.ask_until_known(&context.services).await {
                // The mirrors are marked now.
                context.index.enqueue_all();
            }
        };
        self.begins.0.set(true);
        let followed = context.nodes.followed();
        let due = due.stream().flat_map(stream::iter);
        tokio::join!(
            reconciles::run(
                due,
                guests,
                (self.queue, concurrency),
                Arc::clone(&context),
                reconcile,
                after_failure
            ),
            sweep::run(&context, self.sweep_interval),
            node_sync::run(followed, &self.node_queue, &context),
            wake_waiting(&context.index),
            context.keep_forgetting(),
            owner,
            guest_cluster,
        );
    }
}

/// Reconciles those Services that waited for a place of the quota and may now have one.
async fn wake_waiting(index: &Index) {
    loop {
        index.place_freed().await;
        for next in index.next_places() {
            index.enqueue(next);
        }
    }
}

async fn reconcile(guest: Arc<GuestService>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let _urgent = context.events.urgent();
    let reconciled = reconcile::reconcile(&guest, &context).await;
    context.metrics.waiting(context.index.waiting());
    match &reconciled {
        Ok(_) => context.backoff.succeeded(guest.uid()),
        Err(error) if error.is_refusal() => context.index.set_aside(guest.uid()),
        Err(_) => {}
    }
    reconciled
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is kube's")]
fn after_failure(guest: Arc<GuestService>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let longest = if error.is_outage() { MAX_OUTAGE_PAUSE } else { MAX_PAUSE };
    let pause = context.backoff.failed(guest.uid()).min(longest);
    tracing::warn!(
        service = guest.metadata.name,
        namespace = guest.metadata.namespace,
        error = chain(error),
        pause = pause.as_secs(),
        "a pass failed and is repeated"
    );
    announce::error(&guest, error, &context);
    Action::requeue(pause)
}
