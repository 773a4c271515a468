//! What to do next about one guest Service: a function of the two Services and the configuration.
//!
//! The same observation gives the same plan, and after a plan was carried out nothing is left to plan. A Service that
//! is not proved to be this guest's is never changed or deleted; only a read of the infra API proves that one is gone.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::sync::Arc;

use k8s_openapi::api::core::v1::LoadBalancerIngress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::{
    config::{limits::Limits, policy::GuestPolicy},
    guest::services::GuestService,
    guest_names::{Foreign, GUEST_CLUSTER_ANNOTATION, GuestLabels, has_mirror},
    handover::EndpointSource,
    infra::mirrors::InfraService,
    load_balancer::{
        mirror::{Mirror, Refused},
        quota::Shortage,
        size::{Excess, excesses, listed},
    },
};

/// `ipMode` of an IP address where it is absent.
const DEFAULT_IP_MODE: &str = "VIP";

/// The configuration, and what was found out about the clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanConfig {
    /// What identifies this guest.
    pub identity: GuestLabels,
    /// Which endpoints its infra Services have.
    pub endpoints: EndpointSource,
    /// Which of the guest's requests may reach infra. Shared, because each reconcile has its own config.
    pub policy: Arc<GuestPolicy>,
    /// How much one Service may ask for.
    pub limits: Limits,
    /// Whether infra allots node ports to the mirrors. `None` = as infra has it.
    pub node_ports: Option<bool>,
    /// UID of the guest cluster; `None` = not known.
    pub guest_cluster: Option<String>,
    /// The infra object that owns everything of this guest in infra.
    pub owner: Option<OwnerReference>,
    /// What the time says about the Service.
    pub moment: Moment,
}

/// What depends on how long something has lasted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// It has waited for an address longer than it should.
    pub is_overdue: bool,
    /// Its infra Service has lost its address just now, and may get it back.
    pub keeps_address: bool,
}

/// What is known of the infra Service.
#[derive(Clone, Copy, Debug)]
pub enum Infra<'a> {
    /// The watch does not show it. This proves nothing: the watch may be late, and shows only objects with our labels.
    NotSeen,
    /// The infra API answered that it does not exist.
    Gone,
    /// It exists.
    Present(&'a InfraService),
}

/// What to do, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The calls.
    pub steps: Vec<Step>,
    /// What the Service waits for when there is nothing left to do.
    pub waits_for: Option<Wait>,
    /// Why the Service can not be served as it is.
    pub refusal: Option<Refusal>,
    /// The guest's requests that are left out.
    pub refused: Vec<Refused>,
    /// What is above the limits and stays, because the infra Service has it already.
    pub kept: Vec<Excess>,
    /// The guest shows an address that infra does not show at the moment.
    pub keeps_address: bool,
}

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Guest: add the finalizer, before anything is created in infra.
    AddFinalizer,
    /// Infra: create the mirror.
    Create(Box<Mirror>),
    /// Infra: turn the Service into the mirror again; with the names of the fields that differ.
    Replace(Box<Mirror>, Vec<&'static str>),
    /// Guest: show these addresses.
    SetStatus(Vec<LoadBalancerIngress>),
    /// Infra: delete the Service with this UID.
    Delete(String),
    /// Infra: read the Service, because the watch does not prove that it is gone. Then plan again.
    Confirm,
    /// Guest: remove the finalizer.
    RemoveFinalizer,
}

/// What a Service waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Infra assigns an address.
    Address,
    /// Infra finishes the deletion.
    Deletion,
}

/// Why the Service is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Load balancers would send traffic to the VM's port with the number of the Service's port, where nothing listens.
    #[error(
        "port {0} has no node port, and load balancers reach the VMs through node ports; \
         set allocateLoadBalancerNodePorts to true"
    )]
    NoNodePort(i32),
    /// An object of another guest or program has the name.
    #[error(transparent)]
    Foreign(#[from] Foreign),
    /// It asks for more than one Service may.
    #[error(
        "the infra cluster's operator allows less for one load balancer: this service asks for {}; nothing of it is passed \
         on until it asks for less, and a load balancer that it has stays as it is",
        listed(.0)
    )]
    TooLarge(Vec<Excess>),
    /// The guest's load balancers have as much as they may have.
    #[error(
        "this cluster {} that the infra cluster's operator allows for all its load balancers together; this one is made, or \
         changed, as soon as others have given up enough",
        shortages(.0)
    )]
    Quota(Vec<Shortage>),
}

impl PlanConfig {
    /// The configuration of a guest whose operator has set nothing.
    #[cfg(test)]
    pub(crate) fn of(identity: GuestLabels) -> Self {
        Self {
            identity,
            endpoints: EndpointSource::default(),
            policy: Arc::default(),
            limits: Limits::default(),
            node_ports: None,
            guest_cluster: None,
            owner: None,
            moment: Moment::default(),
        }
    }

    /// The mirror of `guest`, with what the `existing` one has and may keep.
    pub fn mirror(&self, guest: &GuestService, existing: Option<&InfraService>) -> Mirror {
        let mut mirror =
            Mirror::of(guest, existing, &self.identity, self.endpoints, &self.policy, self.moment.is_overdue);
        if let Some(uid) = &self.guest_cluster {
            mirror.annotations.insert(GUEST_CLUSTER_ANNOTATION.to_owned(), uid.clone());
        }
        mirror.owner.clone_from(&self.owner);
        if self.node_ports.is_some() {
            mirror.spec.allocate_load_balancer_node_ports = self.node_ports;
        }
        mirror
    }
}

fn shortages(all: &[Shortage]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", and ")
}

impl Plan {
    /// Whether there is nothing to do, to wait for or to report.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What to do about `guest`, given what is known of `infra`.
pub fn plan(guest: &GuestService, infra: Infra<'_>, config: &PlanConfig) -> Plan {
    if !has_mirror(guest.uid()) {
        // Every API server gives a UUID, so this one is not honest. The name would become a part of URLs, and might be
        // that of a Service which is no mirror.
        return Plan::default();
    }
    if guest.wants_load_balancer() && !guest.is_deleting() {
        return serve(guest, infra, config);
    }
    if guest.spec.load_balancer_class.is_some() {
        return hand_over(guest, infra, config);
    }
    if guest.has_finalizer() {
        return clean_up(guest, infra, config);
    }
    Plan::default()
}

fn serve(guest: &GuestService, infra: Infra<'_>, config: &PlanConfig) -> Plan {
    if let Infra::Present(present) = infra
        && let Err(foreign) = config.identity.check(guest, present)
    {
        return Plan { refusal: Some(foreign.into()), ..Plan::default() };
    }
    if let Some(port) = guest.spec.ports.iter().find(|port| port.node_port == 0) {
        return refuse(guest, infra, Refusal::NoNodePort(port.port), config);
    }
    let present = match infra {
        Infra::Present(present) if !present.is_deleting() => Some(present),
        _ => None,
    };
    let excesses = excesses(guest, present, config.limits, &config.policy);
    if !excesses.refused.is_empty() {
        let all = excesses.refused.into_iter().chain(excesses.kept).collect();
        return refuse(guest, infra, Refusal::TooLarge(all), config);
    }
    let mut plan = Plan { kept: excesses.kept, ..Plan::default() };
    if !guest.has_finalizer() {
        plan.steps.push(Step::AddFinalizer);
    }
    if matches!(infra, Infra::Present(_)) && present.is_none() {
        // The name is free again when the Service is gone; the mirror is created then.
        plan.waits_for = Some(Wait::Deletion);
        return plan;
    }
    let mirror = config.mirror(guest, present);
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
    show_unless_kept(guest, ingress, config, &mut plan);
    if ingress.is_empty() && !plan.keeps_address {
        plan.waits_for = Some(Wait::Address);
    }
    plan
}

/// Refuses the Service as it is. An existing load balancer keeps serving, and its address is shown; where there is none, the
/// guest shows none.
fn refuse(guest: &GuestService, infra: Infra<'_>, refusal: Refusal, config: &PlanConfig) -> Plan {
    let mut plan = Plan { refusal: Some(refusal), ..Plan::default() };
    match infra {
        Infra::Present(present) if present.is_deleting() => plan.waits_for = Some(Wait::Deletion),
        Infra::Present(present) => {
            if !guest.has_finalizer() {
                plan.steps.push(Step::AddFinalizer);
            }
            show_unless_kept(guest, &present.status.load_balancer.ingress, config, &mut plan);
        }
        Infra::Gone => show(guest, &[], &mut plan),
        Infra::NotSeen if guest.status.load_balancer.ingress.is_empty() => {}
        Infra::NotSeen => plan.steps.push(Step::Confirm),
    }
    plan
}

/// The guest's status becomes infra's, unless infra has lost its address just now: load balancers of infra clear it for a
/// moment (metallb/metallb#2443, cilium/cilium#43131), and what follows the guest's status, such as DNS, would be torn down.
fn show_unless_kept(
    guest: &GuestService,
    ingress: &[LoadBalancerIngress],
    config: &PlanConfig,
    plan: &mut Plan,
) {
    let loses = ingress.is_empty() && !guest.status.load_balancer.ingress.is_empty();
    if loses && config.moment.keeps_address {
        plan.keeps_address = true;
    } else {
        show(guest, ingress, plan);
    }
}

/// The guest's status becomes infra's, whatever it was.
fn show(guest: &GuestService, ingress: &[LoadBalancerIngress], plan: &mut Plan) {
    if !is_same(&guest.status.load_balancer.ingress, ingress) {
        plan.steps.push(Step::SetStatus(ingress.to_vec()));
    }
}

/// Whether two lists of addresses mean the same. One of the two clusters may not know `ipMode`, whose default the API
/// sets for an IP address (KEP-1860): the absent one is `VIP`.
fn is_same(one: &[LoadBalancerIngress], other: &[LoadBalancerIngress]) -> bool {
    let mode = |it: &LoadBalancerIngress| match (&it.ip, &it.ip_mode) {
        (Some(_), None) => Some(DEFAULT_IP_MODE.to_owned()),
        (_, mode) => mode.clone(),
    };
    let full = |it: &LoadBalancerIngress| LoadBalancerIngress { ip_mode: mode(it), ..it.clone() };
    one.iter().map(full).eq(other.iter().map(full))
}

fn clean_up(guest: &GuestService, infra: Infra<'_>, config: &PlanConfig) -> Plan {
    let mut plan = Plan::default();
    match infra {
        Infra::NotSeen => {
            plan.steps.push(Step::Confirm);
            return plan;
        }
        Infra::Present(present) => match config.identity.check(guest, present) {
            Ok(()) => {
                delete(present, &mut plan);
                return plan;
            }
            // Then our mirror does not exist, because another object has its name.
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

/// For a Service that was ours and now names a class: deletes what we created. Its finalizer may belong to the other
/// controller, which uses the same framework, unless our infra Service still exists.
fn hand_over(guest: &GuestService, infra: Infra<'_>, config: &PlanConfig) -> Plan {
    let mut plan = Plan::default();
    let Infra::Present(present) = infra else { return plan };
    if config.identity.check(guest, present).is_err() || present.is_deleting() {
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
