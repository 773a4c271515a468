//! Endpoints of infra's LoadBalancer Services: which of the guest's VMs get the traffic, written as EndpointSlices where the
//! configuration says that we write them.
//!
//! [`choice`] says whose they are, [`backend`] which VMs can have traffic, [`demand`] which should, [`plan`](mod@plan) what is
//! to be written; these know no client, clock or environment. [`controller`] observes and acts.

pub mod backend;
pub mod choice;
pub mod controller;
pub mod demand;
pub mod gate;
pub mod metrics;
pub mod plan;
mod rights;
pub mod slice;
