//! What to do next about one guest Service: a function of the two Services and the configuration.
//!
//! The same observation gives the same plan, and a plan that was carried out leaves nothing to plan. What is not proved to
//! be this guest's is never changed or deleted; that something is gone is believed only of a read of the infra API.

use std::sync::Arc;

use k8s_openapi::api::core::v1::LoadBalancerIngress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::{
    config::policy::GuestPolicy,
    guest::services::GuestService,
    guest_names::{Foreign, GUEST_CLUSTER_ANNOTATION, Identity},
    handover::EndpointSource,
    infra::mirrors::InfraService,
    load_balancer::mirror::{Mirror, Refused},
};

/// What was configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Who this guest is.
    pub identity: Identity,
    /// Which endpoints its infra Services have.
    pub endpoints: EndpointSource,
    /// What of the guest's wishes may reach infra; shared, for each pass has settings of its own.
    pub policy: Arc<GuestPolicy>,
    /// UID of the guest cluster; `None` = not known.
    pub guest_cluster: Option<String>,
    /// The infra object with which all that is this guest's goes.
    pub owner: Option<OwnerReference>,
}

/// What is known of the infra Service.
#[derive(Clone, Copy, Debug)]
pub enum Infra<'a> {
    /// The watch does not show it, which proves nothing: it may be late, and shows only what has our labels.
    NotSeen,
    /// The infra API answered that there is none.
    Gone,
    /// It is there.
    Present(&'a InfraService),
}

/// What to do, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The calls.
    pub steps: Vec<Step>,
    /// What the world does next, where nothing is left to do for us.
    pub waits_for: Option<Wait>,
    /// Why the Service can not be served as it is.
    pub refusal: Option<Refusal>,
    /// Wishes that are left out.
    pub refused: Vec<Refused>,
}

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Guest: put the finalizer on, before anything is made in infra.
    AddFinalizer,
    /// Infra: create the mirror.
    Create(Box<Mirror>),
    /// Infra: make the Service the mirror again.
    Replace(Box<Mirror>, Vec<&'static str>),
    /// Guest: show these addresses.
    SetStatus(Vec<LoadBalancerIngress>),
    /// Infra: delete the Service with this UID.
    Delete(String),
    /// Infra: read it, because the watch does not prove that it is gone. Then plan again.
    Confirm,
    /// Guest: take the finalizer off.
    RemoveFinalizer,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Infra gives an address.
    Address,
    /// Infra ends the deletion.
    Deletion,
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Traffic would go to the VM's port of the Service's number, where nobody listens.
    #[error(
        "port {0} has no node port, and load balancers reach the VMs through node ports; \
         set allocateLoadBalancerNodePorts to true"
    )]
    NoNodePort(i32),
    /// The name is taken by another's.
    #[error(transparent)]
    Foreign(#[from] Foreign),
    /// The guest has all the load balancers that it may have.
    #[error(
        "this cluster has the {0} load balancers that the infra cluster's operator allows; \
         this one is made as soon as another is gone"
    )]
    Quota(u32),
}

impl Settings {
    /// The mirror of `guest`, with what `existing` has already and may keep.
    pub fn mirror(&self, guest: &GuestService, existing: Option<&InfraService>) -> Mirror {
        let mut mirror = Mirror::of(guest, existing, &self.identity, self.endpoints, &self.policy);
        if let Some(uid) = &self.guest_cluster {
            mirror.annotations.insert(GUEST_CLUSTER_ANNOTATION.to_owned(), uid.clone());
        }
        mirror.owner.clone_from(&self.owner);
        mirror
    }
}

impl Plan {
    /// Whether there is nothing to do and nothing to wait for or to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What to do about `guest`, of which `infra` is known.
pub fn plan(guest: &GuestService, infra: Infra<'_>, settings: &Settings) -> Plan {
    if guest.wants_load_balancer() && !guest.is_deleting() {
        return serve(guest, infra, settings);
    }
    if guest.spec.load_balancer_class.is_some() {
        return hand_over(guest, infra, settings);
    }
    if guest.has_finalizer() {
        return clean_up(guest, infra, settings);
    }
    Plan::default()
}

fn serve(guest: &GuestService, infra: Infra<'_>, settings: &Settings) -> Plan {
    if let Infra::Present(present) = infra
        && let Err(foreign) = settings.identity.check(guest, present)
    {
        return Plan { refusal: Some(foreign.into()), ..Plan::default() };
    }
    if let Some(port) = guest.spec.ports.iter().find(|port| port.node_port == 0) {
        // What is there already serves on: the refusal is of the change.
        return Plan { refusal: Some(Refusal::NoNodePort(port.port)), ..Plan::default() };
    }
    let mut plan = Plan::default();
    if !guest.has_finalizer() {
        plan.steps.push(Step::AddFinalizer);
    }
    let present = match infra {
        Infra::Present(present) if present.is_deleting() => {
            // Its name is free, and made anew, when it is gone.
            plan.waits_for = Some(Wait::Deletion);
            return plan;
        }
        Infra::Present(present) => Some(present),
        Infra::NotSeen | Infra::Gone => None,
    };
    let mirror = settings.mirror(guest, present);
    plan.refused.clone_from(&mirror.refused);
    let ingress = match present {
        None => {
            plan.steps.push(Step::Create(Box::new(mirror)));
            &[]
        }
        Some(present) => {
            let differences = mirror.differences(present);
            if !differences.is_empty() {
                plan.steps.push(Step::Replace(Box::new(mirror), differences));
            }
            present.status.load_balancer.ingress.as_slice()
        }
    };
    show(guest, ingress, &mut plan);
    if ingress.is_empty() {
        plan.waits_for = Some(Wait::Address);
    }
    plan
}

/// The guest's status is infra's, whatever stood there.
fn show(guest: &GuestService, ingress: &[LoadBalancerIngress], plan: &mut Plan) {
    if guest.status.load_balancer.ingress != ingress {
        plan.steps.push(Step::SetStatus(ingress.to_vec()));
    }
}

fn clean_up(guest: &GuestService, infra: Infra<'_>, settings: &Settings) -> Plan {
    let mut plan = Plan::default();
    match infra {
        Infra::NotSeen => {
            plan.steps.push(Step::Confirm);
            return plan;
        }
        Infra::Present(present) => match settings.identity.check(guest, present) {
            Ok(()) => {
                delete(present, &mut plan);
                return plan;
            }
            // Ours does not exist, then: its name is another's.
            Err(foreign) => plan.refusal = Some(foreign.into()),
        },
        Infra::Gone => {}
    }
    if !guest.is_deleting() {
        show(guest, &[], &mut plan);
    }
    plan.steps.push(Step::RemoveFinalizer);
    plan
}

fn delete(present: &InfraService, plan: &mut Plan) {
    if !present.is_deleting() {
        plan.steps.push(Step::Delete(present.metadata.uid.clone().unwrap_or_default()));
    }
    plan.waits_for = Some(Wait::Deletion);
}

/// A Service that was ours and now names a class: what we made goes. Its finalizer may be the other controller's, who has
/// the same framework, unless our infra Service is still there.
fn hand_over(guest: &GuestService, infra: Infra<'_>, settings: &Settings) -> Plan {
    let mut plan = Plan::default();
    let Infra::Present(present) = infra else { return plan };
    if settings.identity.check(guest, present).is_err() || present.is_deleting() {
        return plan;
    }
    if guest.has_finalizer() {
        plan.steps.push(Step::RemoveFinalizer);
    }
    delete(present, &mut plan);
    plan
}

#[cfg(test)]
mod tests;
