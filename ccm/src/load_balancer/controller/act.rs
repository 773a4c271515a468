//! One pass over one guest Service: observe, plan, act. Before each change that could harm, the guest Service is read again:
//! what a watch showed may be old.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::Context;
use super::api::Answer;
use crate::access::chain;
use crate::events::Kind;
use crate::load_balancer::identity::infra_name;
use crate::load_balancer::mirror::{Mirror, Refused};
use crate::load_balancer::plan::{Infra, Plan, Refusal, Step, Wait, plan};
use crate::load_balancer::service::{GuestService, InfraService};

/// How often infra is read again within one pass because somebody else was faster.
const MAX_LOOKS: usize = 4;
/// When a guest Service is looked at again of which the API says that it is another one, or gone: mostly its watch has shown that
/// by then. If it still shows the same Service, the answer was wrong (a proxy's 404, say).
const SUPERSEDED_INTERVAL: Duration = Duration::from_secs(5);
/// How often an infra Service that is not ours is looked at again: we do not watch it.
const FOREIGN_INTERVAL: Duration = Duration::from_mins(5);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A call failed.
    #[error("failed to {doing}")]
    Call {
        /// What was to be done.
        doing: &'static str,
        /// The API server's words.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody else changes the infra Service all the time.
    #[error("infra service {0} was changed by others again and again")]
    Unsettled(String),
}

impl Failure {
    /// Whether the API server did not serve at all.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Unsettled(_) => false,
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => status.code >= 500 || matches!(status.code, 401 | 429),
                _ => true,
            },
        }
    }
}

fn failed(doing: &'static str) -> impl FnOnce(kube::Error) -> Failure {
    move |source| Failure::Call { doing, source: Box::new(source) }
}

/// How a plan ended.
enum Outcome {
    /// All of it was carried out.
    Done,
    /// Infra is to be read, and to be planned for anew.
    Look,
    /// The guest Service is not there any more, or asks for something else: the watch shows it, or it is looked at again.
    Superseded,
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

/// One pass.
pub(super) async fn reconcile(guest: &GuestService, context: &Context) -> Result<Action, Failure> {
    let name = infra_name(guest.uid());
    let mut seen = context.watches.mirror(&name).map_or(Seen::Unknown, Seen::Present);
    for _ in 0..MAX_LOOKS {
        let plan = plan(guest, seen.as_infra(), &context.settings);
        match carry_out(guest, &plan, seen.as_infra(), context).await? {
            Outcome::Done => return Ok(conclude(guest, &plan, context)),
            Outcome::Superseded => return Ok(Action::requeue(SUPERSEDED_INTERVAL)),
            Outcome::Look => {
                let now =
                    context.services.mirror_now(&name).await.map_err(failed("read the infra service"))?;
                seen = now.map_or(Seen::Gone, |(_, infra)| Seen::Present(Arc::new(infra)));
            }
        }
    }
    Err(Failure::Unsettled(name))
}

async fn carry_out(
    guest: &GuestService,
    plan: &Plan,
    infra: Infra<'_>,
    context: &Context,
) -> Result<Outcome, Failure> {
    let services = &context.services;
    let mut fresh = None;
    for step in &plan.steps {
        let answer = match step {
            Step::AddFinalizer => {
                let added = services
                    .add_finalizer(guest)
                    .await
                    .map_err(failed("add the load balancer cleanup finalizer"))?;
                match added {
                    Answer::Done(now) => fresh = Some(now),
                    Answer::Absent | Answer::Changed => return Ok(Outcome::Superseded),
                }
                Answer::Done(())
            }
            Step::Confirm => Answer::Changed,
            Step::Create(_) | Step::Delete(_) => {
                let now = match fresh.take() {
                    Some(now) => Answer::Done(now),
                    None => services.guest_now(guest).await.map_err(failed("read the service again"))?,
                };
                match now {
                    Answer::Done(now) if still_planned(&now, infra, step, context) => {
                        change(&now, step, context).await?
                    }
                    _ => return Ok(Outcome::Superseded),
                }
            }
            Step::Replace(..) => replace(guest, context).await?,
            Step::SetStatus(ingress) => {
                let set = services.set_status(guest, ingress).await;
                done_or_absent(&set.map_err(failed("update the load balancer status"))?)
            }
            Step::RemoveFinalizer => {
                let removed = services.remove_finalizer(guest).await;
                done_or_absent(&removed.map_err(failed("remove the load balancer cleanup finalizer"))?)
            }
        };
        match answer {
            Answer::Done(()) => tell(guest, step, plan, context),
            Answer::Changed => return Ok(Outcome::Look),
            Answer::Absent => return Ok(Outcome::Superseded),
        }
    }
    Ok(Outcome::Done)
}

fn done_or_absent(answer: &Answer<GuestService>) -> Answer<()> {
    match answer {
        Answer::Done(_) => Answer::Done(()),
        Answer::Absent | Answer::Changed => Answer::Absent,
    }
}

/// Whether the guest Service as it is now asks for the same kind of step.
fn still_planned(now: &GuestService, infra: Infra<'_>, step: &Step, context: &Context) -> bool {
    let kind = std::mem::discriminant(step);
    plan(now, infra, &context.settings).steps.iter().any(|step| std::mem::discriminant(step) == kind)
}

/// Creates or deletes the mirror of `guest`, which was read just now.
async fn change(guest: &GuestService, step: &Step, context: &Context) -> Result<Answer<()>, Failure> {
    let settings = &context.settings;
    let about = reference(guest);
    if let Step::Delete(uid) = step {
        context.events.emit(&about, Kind::Normal, "DeletingLoadBalancer", "Deleting load balancer");
        let deleted = context.services.delete_mirror(&infra_name(guest.uid()), uid).await;
        let deleted = deleted.map_err(failed("delete load balancer"))?;
        // Gone already: the watch, or the next read, proves it.
        return Ok(if matches!(deleted, Answer::Absent) { Answer::Changed } else { deleted });
    }
    context.events.emit(&about, Kind::Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
    let mirror = Mirror::of(guest, None, &settings.identity, settings.endpoints);
    context.memory.waits(guest.uid());
    let created = context.services.create_mirror(&mirror.new_object()).await;
    created.map_err(failed("ensure load balancer"))
}

/// Makes the infra Service, as it is now, the mirror again.
async fn replace(guest: &GuestService, context: &Context) -> Result<Answer<()>, Failure> {
    let name = infra_name(guest.uid());
    let now = context.services.mirror_now(&name).await.map_err(failed("read the infra service"))?;
    let Some((mut object, infra)) = now else { return Ok(Answer::Changed) };
    let planned = plan(guest, Infra::Present(&infra), &context.settings).steps;
    let Some(Step::Replace(mirror, fields)) = planned.iter().find(|step| matches!(step, Step::Replace(..)))
    else {
        // Somebody else was faster, or it is not ours any more: plan for what is there now.
        return Ok(Answer::Changed);
    };
    tracing::info!(
        service = guest.metadata.name,
        namespace = guest.metadata.namespace,
        ?fields,
        "updating infra"
    );
    context.events.emit(&reference(guest), Kind::Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
    mirror.write_into(&mut object, &infra);
    context.services.replace_mirror(&name, &object).await.map_err(failed("ensure load balancer"))
}

/// What the users are told about a step that was carried out.
fn tell(guest: &GuestService, step: &Step, plan: &Plan, context: &Context) {
    let say = |reason, note| context.events.emit(&reference(guest), Kind::Normal, reason, note);
    match step {
        Step::SetStatus(ingress) if !ingress.is_empty() => {
            if let Some(waited) = context.memory.has_address(guest.uid()) {
                context.metrics.address_after(waited.as_secs_f64());
            }
            say("EnsuredLoadBalancer", "Ensured load balancer");
        }
        Step::Replace(..) => {
            context.metrics.synced();
            if plan.waits_for.is_none() {
                say("EnsuredLoadBalancer", "Ensured load balancer");
            }
        }
        Step::Create(_) | Step::Delete(_) => context.metrics.synced(),
        Step::RemoveFinalizer => say("DeletedLoadBalancer", "Deleted load balancer"),
        Step::AddFinalizer | Step::Confirm | Step::SetStatus(_) => {}
    }
}

/// What is left when all steps are done: waiting, and telling what is not granted.
fn conclude(guest: &GuestService, plan: &Plan, context: &Context) -> Action {
    tell_refusals(guest, plan, context);
    if plan.steps.contains(&Step::RemoveFinalizer) {
        context.memory.forget(guest.uid());
        return Action::await_change();
    }
    if matches!(plan.refusal, Some(Refusal::Foreign(_))) {
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

/// Tells what is not granted, once in each wording.
fn tell_refusals(guest: &GuestService, plan: &Plan, context: &Context) {
    let wishes = plan.refused.iter().map(|wish| (reason_of(wish), wish.to_string()));
    let whole = plan.refusal.iter().map(|refusal| {
        (
            "SyncLoadBalancerFailed",
            format!("Error syncing load balancer: failed to ensure load balancer: {refusal}"),
        )
    });
    let said: Vec<_> = whole.chain(wishes).collect();
    let texts: Vec<_> = said.iter().map(|(_, text)| text.clone()).collect();
    if !context.memory.is_news(guest.uid(), &texts) {
        return;
    }
    for (reason, text) in said {
        tracing::warn!(
            service = guest.metadata.name,
            namespace = guest.metadata.namespace,
            "refused: {text}"
        );
        context.metrics.refused(reason);
        context.events.emit(&reference(guest), Kind::Warning, reason, &text);
    }
}

fn reason_of(wish: &Refused) -> &'static str {
    match wish {
        Refused::ExternalIps(_) => "ExternalIPsRefused",
        Refused::Family { .. } => "IPFamilyRefused",
    }
}

/// Tells the users why a pass failed, in the framework's words.
pub(super) fn tell_failure(guest: &GuestService, failure: &Failure, context: &Context) {
    let note = format!("Error syncing load balancer: {}", chain(failure));
    context.events.emit(&reference(guest), Kind::Warning, "SyncLoadBalancerFailed", &note);
}

/// The guest Service, as an event names it.
pub(super) fn reference(guest: &GuestService) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        name: Some(guest.name_any()),
        namespace: guest.metadata.namespace.clone(),
        uid: guest.metadata.uid.clone(),
        resource_version: guest.metadata.resource_version.clone(),
        field_path: None,
    }
}
