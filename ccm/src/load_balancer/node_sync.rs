//! What happens to the Services when the set of Nodes that take traffic changes: their conditions and events do.
//!
//! Where infra selects VMs by their labels, a change of the Nodes changes nothing in infra; the program that writes
//! endpoints follows each Node.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use tokio::time::{Instant, sleep};

use crate::{
    access::chain,
    guest::services::GuestService,
    guest_names::infra_name,
    load_balancer::{
        context::Context,
        error::ReconcileError,
        explain,
        nodes::Followed,
        plan::{Infra, plan},
    },
    queue_metrics::{Item, Queue},
};

/// Services that are updated at the same time.
const CONCURRENCY: usize = 32;
/// After a change, wait this long for more: Nodes come in groups.
const SETTLE: Duration = Duration::from_millis(100);

/// The one item of the queue.
fn item() -> Item {
    (String::new(), "nodes".to_owned())
}

/// Updates all Services whenever the set changes, without end.
pub(crate) async fn run(mut followed: Followed, queue: &Queue, context: &Context) {
    loop {
        followed.changed().await;
        queue.added(item());
        sleep(SETTLE).await;
        followed.catch_up();
        queue.taken(&item());
        let began = Instant::now();
        let served: Vec<_> = context.index.guests().state();
        let served = served.into_iter().filter(|guest| guest.wants_load_balancer() && guest.has_finalizer());
        let failed = AtomicBool::new(false);
        futures::stream::iter(served)
            .for_each_concurrent(CONCURRENCY, async |guest| {
                let began = Instant::now();
                if let Err(error) = refresh(&guest, context).await {
                    failed.store(true, Ordering::Relaxed);
                    tracing::warn!(error = chain(&error), "updating the nodes of a Service failed, retrying");
                    context.index.enqueue(ObjectRef::from_obj(&*guest));
                }
                context.metrics.hosts_updated(began.elapsed().as_secs_f64());
            })
            .await;
        let (seconds, failed) = (began.elapsed().as_secs_f64(), failed.into_inner());
        queue.done(seconds, failed);
        context.metrics.nodes_synced(seconds, failed);
    }
}

/// Writes the conditions and events of one Service after a change of the Nodes. If the Service has steps to carry out,
/// its reconcile does that.
async fn refresh(guest: &GuestService, context: &Context) -> Result<(), ReconcileError> {
    let mirror = context.index.mirror(&infra_name(guest.uid()));
    let infra = mirror.as_deref().map_or(Infra::NotSeen, Infra::Present);
    let plan = plan(guest, infra, &context.config_for(guest));
    if plan.steps.is_empty() {
        explain::write((guest, guest), &plan, false, Action::await_change(), context).await?;
    }
    Ok(())
}
