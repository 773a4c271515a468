//! Endpoints of infra's LoadBalancer Services: which of the guest's VMs get the traffic. The CCM writes them as
//! EndpointSlices where the configuration asks for that.
//!
//! [`backend`] decides which VMs can take traffic, [`demand`] which should, [`plan`](mod@plan) what to write; these
//! know no client, clock or environment. [`controller`] observes and acts.

pub mod backend;
mod calls;
pub mod context;
pub mod controller;
pub mod demand;
#[cfg(test)]
mod fixture;
mod follow;
mod index;
pub mod metrics;
mod observe;
pub mod plan;
mod reconcile;
mod rights;
mod session;
pub mod slice;
mod watches;
