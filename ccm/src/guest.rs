//! What the guest cluster has: each kind watched once and kept once, without what nobody reads.

pub mod nodes;
pub mod services;
pub mod slices;
