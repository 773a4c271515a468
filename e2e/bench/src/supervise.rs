//! Runs the bench's parts as child processes: one log file each, a name each, stopped in reverse order.
//!
//! Nothing here knows what a part does. A part that ends on its own is noticed through [`Process::exited`]; the bench
//! decides what that means. All parts live in the sandbox's PID namespace, so none can outlive it.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{process::Command, sync::watch};

/// What to run. `argv` is never given to a shell.
#[derive(Clone, Debug, Default)]
pub struct ProcessSpec {
    /// Unique name of the part; also the log file's name.
    pub name: String,
    /// Programs put before the program, each with its own arguments: `["ip", "netns", "exec", "cdi"]`.
    pub wrapper: Vec<String>,
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment in addition to the bench's own; with `clear_env`, all of it.
    pub env: Vec<(String, String)>,
    /// Start from an empty environment, as a container does.
    pub clear_env: bool,
}

/// A part's state, as [`Supervisor::list`] reports it.
#[derive(Clone, Debug)]
pub struct ProcessStatus {
    /// The part's name.
    pub name: String,
    /// Process id inside the sandbox.
    pub pid: u32,
    /// Resident set size in KiB; `None` when it has ended.
    pub rss_kib: Option<u64>,
}

/// Starts processes, writes their logs into one folder, and knows which are alive.
#[derive(Clone, Debug)]
pub struct Supervisor {
    logs: PathBuf,
    processes: Arc<Mutex<Vec<Process>>>,
}

/// A started process. Clones name the same process.
#[derive(Clone, Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Supervisor {
    /// A supervisor whose parts log into `logs`, one file `<name>.log` each, appended to on restart.
    pub fn new(logs: PathBuf) -> Self {
        Self { logs, processes: Arc::default() }
    }

    /// The folder of the logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Starts `spec`; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the log can't be opened, the program can't be started, or a part of that name still runs.
    pub fn start(&self, spec: &ProcessSpec) -> Result<Process> {
        if self.alive().iter().any(|p| p.name == spec.name) {
            bail!("a part named {} is already running", spec.name);
        }
        let log = self.logs.join(format!("{}.log", spec.name));
        let out = append(&log)?;
        let mut words = spec.wrapper.iter().map(Into::into).chain([spec.program.clone().into_os_string()]);
        let first = words.next().context("an empty command")?;
        let mut command = Command::new(&first);
        command.args(words).args(&spec.args);
        if spec.clear_env {
            command.env_clear();
        }
        command.envs(spec.env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let mut child =
            command.spawn().with_context(|| format!("start {}: {}", spec.name, spec.program.display()))?;
        let pid = child.id().context("the process ended before it had an id")?;
        let (tell, exit) = watch::channel(None);
        tokio::spawn(async move {
            // A failed wait means that another waiter reaped it; report it as ended too.
            let status = child.wait().await.unwrap_or_default();
            tell.send_replace(Some(status));
        });
        let process = Process { name: spec.name.clone(), pid, log, exit };
        lock(&self.processes).push(process.clone());
        Ok(process)
    }

    /// The parts that run now, in the order of their start.
    pub fn alive(&self) -> Vec<Process> {
        lock(&self.processes).iter().filter(|p| p.exit.borrow().is_none()).cloned().collect()
    }

    /// Every part that runs, with its memory.
    pub fn list(&self) -> Vec<ProcessStatus> {
        let status = |p: Process| ProcessStatus { rss_kib: rss_kib(p.pid), name: p.name, pid: p.pid };
        self.alive().into_iter().map(status).collect()
    }

    /// Stops all parts, last started first, each with `grace` before it is killed.
    pub async fn stop_all(&self, grace: Duration) {
        for process in self.alive().into_iter().rev() {
            process.stop(grace).await;
        }
    }
}

impl Process {
    /// The part's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits until it ends.
    pub async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            Err(_) => ExitStatus::default(),
        }
    }

    /// Sends a signal to the process; an ended process gets none.
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            // ESRCH: it ended between the two lines.
            kill(Pid::from_raw(self.pid.cast_signed()), signal).ok();
        }
    }

    /// SIGTERM, then SIGKILL after `grace`; returns when it has ended.
    pub async fn stop(&self, grace: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        if let Ok(status) = tokio::time::timeout(grace, self.exited()).await {
            return status;
        }
        self.signal(Signal::SIGKILL);
        self.exited().await
    }

    /// SIGKILL; returns when it has ended.
    pub async fn kill(&self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        self.exited().await
    }

    /// The last `lines` lines of its log, for error messages.
    pub fn log_tail(&self, lines: usize) -> String {
        let text =
            std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// `VmRSS` of a process in KiB, from `/proc/<pid>/status`.
fn rss_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
