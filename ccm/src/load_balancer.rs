//! LoadBalancer Services: each of the guest has a mirror in the infra cluster, whose address comes back.
//!
//! [`plan`](mod@plan) decides and knows no client, clock or environment; [`controller`] observes and acts.

mod ahead;
mod announce;
mod calls;
mod changed;
pub mod cleanup;
pub mod conditions;
pub mod controller;
mod explain;
pub mod left_over;
mod memory;
pub mod metrics;
pub mod mirror;
mod nodes;
pub mod owner;
mod owner_lookup;
pub mod places;
pub mod plan;
pub mod quota;
mod reconcile;
mod relay;
mod sweep;
pub mod watches;
