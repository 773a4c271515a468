//! The bench's own world: network, mount and PID namespaces that end with the process that opened them.
//!
//! ```text
//! bench (outer) ── setpriv --pdeathsig ── unshare ──► PID 1 (init.rs) ──► inner program ──► every part of the bench
//! ```
//!
//! The kernel does the cleaning: when the outer process dies, however it dies, `unshare` gets SIGKILL (parent-death
//! signal), then PID 1 does (`--kill-child`), and with PID 1 every process, mount and network device of the namespaces.
//! So two benches can run side by side with the same addresses, and none can leave anything on the machine but its run
//! folder, which the next start sweeps ([`Claim::new`]).
//!
//! [`enter`] opens the world, [`init_if_asked`] is its PID 1, [`find_running`] and [`RunningBench::exec`] come in from
//! outside, [`network`] is the network inside. What runs in it is not decided here.

mod enter;
mod init;
pub mod network;
mod process;
mod runs;

pub use enter::enter;
pub use init::init_if_asked;
pub use runs::{Claim, RunningBench, find_running, newest_run};
