//! Nodes of the guest whose VM was shut down or is gone.

//CONTROLLER
pub mod plan;
