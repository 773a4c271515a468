//! Nodes of the guest: initialised when kubelet registered them, then kept true.

//CONTROLLER
pub mod guest_node;
//METRICS
pub mod plan;
