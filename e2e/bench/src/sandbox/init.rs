//! PID 1 of the sandbox: mounts, network, one child, and the reaping of every orphan.
//!
//! Single-threaded and without a runtime, so that `waitpid` for any child is right and nothing else takes signals.

use std::{
    ffi::OsString,
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

use super::{
    network,
    process::{INIT_COMMAND, INNER_COMMAND, SIGNAL_EXIT_BASE, awaited_signals},
    runs::is_held,
};
use crate::paths::RUNTIME;

/// Exit code when the sandbox could not be set up; as `unshare` and `nsenter` use it.
const SETUP_FAILED: u8 = 125;

/// A proxy of the machine can't be reached from here, and Go programs and kube would send everything to it.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];

/// Becomes the sandbox's PID 1 when the program was started as such by [`super::enter`]; `None` for every other start.
/// To be called first in `main`, before a runtime or a thread exists.
pub fn init_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let command = args.next()?;
    let done = if command == INIT_COMMAND {
        run(args)
    } else if command == INNER_COMMAND {
        become_inner(args)
    } else {
        return None;
    };
    let code = done.unwrap_or_else(|error| {
        eprintln!("the sandbox could not be set up: {error:#}");
        SETUP_FAILED
    });
    Some(ExitCode::from(code))
}

/// `args`: the pid file, `--`, then the inner program and its arguments.
fn run(mut args: impl Iterator<Item = OsString>) -> Result<u8> {
    ensure!(
        getpid() == Pid::from_raw(1),
        "{INIT_COMMAND} is started by the bench itself, inside a new pid namespace"
    );
    let pid_file = args.next().context("the pid file is missing")?;
    ensure!(args.next().is_some_and(|dashes| dashes == "--"), "`--` is missing before the inner program");
    let (pid_file, inner) = (Path::new(&pid_file), args);
    // The parent-death signal covers a death after `setpriv` asked for the signal; this check covers a death before.
    ensure!(is_held(pid_file)?, "the process that asked for this sandbox has ended");

    record_outer_pid(pid_file)?;
    let signals = awaited_signals();
    signals.thread_block().context("block signals")?;
    mount_all()?;
    network::set_up()?;

    let child = Command::new("/proc/self/exe")
        .arg(INNER_COMMAND)
        .args(inner)
        .stdin(Stdio::null())
        .spawn()
        .context("start the inner program")?;
    serve(Pid::from_raw(child.id().cast_signed()), &signals)
}

/// Replaces this process by `args`, a program and its arguments. A child inherits blocked signals, and PID 1 can't
/// unblock them without losing one: so the child does, and an interruption that waits ends it here.
fn become_inner(mut args: impl Iterator<Item = OsString>) -> Result<u8> {
    let program = args.next().context("the inner program is missing")?;
    SigSet::all().thread_unblock().context("unblock signals")?;
    let mut command = Command::new(&program);
    command.args(args);
    for variable in PROXY_VARIABLES {
        command.env_remove(variable);
    }
    Err(command.exec()).with_context(|| format!("start {}", program.display()))
}

/// `/proc` still belongs to the outer PID namespace here: `/proc/self` names this process by its outer id.
fn record_outer_pid(file: &Path) -> Result<()> {
    let pid = fs::read_link("/proc/self").context("read the outer process id")?;
    fs::write(file, pid.as_os_str().as_encoded_bytes()).with_context(|| format!("write {}", file.display()))
}

fn mount_all() -> Result<()> {
    let kernel_files = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    filesystem("proc", "/proc", kernel_files, None)?;
    // A new sysfs shows the devices of the new network namespace.
    filesystem("sysfs", "/sys", kernel_files, None)?;
    filesystem("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))?;
    for dir in [RUNTIME, network::NAMED_NAMESPACES, "/run/lock"] {
        fs::create_dir(dir).with_context(|| format!("create {dir}"))?;
    }
    fs::set_permissions(RUNTIME, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("close {RUNTIME}"))?;
    // Where /var/run is a folder of its own and not a link to /run, programs would see the machine's.
    if fs::symlink_metadata("/var/run").is_ok_and(|meta| meta.is_dir()) {
        mount(Some("/run"), "/var/run", None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("bind /run on /var/run")?;
    }
    Ok(())
}

fn filesystem(kind: &str, target: &str, flags: MsFlags, data: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), flags, data).with_context(|| format!("mount {kind} on {target}"))
}

/// Reaps and forwards until the inner program ends. When PID 1 then exits, the kernel ends whatever is left.
fn serve(inner: Pid, signals: &SigSet) -> Result<u8> {
    loop {
        match signals.wait().context("wait for a signal")? {
            Signal::SIGCHLD => {
                if let Some(code) = reap(inner)? {
                    return Ok(code);
                }
            }
            signal => match kill(inner, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => bail!("forward {signal} to the inner program: {errno}"),
            },
        }
    }
}

/// Collects every child that has ended; the inner program's exit code if it is among them.
fn reap(inner: Pid) -> Result<Option<u8>> {
    let mut code = None;
    loop {
        let (pid, value) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, value)) => (pid, value),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, SIGNAL_EXIT_BASE + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(errno) => bail!("wait for children: {errno}"),
        };
        if pid == inner {
            code = Some(u8::try_from(value).unwrap_or(u8::MAX));
        }
    }
}
