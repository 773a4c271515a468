//! How a process inside the sandbox (a test, the shell's `bench status`) asks the running bench for what only it can do:
//! commands in a worker, faults of the simulators, exclusive use.
//!
//! One JSON object per line over a unix socket, an answer per request. **What a connection was given ends with it**: its
//! faults are taken back, its disks are unplugged and its lock is released when it closes, so a test that dies leaves a clean bench.

mod client;
mod protocol;
mod server;
mod turns;

pub use client::Client;
pub use protocol::{Answer, CommandOutput, PartStatus, Request};
pub use server::serve;
pub use turns::Lock;

/// Names the run folder to a command that runs inside a bench.
pub const RUN_VARIABLE: &str = "BENCH_RUN";
