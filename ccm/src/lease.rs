//! Which of several replicas leads: the one that holds a Lease in the guest cluster, as in client-go's leader election.
//!
//! We never compare the clocks of other machines with ours: a lease has expired when we have seen no change of it for
//! its duration. Only `get`, `create` and `update` are used.

mod controller;
mod plan;

pub use controller::{Held, Lease, LeaseError, Timing};
