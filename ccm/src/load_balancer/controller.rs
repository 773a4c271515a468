//! The service controller: watches the Services of both clusters, has each looked at when either changed, and carries out
//! the plan. Nothing in it waits for the world: what is missing comes as an event, and one Service holds up no other.

mod act;
mod api;
mod changed;
mod memory;
mod relay;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::controller::{Action, Config, applier};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::access::{GuestCluster, InfraCluster};
use crate::endpoints::choice::EndpointSource;
use crate::endpoints::gate::Gate;
use crate::events::EventSink;

use super::metrics::ServiceMetrics;
use super::plan::Settings;
use super::service::GuestService;
use act::Failure;
use api::Services;
use memory::Memory;
pub use watches::Watches as ServiceWatches;
use watches::Watches;

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
    pub services: (ServiceWatches, mpsc::Receiver<ObjectRef<GuestService>>),
    /// How far our own endpoints are.
    pub gate: Arc<Gate>,
    /// After this time without an address, the Service's users are told.
    pub address_timeout: Duration,
    /// `--concurrent-service-syncs`.
    pub concurrency: u16,
    /// Where events go.
    pub events: EventSink,
    /// What is counted.
    pub metrics: ServiceMetrics,
}

/// What each pass uses.
struct Context {
    services: Services,
    watches: Watches,
    settings: Settings,
    gate: Arc<Gate>,
    address_timeout: Duration,
    events: EventSink,
    metrics: ServiceMetrics,
    memory: Memory,
}

impl ServiceController {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let (watches, queue) = self.services;
        relay::start(&self.infra, watches.clone(), self.events.clone());
        // What infra has must be known first, or each mirror would be made a second time.
        watches.wait_until_complete().await;
        if self.settings.endpoints.choice.is_ours() {
            // Else a Service that is new would begin with a selector. Those that are there keep what they have.
            drop(tokio::time::timeout(ENDPOINTS_KNOWN, self.gate.wait_until_known()).await);
        }
        tracing::info!(namespace = self.infra.namespace, "serving LoadBalancer Services");
        let concurrency = self.concurrency.max(MIN_CONCURRENCY);
        let guests = watches.guests();
        let context = Arc::new(Context {
            services: Services::new(&self.guest, &self.infra),
            watches,
            settings: self.settings,
            gate: self.gate,
            address_timeout: self.address_timeout,
            events: self.events,
            metrics: self.metrics,
            memory: Memory::default(),
        });
        let queue = futures::stream::unfold(queue, |mut queue| async {
            queue.recv().await.map(|service| (Ok::<_, std::convert::Infallible>(service), queue))
        });
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
                if let Err(error) = passed {
                    tracing::debug!(%error, "a pass ended without success");
                }
            })
            .await;
    }
}

impl Context {
    /// What was configured, and how far our own endpoints of this Service are.
    fn settings(&self, guest: &GuestService) -> Settings {
        let slices = self.gate.slices(guest.uid());
        let endpoints = EndpointSource { slices, ..self.settings.endpoints };
        Settings { endpoints, ..self.settings.clone() }
    }
}

async fn pass(guest: Arc<GuestService>, context: Arc<Context>) -> Result<Action, Failure> {
    let began = Instant::now();
    let passed = act::reconcile(&guest, &context).await;
    context.metrics.pass(began.elapsed().as_secs_f64(), passed.is_err());
    context.metrics.waiting(context.memory.waiting());
    if passed.is_ok() {
        context.memory.succeeded(guest.uid());
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
    act::tell_failure(&guest, failure, &context);
    Action::requeue(pause)
}
