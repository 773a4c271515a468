//! Nodes of the guest: initialised when kubelet registered them, then kept true.

pub mod announcer;
pub mod controller;
pub mod guest_node;
mod hosts;
pub mod metrics;
pub mod plan;
mod writes;

pub(crate) use writes::NodeWrites;
