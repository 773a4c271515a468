//! One reconcile of one guest Service: observe, plan, act. A change that could do harm needs more than a watch, which
//! may be behind.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;

use crate::{
    announcer::Kind,
    guest::services::GuestService,
    guest_names::infra_name,
    infra::mirrors::InfraService,
    load_balancer::{
        announce::{self, reference},
        calls::{Answer, Deleted},
        context::Context,
        error::{ReconcileError, failed},
        explain,
        plan::{Infra, Plan, Refusal, Step, Wait, plan},
    },
};

/// How often one reconcile reads infra because another program was faster.
const MAX_LOOKS: usize = 4;
/// Pause before the next reconcile of a guest Service that the API reports as gone or replaced. The watch has usually
/// shown that by then. If it still shows the same Service, the answer was wrong (a proxy's 404, for example).
const SUPERSEDED_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before the next check of an infra Service that is not ours, which we do not watch.
const FOREIGN_INTERVAL: Duration = Duration::from_mins(5);

/// How the plan ended.
enum Outcome {
    /// All steps were carried out.
    Done,
    /// Infra has to be read, and the Service planned again.
    Look,
    /// Infra answered that its Service is gone, so plan again.
    Gone,
    /// The guest Service is gone, or asks for something else. The watch will show that; if it does not, a later
    /// reconcile checks.
    Superseded,
}

/// How a step ended.
enum Stepped {
    /// The next step may follow.
    Done,
    /// The step ended the plan.
    Ended(Outcome),
}

/// What is known of the infra Service.
enum Seen {
    Unknown,
    Gone,
    Present(Arc<InfraService>),
}

impl Seen {
    fn as_infra(&self) -> Infra<'_> {
        match self {
            Self::Unknown => Infra::NotSeen,
            Self::Gone => Infra::Gone,
            Self::Present(infra) => Infra::Present(infra),
        }
    }
}

/// The guest Service of a reconcile.
struct Subject<'a> {
    /// As the watch showed it.
    shown: &'a GuestService,
    /// As its API answered last in this reconcile.
    answered: Option<GuestService>,
}

impl Subject<'_> {
    fn guest(&self) -> &GuestService {
        self.answered.as_ref().unwrap_or(self.shown)
    }

    /// Keeps the API's answer.
    fn keep(&mut self, answer: Answer<GuestService>, context: &Context) -> Stepped {
        match answer {
            Answer::Done(now) => {
                context.watches.patched(&now);
                self.answered = Some(now);
                Stepped::Done
            }
            Answer::Absent | Answer::Changed => Stepped::Ended(Outcome::Superseded),
        }
    }
}

/// One reconcile. These are the calls in the life of a Service when nothing goes wrong, and why each is needed:
///
/// 1. guest `patch services/status`: adds the finalizer, before infra has anything that could be left over; also the
///    conditions.
/// 2. infra `create services`: creates the mirror.
/// 3. guest `patch services/status`: sets the address, and the conditions that change with it.
/// 4. infra `delete services`: deletes the mirror; if no finalizer holds it, the answer proves that it is gone.
/// 5. guest `patch services/status`: removes the finalizer, after that proof.
///
/// The reconcile reads only where these answers or a watch leave something open: see [`change`] and [`Step::Confirm`].
pub(crate) async fn reconcile(guest: &GuestService, context: &Context) -> Result<Action, ReconcileError> {
    if let Some(left) = context.watches.is_behind(guest) {
        // The event of our patch triggers the next reconcile.
        return Ok(Action::requeue(left));
    }
    let name = infra_name(guest.uid());
    let mut seen = context.watches.mirror(&name).map_or(Seen::Unknown, Seen::Present);
    let mut subject = Subject { shown: guest, answered: None };
    for _ in 0..MAX_LOOKS {
        let config = context.config_for(guest);
        let plan = plan(subject.guest(), seen.as_infra(), &config);
        if let Some(left) = awaited(&plan, &seen, &name, context) {
            return Ok(Action::requeue(left));
        }
        let plan = context.places.limit(guest, plan, &context.watches, &config.identity);
        match carry_out(&mut subject, &plan, seen.as_infra(), context).await? {
            Outcome::Done => {
                let next = conclude(guest, &plan, context);
                return explain::write((guest, subject.guest()), &plan, next, context).await;
            }
            Outcome::Superseded => return Ok(Action::requeue(SUPERSEDED_INTERVAL)),
            Outcome::Gone => seen = Seen::Gone,
            Outcome::Look => {
                let now =
                    context.services.mirror_now(&name).await.map_err(failed("read the infra service"))?;
                seen = now.map_or(Seen::Gone, |(_, infra)| Seen::Present(Arc::new(infra)));
            }
        }
    }
    Err(ReconcileError::Unsettled(name))
}

/// How long to wait because the mirror was already created and only the watch does not show it yet.
fn awaited(plan: &Plan, seen: &Seen, name: &str, context: &Context) -> Option<Duration> {
    let creates = plan.steps.iter().any(|step| matches!(step, Step::Create(_)));
    let is_open = creates && matches!(seen, Seen::Unknown);
    is_open.then(|| context.watches.is_coming(name)).flatten()
}

async fn carry_out(
    subject: &mut Subject<'_>,
    plan: &Plan,
    infra: Infra<'_>,
    context: &Context,
) -> Result<Outcome, ReconcileError> {
    let services = &context.services;
    for step in &plan.steps {
        let guest = subject.guest();
        let entries = || explain::entries(guest, &explain::wanted(guest, plan, context));
        let stepped = match step {
            Step::AddFinalizer => {
                let added = services.add_finalizer(guest, &entries()).await;
                subject.keep(added.map_err(failed("add the load balancer cleanup finalizer"))?, context)
            }
            Step::SetStatus(ingress) => {
                let set = services.set_status(guest, ingress, &entries()).await;
                subject.keep(set.map_err(failed("update the load balancer status"))?, context)
            }
            Step::RemoveFinalizer => {
                let removed = services.remove_finalizer(guest).await;
                subject.keep(removed.map_err(failed("remove the load balancer cleanup finalizer"))?, context)
            }
            Step::Confirm => Stepped::Ended(Outcome::Look),
            Step::Create(_) | Step::Delete(_) => change(subject, infra, step, context).await?,
            Step::Replace(..) => replace(guest, context).await?,
        };
        if matches!(stepped, Stepped::Done | Stepped::Ended(Outcome::Gone)) {
            announce::step(subject.shown, step, plan, context);
        }
        if let Stepped::Ended(outcome) = stepped {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Done)
}

/// Whether the guest Service as it is now leads to the same kind of step.
fn still_planned(now: &GuestService, infra: Infra<'_>, step: &Step, context: &Context) -> bool {
    let kind = std::mem::discriminant(step);
    plan(now, infra, &context.config_for(now)).steps.iter().any(|step| std::mem::discriminant(step) == kind)
}

/// Creates or deletes the mirror. The watch may be behind, so this reads the guest Service first; not if its API has
/// answered in this reconcile, nor if it is being deleted, which nothing can undo.
async fn change(
    subject: &mut Subject<'_>,
    infra: Infra<'_>,
    step: &Step,
    context: &Context,
) -> Result<Stepped, ReconcileError> {
    let is_final = matches!(step, Step::Delete(_)) && subject.shown.is_deleting();
    if subject.answered.is_none() && !is_final {
        let now =
            context.services.guest_now(subject.shown).await.map_err(failed("read the service again"))?;
        if let Stepped::Ended(outcome) = subject.keep(now, context) {
            return Ok(Stepped::Ended(outcome));
        }
    }
    if !still_planned(subject.guest(), infra, step, context) {
        return Ok(Stepped::Ended(Outcome::Superseded));
    }
    match step {
        Step::Delete(uid) => delete(subject.guest(), uid, context).await,
        _ => create(subject, context).await,
    }
}

async fn delete(guest: &GuestService, uid: &str, context: &Context) -> Result<Stepped, ReconcileError> {
    context.events.emit(&reference(guest), Kind::Normal, "DeletingLoadBalancer", "Deleting load balancer");
    let name = infra_name(guest.uid());
    let deleted = context.services.delete_mirror(&name, uid).await;
    Ok(match deleted.map_err(failed("delete load balancer"))? {
        Answer::Done(Deleted::Gone) => {
            context.watches.deleted(&name, uid);
            Stepped::Ended(Outcome::Gone)
        }
        Answer::Done(Deleted::Going) => Stepped::Done,
        // It is gone, or another object has its name; the next read proves which.
        Answer::Absent | Answer::Changed => Stepped::Ended(Outcome::Look),
    })
}

async fn create(subject: &Subject<'_>, context: &Context) -> Result<Stepped, ReconcileError> {
    let guest = subject.guest();
    context.events.emit(&reference(guest), Kind::Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
    if subject.shown.has_finalizer() {
        // It had a mirror that another program deleted, perhaps together with its owner.
        context.owner.look().await;
    }
    let mirror = context.config_for(guest).mirror(guest, None);
    context.memory.waits(guest.uid());
    let created = context.services.create_mirror(&mirror.new_object()).await;
    let created = changed(&created.map_err(failed("ensure load balancer"))?);
    if matches!(created, Stepped::Done) {
        context.watches.created(&mirror.name);
    }
    Ok(created)
}

/// If a change of infra was not made, infra is read again.
fn changed(answer: &Answer<()>) -> Stepped {
    match answer {
        Answer::Done(()) => Stepped::Done,
        Answer::Absent | Answer::Changed => Stepped::Ended(Outcome::Look),
    }
}

/// Turns the infra Service into the mirror again. It is read first, because the whole object is replaced and the watch
/// keeps only a part of it.
async fn replace(guest: &GuestService, context: &Context) -> Result<Stepped, ReconcileError> {
    let name = infra_name(guest.uid());
    let now = context.services.mirror_now(&name).await.map_err(failed("read the infra service"))?;
    let Some((mut object, infra)) = now else { return Ok(Stepped::Ended(Outcome::Look)) };
    let planned = plan(guest, Infra::Present(&infra), &context.config_for(guest)).steps;
    let Some(Step::Replace(mirror, fields)) = planned.iter().find(|step| matches!(step, Step::Replace(..)))
    else {
        // Another program was faster, or the Service is not ours any more: plan again with what is there now.
        return Ok(Stepped::Ended(Outcome::Look));
    };
    tracing::info!(
        service = guest.metadata.name,
        namespace = guest.metadata.namespace,
        ?fields,
        "updating infra"
    );
    context.events.emit(&reference(guest), Kind::Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
    mirror.write_into(&mut object, &infra);
    let replaced = context.services.replace_mirror(&name, &object).await;
    Ok(changed(&replaced.map_err(failed("ensure load balancer"))?))
}

/// What follows when all steps are done: the wait, and the events about what is refused.
fn conclude(guest: &GuestService, plan: &Plan, context: &Context) -> Action {
    announce::refusals(guest, plan, context);
    if plan.steps.contains(&Step::RemoveFinalizer) {
        context.memory.forget(guest.uid());
        context.backoff.succeeded(guest.uid());
        context.places.forget(guest.uid());
        return Action::await_change();
    }
    if matches!(plan.refusal, Some(Refusal::Foreign(_))) {
        context.places.set_aside(guest.uid());
        return Action::requeue(FOREIGN_INTERVAL);
    }
    if plan.waits_for != Some(Wait::Address) {
        context.memory.has_address(guest.uid());
        return Action::await_change();
    }
    let left = context.address_timeout.saturating_sub(context.memory.waits(guest.uid()));
    if !left.is_zero() {
        return Action::requeue(left);
    }
    let note = format!(
        "Error syncing load balancer: the infra cluster has assigned no address to service {} for {} s; \
         it is taken over as soon as it comes",
        infra_name(guest.uid()),
        context.address_timeout.as_secs()
    );
    context.events.emit(&reference(guest), Kind::Warning, "SyncLoadBalancerFailed", &note);
    Action::await_change()
}
