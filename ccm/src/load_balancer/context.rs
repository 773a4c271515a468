//! What each reconcile of a Service uses.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    announcer::EventSink,
    backoff::Backoff,
    change_pace::ChangePace,
    guest::services::GuestService,
    guest_names::infra_name,
    handover::{EndpointSource, Gate},
    load_balancer::{
        calls::Services,
        index::Index,
        metrics::ServiceMetrics,
        nodes::Nodes,
        owner_lookup::{GuestCluster, Owner},
        plan::PlanConfig,
    },
    repairs::Repairs,
};

/// How often the controller drops what it keeps of Services that are gone.
const FORGET_INTERVAL: Duration = Duration::from_mins(1);

/// What each reconcile uses.
pub(crate) struct Context {
    pub(crate) services: Services,
    pub(crate) index: Index,
    /// The configuration, without what is found out while the controller runs.
    pub(crate) config: PlanConfig,
    pub(crate) guest_cluster: GuestCluster,
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
    /// The configuration for the plan of one Service, with the guest cluster and the owner as they were found last, and the
    /// progress of our own endpoints of this Service.
    pub(crate) fn config_for(&self, guest: &GuestService) -> PlanConfig {
        let endpoints = EndpointSource { slices: self.gate.slices(guest.uid()), ..self.config.endpoints };
        let guest_cluster = self.guest_cluster.uid().map(str::to_owned);
        PlanConfig { endpoints, guest_cluster, owner: self.owner.found(), ..self.config.clone() }
    }

    /// Drops what is kept of Services that are gone, without end: one can go without a last reconcile, if somebody removes
    /// its finalizer by hand.
    pub(crate) async fn keep_forgetting(&self) {
        let is_there = |uid: &str| self.index.guest_of(&infra_name(uid)).is_some();
        loop {
            sleep(FORGET_INTERVAL).await;
            self.backoff.keep(is_there);
            self.repairs.keep(is_there);
            self.pace.keep(is_there);
            self.index.drop_vanished();
        }
    }
}
