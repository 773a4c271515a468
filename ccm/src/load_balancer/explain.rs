//! Writes the conditions of a guest Service, and the events that go with a change of them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::controller::Action;
use serde_json::Value;

use crate::{
    announcer::Kind,
    guest::services::GuestService,
    handover::Writer,
    load_balancer::{
        announce::reference,
        calls::Answer,
        conditions::{Backends, NO_NODES, WantedCondition, conditions, patch, serving_reason},
        context::Context,
        error::{ReconcileError, failed},
        plan::{Plan, Wait},
    },
};

/// The conditions as they should be once `plan` is carried out.
pub(crate) fn wanted(guest: &GuestService, plan: &Plan, context: &Context) -> Vec<WantedCondition> {
    let overdue =
        plan.waits_for == Some(Wait::Address) && context.index.waited(guest.uid()) >= context.address_timeout;
    let backends = if context.config.endpoints.choice.writer(guest.spec.is_local()) == Writer::Others {
        Backends::Elsewhere
    } else {
        context.nodes.backends()
    };
    conditions(guest, plan, overdue, backends)
}

/// The entries of the patch that sets these conditions; empty = they are set.
pub(crate) fn entries(guest: &GuestService, said: &[WantedCondition]) -> Vec<Value> {
    patch(&guest.status.conditions, said, &Time(Timestamp::now()))
}

/// Writes the conditions, unless a step has done so, and reports what changed between the Service as the watch has
/// `shown` it and as it is `now`. `goes` = this reconcile has deleted the mirror or removed the finalizer. `next` is the
/// result of the reconcile, passed through.
pub(crate) async fn write(
    (shown, now): (&GuestService, &GuestService),
    plan: &Plan,
    goes: bool,
    next: Action,
    context: &Context,
) -> Result<Action, ReconcileError> {
    // A Service that is about to disappear needs no conditions.
    if now.is_deleting() && goes {
        return Ok(next);
    }
    let said = wanted(now, plan, context);
    let entries = entries(now, &said);
    if !entries.is_empty() {
        let set = context.services.set_conditions(now, &entries).await;
        if let Answer::Done(now) = set.map_err(failed("update the load balancer conditions"))? {
            context.index.patched(&now);
        }
    }
    tell(shown, &said, context);
    Ok(next)
}

/// The framework's events for a change of the backends.
fn tell(guest: &GuestService, said: &[WantedCondition], context: &Context) {
    let before = serving_reason(&guest.status.conditions);
    let now = said.iter().find(|said| said.kind == crate::guest::services::SERVING);
    let Some(now) = now.map(|said| said.reason) else { return };
    let say = |kind, reason, note| context.events.emit(&reference(guest), kind, reason, note);
    if now == NO_NODES && before != Some(NO_NODES) {
        say(Kind::Warning, "UnAvailableLoadBalancer", "There are no available nodes for LoadBalancer");
    } else if before == Some(NO_NODES) && now != NO_NODES {
        say(Kind::Normal, "UpdatedLoadBalancer", "Updated load balancer with new hosts");
    }
}
