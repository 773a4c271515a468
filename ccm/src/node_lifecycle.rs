//! Nodes of the guest whose VM was shut down or is gone.

pub mod controller;
pub mod plan;
