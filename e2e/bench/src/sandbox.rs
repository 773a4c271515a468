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
//! outside, [`network`] is what it looks like inside. What runs in it is not decided here.

mod enter;
mod init;
pub mod network;
mod runs;

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use nix::sys::signal::{SigSet, Signal};

pub use enter::enter;
pub use init::init_if_asked;
pub use runs::{Claim, RunningBench, find_running, newest_run};

/// The hidden first argument that makes the program the sandbox's PID 1.
const INIT_COMMAND: &str = "sandbox-init";

/// The hidden first argument that makes the program become the inner one, with a clean signal mask.
const INNER_COMMAND: &str = "sandbox-inner";

/// What a shell reports for a child that a signal ended: this plus the signal's number (POSIX, sh, "Exit Status").
const SIGNAL_EXIT_BASE: i32 = 128;

/// The signals that the outer process and PID 1 take one by one, blocked from before PID 1 exists: none is lost.
fn awaited_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// The exit code to pass on for a child's status, as a shell would.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| SIGNAL_EXIT_BASE + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
