//! LoadBalancer Services: each one of the guest gets a mirror in the infra cluster, and the mirror's address comes
//! back.
//!
//! [`plan`](mod@plan) decides and knows no client, clock or environment; [`controller`] observes and acts.

pub(crate) mod announce;
mod calls;
pub mod cleanup;
pub mod conditions;
mod context;
pub mod controller;
mod error;
mod explain;
pub mod index;
pub mod left_over;
pub mod metrics;
pub mod mirror;
mod node_sync;
mod nodes;
pub mod owner;
mod owner_lookup;
pub mod plan;
pub mod quota;
mod reconcile;
mod relay;
pub mod size;
mod sweep;
pub mod watches;
