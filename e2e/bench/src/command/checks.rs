//! The quick checks beside the builds of what the bench runs: a process of its own, which gives way to them.
//!
//! A release build links for minutes on one processor; the checks have the other. They end before the bench begins: compilers keep a
//! slow disk so busy that API servers beside them stood still for twelve seconds and controllers lost their leases.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    paths::{self, Run},
    report::Timings,
};

/// The targets of the Makefile that `make check` has, but the tools, which whoever starts the checks installs before.
const TARGETS: [&str; 5] = ["format", "clippy", "unit", "docs", "deny"];

/// Their group in the timings.
const GROUP: &str = "checks, beside the builds";

/// How far the checks give way. They still get a tenth of a processor that the builds want whole.
const NICENESS: &str = "10";

/// What they say, among the logs of the run.
pub const OUTPUT: &str = "checks.log";

/// Running checks; dropping them ends them.
#[derive(Debug)]
pub struct Checks {
    process: Child,
    output: PathBuf,
}

impl Checks {
    /// Starts them. Their output goes to a file of the run, their times to its timings.
    pub fn start(run: &Run) -> Result<Self> {
        let output = run.logs().join(OUTPUT);
        let log = File::create(&output).with_context(|| format!("create {}", output.display()))?;
        let process = Command::new("nice")
            .args(["-n", NICENESS])
            .arg(paths::program()?)
            .arg("checks")
            .arg(run.root())
            .stdout(log.try_clone()?)
            .stderr(log)
            // So that they end together.
            .process_group(0)
            .spawn()
            .context("start the quick checks")?;
        Ok(Self { process, output })
    }

    /// Waits for their end and prints what they said.
    pub fn finish(mut self) -> Result<ExitStatus> {
        let status = self.process.wait().context("wait for the quick checks")?;
        let said = fs::read(&self.output).with_context(|| format!("read {}", self.output.display()))?;
        println!("\nThe quick checks\n\n{}", String::from_utf8_lossy(&said));
        Ok(status)
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        // One that was waited for has a group no more.
        if let (Ok(None), Ok(pid)) = (self.process.try_wait(), i32::try_from(self.process.id()))
            && killpg(Pid::from_raw(pid), Signal::SIGTERM).is_ok()
        {
            self.process.wait().ok();
        }
    }
}

/// Does the checks one after the other, up to the first that fails; the value is the exit code.
pub fn run(folder: PathBuf) -> Result<u8> {
    let timings = Timings::of_run(&Run::open(folder)?);
    for target in TARGETS {
        let make = || {
            let mut command = Command::new("make");
            let status =
                command.args(["--no-print-directory", target]).current_dir(paths::repository()).status();
            let status = status.context("run make")?;
            anyhow::ensure!(status.success(), "make {target} ended with {status}");
            Ok(())
        };
        timings.measure(GROUP, target, make)?;
    }
    Ok(0)
}
