//! The outer side: opens the namespaces, waits, and passes an interruption on.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::geteuid,
};

use crate::paths;

use super::{
    process::{INIT_COMMAND, awaited_signals, exit_code},
    runs::Claim,
};

/// `unshare` (util-linux): the namespaces, private mounts, and PID 1 as a child that dies with it. `/proc` is mounted
/// by PID 1 itself, which first reads its outer id from the old one.
const UNSHARE: [&str; 8] =
    ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private"];

/// Runs `inner` inside a sandbox until it ends, and returns its exit code; the run's bulky data is removed then.
///
/// SIGINT, SIGTERM and SIGHUP reach `inner` as SIGTERM; a second one ends everything at once. Standard input is not
/// passed on. Call it from the main thread while the process has no other: signals must come to this thread, and the
/// parent-death signal is bound to the thread that starts the child.
///
/// # Errors
/// Without root, when a namespace can't be opened, or when `setpriv` or `unshare` (util-linux) is missing.
pub fn enter(claim: Claim, inner: &[OsString]) -> Result<u8> {
    ensure!(
        geteuid().is_root(),
        "the bench must run as root: it opens network, mount and pid namespaces, mounts filesystems in them, and makes \
         tap devices for the worker VMs; run it again with sudo"
    );
    let signals = awaited_signals();
    // Inherited by PID 1, so that an interruption that comes early waits there.
    signals.thread_block().context("block signals")?;

    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .args(UNSHARE)
        .arg("--")
        .arg(paths::program()?)
        .arg(INIT_COMMAND)
        .arg(claim.pid_file())
        .arg("--")
        .args(inner)
        .stdin(Stdio::null())
        // Not in the terminal's foreground group: Ctrl-C comes here alone and is passed on once.
        .process_group(0)
        .spawn()
        .context("start setpriv and unshare (package util-linux)")?;
    let code = wait(&mut child, &claim, &signals)?;
    // Whatever the caller does now can be interrupted as usual.
    signals.thread_unblock().context("unblock signals")?;
    claim.close()?;
    Ok(code)
}

fn wait(child: &mut Child, claim: &Claim, signals: &SigSet) -> Result<u8> {
    let mut interrupted = false;
    loop {
        let signal = signals.wait().context("wait for a signal")?;
        if signal == Signal::SIGCHLD {
            if let Some(status) = child.try_wait().context("wait for the sandbox")? {
                return Ok(exit_code(status));
            }
            continue;
        }
        let signal = if interrupted { Signal::SIGKILL } else { Signal::SIGTERM };
        interrupted = true;
        // PID 1 and not `unshare`: `unshare` ends only when the kernel has ended everything inside.
        match claim.init_pid() {
            Some(init) => kill(init, signal).context("interrupt the sandbox")?,
            None => child.kill().context("end the sandbox that is being opened")?,
        }
    }
}
