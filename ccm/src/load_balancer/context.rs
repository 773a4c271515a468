//! What each reconcile of a Service uses.

use std::{sync::Arc, time::Duration};

use crate::{
    announcer::EventSink,
    backoff::Backoff,
    change_pace::ChangePace,
    guest::services::GuestService,
    handover::{EndpointSource, Gate},
    load_balancer::{
        calls::Services, index::Index, metrics::ServiceMetrics, nodes::Nodes, owner_lookup::Owner,
        plan::PlanConfig,
    },
    repairs::Repairs,
};

/// What each reconcile uses.
pub(crate) struct Context {
    pub(crate) services: Services,
    pub(crate) index: Index,
    /// The configuration, without what is found out while the controller runs.
    pub(crate) config: PlanConfig,
    pub(crate) owner: Owner,
    pub(crate) gate: Arc<Gate>,
    pub(crate) address_timeout: Duration,
    pub(crate) events: EventSink,
    pub(crate) metrics: ServiceMetrics,
    pub(crate) backoff: Backoff,
    pub(crate) repairs: Repairs,
    pub(crate) pace: ChangePace,
    pub(crate) nodes: Nodes,
}

impl Context {
    /// The configuration for the plan of one Service, with the owner as it was found last, and the progress of our own
    /// endpoints of this Service.
    pub(crate) fn config_for(&self, guest: &GuestService) -> PlanConfig {
        let endpoints = EndpointSource { slices: self.gate.slices(guest.uid()), ..self.config.endpoints };
        PlanConfig { endpoints, owner: self.owner.found(), ..self.config.clone() }
    }
}
