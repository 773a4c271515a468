//! What the processes on both sides of the sandbox agree on: arguments, signals, exit codes.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use nix::sys::signal::{SigSet, Signal};

/// The hidden first argument that makes the program the sandbox's PID 1.
pub(super) const INIT_COMMAND: &str = "sandbox-init";

/// The hidden first argument that makes the program become the inner one, with a clean signal mask.
pub(super) const INNER_COMMAND: &str = "sandbox-inner";

/// What a shell reports for a child that a signal ended: this plus the signal's number (POSIX, sh, "Exit Status").
pub(super) const SIGNAL_EXIT_BASE: i32 = 128;

/// The signals that the outer process and PID 1 take one by one, blocked from before PID 1 exists: none is lost.
pub(super) fn awaited_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// The exit code to pass on for a child's status, as a shell would.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| SIGNAL_EXIT_BASE + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
