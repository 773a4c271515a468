//! The bench: two real Kubernetes clusters, a real KubeVirt and CDI control plane, real worker VMs, inside namespaces
//! of their own, and small simulators only for what has no place on one machine.
//!
//! Each module has one duty; `docs/explanation/bench.md` describes how they work together.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that panics there has failed"))]
#![allow(
    clippy::disallowed_methods,
    reason = "the bench talks to its own API servers, with no proxy between"
)]

pub mod artifact;
pub mod audit;
pub mod bring_up;
pub mod client;
pub mod cluster;
pub mod command;
pub mod control;
pub mod paths;
pub mod report;
pub mod sandbox;
pub mod scenario;
pub mod simulator;
pub mod supervise;
pub mod vm;
