//! Run folders: one per bench, claimed under a lock, found by others through it, swept when their bench is gone.
//!
//! The lock (`flock`) on `sandbox.pid` is held by the outer process and lives as long as it does; the kernel frees it
//! even after a SIGKILL. So a folder whose lock is free belongs to no running bench, whatever it contains.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

use super::process::exit_code;
use crate::paths::{self, Run};

/// Sub-folder of the cache with one folder per run.
const RUNS: &str = "runs";

/// In a run folder: the process id of the sandbox's PID 1 as seen outside, in decimal.
const PID_FILE: &str = "sandbox.pid";

/// Runs whose logs are kept; older ones are removed whole.
const KEPT_RUNS: usize = 5;

/// A run folder that this process holds for a bench it starts.
#[derive(Debug)]
pub struct Claim {
    run: Run,
    /// Held, never read: closing it frees the folder.
    _lock: File,
}

/// A bench that runs now, perhaps another user's terminal's.
#[derive(Clone, Debug)]
pub struct RunningBench {
    /// Its folder.
    pub run: Run,
    /// Its PID 1 as seen from here.
    pub init: Pid,
}

impl Claim {
    /// Sweeps what benches before left, then makes and locks a new run folder in the user's cache.
    pub fn new() -> Result<Self> {
        Self::in_folder(&paths::cache()?.join(RUNS))
    }

    fn in_folder(runs: &Path) -> Result<Self> {
        sweep(runs)?;
        // Sorts by time; the process id distinguishes two that start in the same second.
        let id = format!("{}-{}", jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S"), std::process::id());
        let run = Run::open(runs.join(id))?;
        let path = run.root().join(PID_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("create {}", path.display()))?;
        lock.try_lock().with_context(|| format!("lock {}", path.display()))?;
        Ok(Self { run, _lock: lock })
    }

    /// The claimed folder.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Where PID 1 writes its outer process id.
    pub(super) fn pid_file(&self) -> PathBuf {
        self.run.root().join(PID_FILE)
    }

    /// PID 1 as seen from here; `None` before it has written its id.
    pub(super) fn init_pid(&self) -> Option<Pid> {
        read_pid(&self.pid_file())
    }

    /// Removes the run's data and keeps its logs.
    pub(super) fn close(self) -> Result<()> {
        discard_data(self.run.root())
    }
}

impl RunningBench {
    /// Runs `argv` inside the bench's namespaces, on this terminal and in this working directory, with `env` added to
    /// the environment; returns its exit code.
    ///
    /// # Errors
    /// When `nsenter` (util-linux) is missing or may not enter: it needs root.
    pub fn exec(&self, argv: &[OsString], env: &[(&str, &OsStr)]) -> Result<u8> {
        let mut here = OsString::from("--wdns=");
        here.push(std::env::current_dir().context("find the working directory")?);
        let status = Command::new("nsenter")
            .arg(format!("--target={}", self.init))
            .args(["--net", "--mount", "--pid"])
            .args([here, "--".into()])
            .args(argv)
            .envs(env.iter().copied())
            .status()
            .context("start nsenter (package util-linux)")?;
        Ok(exit_code(status))
    }
}

/// The benches of this user that run now, oldest first.
pub fn find_running() -> Result<Vec<RunningBench>> {
    running_in(&paths::cache()?.join(RUNS))
}

/// The newest run, running or ended; `None` before the first.
pub fn newest_run() -> Result<Option<Run>> {
    run_folders(&paths::cache()?.join(RUNS))?.pop().map(Run::open).transpose()
}

fn running_in(runs: &Path) -> Result<Vec<RunningBench>> {
    let mut found = Vec::new();
    for root in run_folders(runs)? {
        if !is_held(&root.join(PID_FILE))? {
            continue;
        }
        // Held without an id: a bench that opens its namespaces this moment.
        if let Some(init) = read_pid(&root.join(PID_FILE)) {
            found.push(RunningBench { run: Run::open(root)?, init });
        }
    }
    Ok(found)
}

/// Removes the data of runs that ended, and all but the newest [`KEPT_RUNS`] of them.
fn sweep(runs: &Path) -> Result<()> {
    let mut ended = Vec::new();
    for root in run_folders(runs)? {
        if !is_held(&root.join(PID_FILE))? {
            ended.push(root);
        }
    }
    // The one about to start counts among the kept.
    let surplus = (ended.len() + 1).saturating_sub(KEPT_RUNS);
    for (index, root) in ended.iter().enumerate() {
        if index < surplus {
            remove(root)?;
        } else {
            discard_data(root)?;
        }
    }
    Ok(())
}

/// The run folders in `runs`, oldest first; none when `runs` does not exist.
fn run_folders(runs: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", runs.display())),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", runs.display()))?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// Whether a live process holds the folder of this pid file. The probe's own lock is shared and gone at once; a bench
/// that starts takes a new folder, so the probe can't be in its way.
pub(super) fn is_held(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => bail!("probe the lock of {}: {error}", path.display()),
    }
}

fn read_pid(file: &Path) -> Option<Pid> {
    fs::read_to_string(file).ok()?.trim().parse().ok().map(Pid::from_raw)
}

/// Removes everything in a run folder but its logs.
fn discard_data(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root).with_context(|| format!("list {}", root.display()))? {
        let path = entry.with_context(|| format!("list {}", root.display()))?.path();
        if path.file_name() != Some(OsStr::new("logs")) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match gone {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_folder_is_found_once_its_pid_is_written_and_freed_with_the_claim() {
        let runs = tempfile::tempdir().unwrap();
        let claim = Claim::in_folder(runs.path()).unwrap();
        assert!(running_in(runs.path()).unwrap().is_empty(), "no id yet");
        fs::write(claim.pid_file(), "4711").unwrap();
        let found = running_in(runs.path()).unwrap();
        assert_eq!(found.iter().map(|bench| bench.init.as_raw()).collect::<Vec<_>>(), [4711]);
        drop(claim);
        assert!(running_in(runs.path()).unwrap().is_empty(), "the lock went with the claim");
    }

    #[test]
    fn a_sweep_removes_the_data_of_ended_runs_and_spares_the_running() {
        let runs = tempfile::tempdir().unwrap();
        let crashed = Run::open(runs.path().join("20260101-000000-1")).unwrap();
        fs::write(crashed.volumes().join("pv.img"), "x").unwrap();
        fs::write(crashed.logs().join("etcd.log"), "x").unwrap();
        fs::write(crashed.root().join(PID_FILE), "1").unwrap();
        let held = Claim::in_folder(runs.path()).unwrap();
        fs::write(held.run().volumes().join("pv.img"), "x").unwrap();
        sweep(runs.path()).unwrap();
        assert!(crashed.logs().join("etcd.log").exists());
        assert!(!crashed.volumes().exists());
        assert!(!crashed.root().join(PID_FILE).exists());
        assert!(held.run().volumes().join("pv.img").exists());
    }

    #[test]
    fn only_the_newest_runs_keep_their_logs() {
        let runs = tempfile::tempdir().unwrap();
        for day in 1..=8 {
            Run::open(runs.path().join(format!("2026010{day}-000000-1"))).unwrap();
        }
        let claim = Claim::in_folder(runs.path()).unwrap();
        let left = run_folders(runs.path()).unwrap();
        assert_eq!(left.len(), KEPT_RUNS);
        assert_eq!(left[0], runs.path().join("20260105-000000-1"));
        assert_eq!(left[4], claim.run().root());
    }

    #[test]
    fn closing_a_claim_keeps_the_logs_only() {
        let runs = tempfile::tempdir().unwrap();
        let claim = Claim::in_folder(runs.path()).unwrap();
        let run = claim.run().clone();
        fs::write(run.logs().join("a.log"), "x").unwrap();
        claim.close().unwrap();
        let left: Vec<_> = fs::read_dir(run.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["logs"]);
    }
}
