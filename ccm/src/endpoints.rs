//! Endpoints of infra's LoadBalancer Services: which of the guest's VMs get the traffic, written as EndpointSlices where the
//! configuration says that we write them.
//!
//! [`backend`] says which VMs can have traffic, [`demand`] which should, [`plan`](mod@plan) what is to be written; these know no
//! client, clock or environment. [`controller`] observes and acts.

pub mod backend;
mod calls;
pub mod controller;
pub mod demand;
pub mod metrics;
mod observe;
pub mod plan;
mod reconcile;
mod retries;
mod rights;
mod session;
pub mod slice;
mod watches;
