//! LoadBalancer Services: each of the guest has a mirror in the infra cluster, whose address comes back.
//!
//! [`plan`](mod@plan) decides and knows no client, clock or environment; [`controller`] observes and acts.

pub mod controller;
pub mod identity;
pub mod metrics;
pub mod mirror;
pub mod plan;
pub mod service;
