//! LoadBalancer Services: each of the guest has a mirror in the infra cluster, whose address comes back.
//!
//! [`plan`](mod@plan) decides and knows no client, clock or environment; [`controller`] observes and acts.

pub mod conditions;
pub mod controller;
pub mod identity;
pub mod left_over;
pub mod metrics;
pub mod mirror;
pub mod node_set;
pub mod owner;
pub mod plan;
pub mod quota;
pub mod service;
