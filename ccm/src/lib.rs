//! The cloud controller manager of a guest cluster whose Nodes are KubeVirt virtual machines.
//!
//! It takes the place of kubevirt/cloud-provider-kubevirt: the same configuration, names, labels and rights.
//! What is to be done is decided by pure planners (`plan.rs` of each part); only the `controller.rs` beside them
//! make calls.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

pub mod access;
pub mod cluster_name;
pub mod config;
pub mod controllers;
pub mod events;
pub mod flags;
pub mod lease;
pub mod load_balancer;
pub mod program;
pub mod secure_endpoint;
