//! The events for the guest's users, with the framework's reasons and messages.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;

use crate::{
    access::chain,
    announcer::Kind,
    guest::services::GuestService,
    guest_names::infra_name,
    load_balancer::{
        context::Context,
        error::ReconcileError,
        mirror::Refused,
        plan::{Plan, Refusal, Step},
        size::listed,
    },
};

/// Reason of the event about a Service above the limits: refused, or kept because it is older.
const TOO_LARGE: &str = "LoadBalancerTooLarge";

/// Reports a step that was carried out.
pub(crate) fn step(guest: &GuestService, step: &Step, plan: &Plan, context: &Context) {
    let say = |reason, note| context.events.emit(&reference(guest), Kind::Normal, reason, note);
    match step {
        Step::SetStatus(ingress) if !ingress.is_empty() => {
            if let Some(waited) = context.index.has_address(guest.uid()) {
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

/// Reports that `writer` writes the status of the Service or its mirror too: it is overruled, at ever longer intervals.
pub(crate) fn contested(guest: &GuestService, kind: &str, writer: Option<&str>, context: &Context) {
    let writer = writer.unwrap_or("a program that managedFields does not name");
    let note = if kind == "status" {
        format!(
            "{writer} writes the addresses of this service (status.loadBalancer) too; they are restored, at ever longer \
             intervals. One load balancer may serve a service: stop the other, or give the service its loadBalancerClass"
        )
    } else {
        format!(
            "{writer} changes the infra service {} of this service; it is restored, at ever longer intervals. The operator \
             of the infra cluster has to keep that program from it, or this service has to ask for what it writes",
            infra_name(guest.uid())
        )
    };
    tracing::warn!(service = guest.metadata.name, namespace = guest.metadata.namespace, "{note}");
    context.events.emit(&reference(guest), Kind::Warning, "LoadBalancerContested", &note);
}

/// Reports what is refused; each text once.
pub(crate) fn refusals(guest: &GuestService, plan: &Plan, context: &Context) {
    let wishes = plan.refused.iter().map(|wish| (reason_of(wish), wish.to_string()));
    let whole = plan.refusal.iter().map(|refusal| {
        let reason = match refusal {
            Refusal::Quota(_) => "LoadBalancerQuotaExceeded",
            Refusal::TooLarge(_) => TOO_LARGE,
            Refusal::NoNodePort(_) | Refusal::Foreign(_) => "SyncLoadBalancerFailed",
        };
        (reason, format!("Error syncing load balancer: failed to ensure load balancer: {refusal}"))
    });
    let kept = (!plan.kept.is_empty()).then(|| {
        let text = format!(
            "the infra cluster's operator allows less for one load balancer: this service asks for {}; its load balancer has \
             that already and keeps it, but cannot get more",
            listed(&plan.kept)
        );
        (TOO_LARGE, text)
    });
    let said: Vec<_> = whole.chain(wishes).chain(kept).collect();
    let texts: Vec<_> = said.iter().map(|(_, text)| text.clone()).collect();
    if !context.index.is_news(guest.uid(), &texts) {
        return;
    }
    for (reason, text) in said {
        let (service, namespace) = (&guest.metadata.name, &guest.metadata.namespace);
        if plan.kept.is_empty() || reason != TOO_LARGE {
            tracing::warn!(service, namespace, "refused: {text}");
            context.metrics.refused(reason);
        } else {
            tracing::warn!(service, namespace, "{text}");
        }
        context.events.emit(&reference(guest), Kind::Warning, reason, &text);
    }
}

fn reason_of(wish: &Refused) -> &'static str {
    match wish {
        Refused::Policy(withheld) => withheld.reason(),
        Refused::Family { .. } | Refused::SecondFamily => "IPFamilyRefused",
        Refused::Adopted(_) => "FieldsRefused",
    }
}

/// Reports why a reconcile failed, in the framework's form.
pub(crate) fn error(guest: &GuestService, error: &ReconcileError, context: &Context) {
    let note = format!("Error syncing load balancer: {}", chain(error));
    context.events.emit(&reference(guest), Kind::Warning, "SyncLoadBalancerFailed", &note);
}

/// The guest Service as the object of an event.
pub(crate) fn reference(guest: &GuestService) -> ObjectReference {
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
