//! Which of several replicas acts: the one that holds a Lease in the guest cluster, as client-go's leader election has it.
//!
//! Clocks of other machines are never compared with ours: a lease is old when we have seen no change of it for its
//! duration. Only `get`, `create` and `update` are used.

mod controller;
mod plan;

pub use controller::{Held, Lease, LeaseError, Timing};
