//! The service controller: watches the Services of both clusters, has each looked at when either changed, and carries out
//! the plan. Nothing in it waits for the world: what is missing comes as an event, and one Service holds up no other.

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
    guest::services::GuestService,
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
/// How many Services are worked on at a time, at least: a call that hangs ends after 10 s, and must not hold up the others
/// meanwhile.
const MIN_CONCURRENCY: u16 = 32;
/// How long to wait at first until it is known whether our own endpoints can be written.
const ENDPOINTS_KNOWN: Duration = Duration::from_secs(10);

/// All that the service controller needs.
pub struct ServiceController {
    /// Where the users' Services are.
    pub guest: GuestCluster,
    /// Where their mirrors are.
    pub infra: InfraCluster,
    /// Who the guest is, and who writes endpoints.
    pub settings: Settings,
    /// The Services of both clusters, and which of them to look at.
    pub services: (Watches, mpsc::Receiver<ObjectRef<GuestService>>),
    /// How far our own endpoints are.
    pub gate: Arc<Gate>,
    /// After this time without an address, the Service's users are told.
    pub address_timeout: Duration,
    /// With which infra object all that is this guest's goes.
    pub owner: Option<OwnerChoice>,
    /// How often left-overs are looked for; `None` = never.
    pub sweep_interval: Option<Duration>,
    /// `--concurrent-service-syncs`.
    pub concurrency: u16,
    /// Where events go.
    pub events: EventSink,
    /// What is counted.
    pub metrics: ServiceMetrics,
    /// What is counted of its queue.
    pub queue: Queue,
    /// What is counted of its queue for changes of Nodes.
    pub node_queue: Queue,
    /// The owner of its watches.
    pub tasks: Tasks,
}

/// What each pass uses.
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
    /// What was configured, with what was found out about the clusters.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same for one Service, with how far our own endpoints of it are.
    pub(crate) fn settings_for(&self, guest: &GuestService) -> Settings {
        let settings = self.settings();
        let slices = self.gate.slices(guest.uid());
        let endpoints = EndpointSource { slices, ..settings.endpoints };
        Settings { endpoints, ..Settings::clone(&settings) }
    }

    /// Changes what was found out.
    pub(crate) fn learn(&self, change: impl FnOnce(&mut Settings)) {
        change(Arc::make_mut(&mut self.settings.write().unwrap_or_else(PoisonError::into_inner)));
    }
}

impl ServiceController {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let (watches, queue) = self.services;
        relay::start(&self.infra, watches.clone(), self.events.clone(), &self.tasks);
        let mut nodes = Nodes::start(&self.guest, self.node_queue, &self.tasks);
        let services = Services::new(&self.guest, &self.infra);
        // What infra has must be known first, or each mirror would be made a second time; and who the guest is.
        let (guest_cluster, (), ()) = tokio::join!(
            owner_lookup::guest_cluster(&services),
            watches.wait_until_complete(),
            nodes.wait_until_known()
        );
        if self.settings.endpoints.choice.is_ours() {
            // Else a Service that is new would begin with a selector. Those that are there keep what they have.
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
        tokio::join!(
            Self::passes(Arc::clone(&context), guests, queue, concurrency),
            sweep::run(&context, self.sweep_interval),
            nodes::follow(&context),
            wake_waiting(&context),
        );
    }

    /// Has each Service looked at that `queue` names.
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

/// Has those looked at that waited for a place of the quota and may have one.
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
