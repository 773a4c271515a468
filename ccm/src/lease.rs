//! Which of several replicas leads: the one that holds a Lease in the guest cluster, as in client-go's leader election.
//!
//! We never compare the clocks of other machines with ours: a lease has expired when we have seen no change of it for
//! its duration. The guest's users can write the Lease, so its duration is respected only up to a bound, and no time in
//! it has to be readable. Only `get`, `create` and `update` are used.

mod controller;
mod plan;
mod wire;

pub use controller::{Held, Lease, LeaseError, Timing};
pub(crate) use plan::respected;
pub(crate) use wire::WireLease;
