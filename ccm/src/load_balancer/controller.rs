//! The service controller: watches the Services of both clusters, reconciles a Service when either changes, and carries
//! out the plan. No reconcile blocks on another system: changes arrive as watch events, and one Service never holds up
//! another.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::api::ObjectMeta;
use kube::runtime::controller::{Action, Config, Error, applier};
use kube::runtime::reflector::{ObjectRef, Store};
use serving::Tasks;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::{
    access::{GuestCluster, InfraCluster},
    announcer::EventSink,
    config::OwnerChoice,
    guest::{nodes::watch::NodeWatch, services::GuestService},
    handover::{EndpointSource, Gate},
    load_balancer::{
        announce,
        calls::Services,
        memory::Memory,
        metrics::ServiceMetrics,
        nodes::{self, Nodes},
        owner_lookup::{self, Owner},
        places::Places,
        plan::Settings,
        reconcile::{self, Failure},
        relay, sweep,
        watches::Watches,
    },
    queue_metrics::Queue,
};

/// The component that the events name, as in the framework.
pub const COMPONENT: &str = "service-controller";
/// How many Services are reconciled at the same time, at least: a call that hangs ends after 10 s, and must not hold up
/// other Services until then.
const MIN_CONCURRENCY: u16 = 32;
/// How long to wait at the start until it is known whether our own endpoints can be written.
const ENDPOINTS_KNOWN: Duration = Duration::from_secs(10);

/// What the service controller needs.
pub struct ServiceController {
    /// The cluster with the users' Services.
    pub guest: GuestCluster,
    /// The cluster with their mirrors.
    pub infra: InfraCluster,
    /// What identifies the guest, and which program writes endpoints.
    pub settings: Settings,
    /// The Services of both clusters, and the queue of those to reconcile.
    pub services: (Watches, mpsc::Receiver<ObjectRef<GuestService>>),
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
}

/// What each reconcile uses.
pub(crate) struct Context {
    pub(crate) services: Services,
    pub(crate) watches: Watches,
    pub(crate) settings: RwLock<Arc<Settings>>,
    pub(crate) owner: Option<Owner>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) address_timeout: Duration,
    pub(crate) events: EventSink,
    pub(crate) metrics: ServiceMetrics,
    pub(crate) queue: Queue,
    pub(crate) memory: Memory,
    pub(crate) places: Arc<Places>,
    pub(crate) nodes: Nodes,
}

impl Context {
    /// The configuration, with what was found out about the clusters.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same for one Service, with the progress of our own endpoints of it.
    pub(crate) fn settings_for(&self, guest: &GuestService) -> Settings {
        let settings = self.settings();
        let slices = self.gate.slices(guest.uid());
        let endpoints = EndpointSource { slices, ..settings.endpoints };
        Settings { endpoints, ..Settings::clone(&settings) }
    }

    /// Adds something that was found out.
    pub(crate) fn learn(&self, change: impl FnOnce(&mut Settings)) {
        change(Arc::make_mut(&mut self.settings.write().unwrap_or_else(PoisonError::into_inner)));
    }
}

impl ServiceController {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let (watches, queue) = self.services;
        relay::start(&self.infra, watches.clone(), self.events.clone(), &self.tasks);
        let nodes = Nodes::start(self.nodes, self.node_queue);
        let services = Services::new(&self.guest, &self.infra);
        // The CCM must know infra's Services before it acts, or it would create each mirror a second time; and which
        // guest this is.
        let (guest_cluster, (), ()) = tokio::join!(
            owner_lookup::guest_cluster(&services),
            watches.wait_until_complete(),
            nodes.wait_until_known()
        );
        if self.settings.endpoints.choice.is_ours() {
            // Otherwise a new Service would start with a selector. An existing one keeps what it has.
            drop(tokio::time::timeout(ENDPOINTS_KNOWN, self.gate.wait_until_known()).await);
        }
        let places = watches.places();
        tracing::info!(namespace = self.infra.namespace, "serving LoadBalancer Services");
        let (concurrency, guests) = (self.concurrency.max(MIN_CONCURRENCY), watches.guests());
        let context = Arc::new(Context {
            services,
            watches,
            settings: RwLock::new(Arc::new(Settings { guest_cluster, ..self.settings })),
            owner: self.owner.map(|choice| Owner::new(choice, self.infra)),
            gate: self.gate,
            address_timeout: self.address_timeout,
            events: self.events,
            metrics: self.metrics,
            queue: self.queue,
            memory: Memory::default(),
            places,
            nodes,
        });
        owner_lookup::look_until_answered(&context).await;
        let followed = context.nodes.followed();
        tokio::join!(
            Self::passes(Arc::clone(&context), guests, queue, concurrency),
            sweep::run(&context, self.sweep_interval),
            nodes::follow(followed, &context),
            wake_waiting(&context),
        );
    }

    /// Reconciles each Service that `queue` names.
    async fn passes(
        context: Arc<Context>,
        guests: Store<GuestService>,
        queue: mpsc::Receiver<ObjectRef<GuestService>>,
        concurrency: u16,
    ) {
        let queue = futures::stream::unfold(queue, |mut queue| async {
            queue.recv().await.map(|service| (Ok::<_, std::convert::Infallible>(service), queue))
        });
        let counted = context.queue.clone();
        let passes = applier(
            |guest, context| Box::pin(pass(guest, context)),
            retry,
            context,
            guests,
            queue,
            Config::default().concurrency(concurrency),
        );
        passes
            .for_each(|passed| async {
                match passed {
                    Ok(_) => {}
                    Err(Error::ObjectNotFound(gone)) => {
                        counted.dropped(&(gone.namespace.unwrap_or_default(), gone.name));
                    }
                    Err(error) => tracing::debug!(%error, "a pass ended without success"),
                }
            })
            .await;
    }
}

/// Reconciles those Services that waited for a place of the quota and may now have one.
async fn wake_waiting(context: &Context) {
    loop {
        for next in context.places.next(&context.watches, &context.settings().identity).await {
            context.watches.look_at(next).await;
        }
    }
}

async fn pass(guest: Arc<GuestService>, context: Arc<Context>) -> Result<Action, Failure> {
    let began = Instant::now();
    let _urgent = context.events.urgent();
    let ObjectMeta { namespace, name, .. } = &guest.metadata;
    context.queue.taken(&(namespace.clone().unwrap_or_default(), name.clone().unwrap_or_default()));
    let passed = reconcile::reconcile(&guest, &context).await;
    context.queue.done(began.elapsed().as_secs_f64(), passed.is_err());
    context.metrics.waiting(context.memory.waiting());
    match &passed {
        Ok(_) => context.memory.succeeded(guest.uid()),
        Err(failure) if failure.is_refusal() => context.places.set_aside(guest.uid()),
        Err(_) => {}
    }
    passed
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is kube's")]
fn retry(guest: Arc<GuestService>, failure: &Failure, context: Arc<Context>) -> Action {
    let pause = context.memory.failed(guest.uid(), failure.is_outage());
    tracing::warn!(
        service = guest.metadata.name,
        namespace = guest.metadata.namespace,
        error = crate::access::chain(failure),
        pause = pause.as_secs(),
        "a pass failed and is repeated"
    );
    announce::failure(&guest, failure, &context);
    Action::requeue(pause)
}
