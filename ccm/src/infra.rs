//! What the infra cluster has of this guest: each kind watched once and kept once, without what nobody reads.

pub mod hosts;
pub mod machines;
pub mod mirrors;
pub mod slices;
