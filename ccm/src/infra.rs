//! The objects that this guest has in the infra cluster. Each kind is watched once and kept once, without the fields
//! that no code reads.

pub mod hosts;
pub mod machines;
pub mod mirrors;
pub mod slices;
pub mod topology;
