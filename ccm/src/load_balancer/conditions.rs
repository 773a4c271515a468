//! What the guest's users read in `status.conditions` of a Service: whether infra has provided a load balancer, and
//! whether that has backends. Pure. Conditions of other programs stay, and a condition that is already as it should be
//! is not written.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use crate::{
    guest::services::{GuestService, PROVISIONED, SERVING, is_ours},
    guest_names::infra_name,
    load_balancer::plan::{Plan, Refusal, Step, Wait},
    wire::service::Condition,
};
use k8s_openapi::api::core::v1::LoadBalancerIngress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

/// Reason of [`SERVING`]: all Nodes are excluded, or there is none.
pub const NO_NODES: &str = "NoNodes";

const TRUE: &str = "True";
const FALSE: &str = "False";
const UNKNOWN: &str = "Unknown";
/// Longest message that the API accepts (validation of `metav1.Condition`).
const MAX_MESSAGE: usize = 32_768;

/// Which backends a load balancer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backends {
    /// The guest's Nodes are not known, or not yet.
    Unknown,
    /// Another program writes the endpoints.
    Elsewhere,
    /// No Node takes traffic.
    NoNodes,
    /// Some Nodes take traffic.
    Nodes,
}

/// One condition as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedCondition {
    /// `type`.
    pub kind: &'static str,
    /// `status`.
    pub status: &'static str,
    /// `reason`.
    pub reason: &'static str,
    /// `message`.
    pub message: String,
}

/// The conditions of a Service with this plan. `overdue` = it has waited for an address longer than it should.
pub fn conditions(
    guest: &GuestService,
    plan: &Plan,
    overdue: bool,
    backends: Backends,
) -> Vec<WantedCondition> {
    let ends = plan.steps.contains(&Step::RemoveFinalizer);
    let is_others = guest.spec.load_balancer_class.is_some();
    if ends || is_others || (!guest.wants_load_balancer() && plan.waits_for.is_none()) {
        return Vec::new();
    }
    let provisioned = provisioned(guest, plan, overdue);
    let serving = serving(provisioned.status == TRUE, backends);
    vec![provisioned, serving]
}

fn provisioned(guest: &GuestService, plan: &Plan, overdue: bool) -> WantedCondition {
    let said =
        |status, reason, message: String| WantedCondition { kind: PROVISIONED, status, reason, message };
    let (name, shown) = (infra_name(guest.uid()), ingress(guest, plan));
    if let Some(refusal) = &plan.refusal {
        // The load balancer that infra has keeps serving.
        let status = if shown.is_empty() { FALSE } else { TRUE };
        return said(status, reason(refusal), refusal.to_string());
    }
    match plan.waits_for {
        Some(Wait::Deletion) => said(FALSE, "Deleting", format!("infra service {name} is being deleted")),
        Some(Wait::Address) if overdue => {
            said(FALSE, "NoAddress", format!("the infra cluster assigns no address to service {name}"))
        }
        Some(Wait::Address) => said(FALSE, "Pending", format!("infra service {name} has no address yet")),
        None if plan.refused.is_empty() => {
            said(TRUE, "Provisioned", format!("infra service {name} has its address"))
        }
        None => {
            let refused: Vec<_> = plan.refused.iter().map(ToString::to_string).collect();
            said(TRUE, "PartlyRefused", refused.join("; "))
        }
    }
}

fn serving(provisioned: bool, backends: Backends) -> WantedCondition {
    let (status, reason, message) = match backends {
        Backends::NoNodes => {
            (FALSE, NO_NODES, "no node can receive load balancer traffic: there is none, or all are excluded")
        }
        _ if !provisioned => (FALSE, "NotProvisioned", "there is no load balancer yet"),
        Backends::Unknown => (UNKNOWN, "NodesUnknown", "the nodes of this cluster are not known"),
        Backends::Elsewhere => (UNKNOWN, "EndpointsElsewhere", "another controller writes the endpoints"),
        Backends::Nodes => (TRUE, "Serving", "nodes of this cluster take its traffic"),
    };
    WantedCondition { kind: SERVING, status, reason, message: message.to_owned() }
}

fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NoNodePort(_) => "NoNodePort",
        Refusal::Foreign(_) => "InfraServiceNotOurs",
        Refusal::TooLarge(_) => "TooLarge",
        Refusal::Quota(_) => "QuotaExceeded",
    }
}

/// The addresses that the guest Service shows after the plan was carried out.
fn ingress<'a>(guest: &'a GuestService, plan: &'a Plan) -> &'a [LoadBalancerIngress] {
    let set = plan.steps.iter().find_map(|step| match step {
        Step::SetStatus(ingress) => Some(ingress.as_slice()),
        _ => None,
    });
    set.unwrap_or(&guest.status.load_balancer.ingress)
}

/// The entries of a strategic merge patch that turns the conditions `present` into those that are `wanted`; empty =
/// nothing to write.
pub fn patch(present: &[Condition], wanted: &[WantedCondition], now: &Time) -> Vec<Value> {
    let find = |kind: &str| present.iter().find(|condition| condition.kind == kind);
    let changed = wanted.iter().filter_map(|said| {
        let found = find(said.kind);
        let message = &said.message[..said.message.floor_char_boundary(MAX_MESSAGE)];
        let same = |found: &Condition| {
            (found.status.as_str(), found.reason.as_str(), found.message.as_str())
                == (said.status, said.reason, message)
        };
        if found.is_some_and(same) {
            return None;
        }
        let kept = found.filter(|found| found.status == said.status);
        let since = kept.and_then(|found| found.last_transition_time.as_ref());
        Some(json!({ "type": said.kind, "status": said.status, "reason": said.reason, "message": message,
            "lastTransitionTime": since.map_or_else(|| json!(now), |since| json!(since)) }))
    });
    let gone = present
        .iter()
        .filter(|found| is_ours(found) && wanted.iter().all(|said| said.kind != found.kind))
        .map(|found| json!({ "type": found.kind, "$patch": "delete" }));
    changed.chain(gone).collect()
}

/// The reason of [`SERVING`] among these.
pub fn serving_reason(present: &[Condition]) -> Option<&str> {
    present.iter().find(|condition| condition.kind == SERVING).map(|condition| condition.reason.as_str())
}

#[cfg(test)]
mod tests;
