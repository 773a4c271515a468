//! The objects of the guest cluster. Each kind is watched once and kept once, without the fields that no code reads.

pub mod nodes;
pub mod services;
pub mod slices;
