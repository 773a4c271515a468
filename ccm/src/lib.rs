//! The cloud controller manager of a guest cluster whose Nodes are KubeVirt virtual machines.
//!
//! It replaces kubevirt/cloud-provider-kubevirt with the same configuration, names, labels and rights. Pure planners
//! (`plan.rs` of each part) decide what to do; the other files of a part observe and make the calls.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

pub mod access;
pub mod announcer;
mod backoff;
pub mod call;
mod change_pace;
pub mod changes;
pub mod cluster_name;
pub mod config;
#[cfg(test)]
mod docs;
pub mod endpoints;
#[cfg(test)]
mod fake_api;
pub mod flags;
pub mod framework_metrics;
pub mod guest;
pub mod guest_names;
pub mod handover;
pub mod infra;
pub mod lease;
pub mod load_balancer;
pub mod nodes;
pub mod program;
pub mod queue_metrics;
mod reconciles;
pub mod repairs;
pub mod unreadable;
mod watching;
pub mod wire;
