//! The quick checks beside what the bench does: a process of its own, which gives way to it.
//!
//! A release build links for minutes on one processor; the unit tests have the other. They end before the bench begins, because some
//! of them have deadlines, and the bench leaves too little of the processors. What only compiles runs beside the end-to-end tests,
//! which wait for kubelet and the controllers half of their time.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    paths::{self, Run},
    report::Timings,
};

/// Beside what the checks run. Together both have the targets of the Makefile that `make check` has, but the tools, which whoever
/// starts the checks installs before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Beside {
    /// The builds of what the bench runs.
    Builds,
    /// The bench and its tests.
    Tests,
}

impl Beside {
    const fn targets(self) -> &'static [&'static str] {
        match self {
            Self::Builds => &["format", "unit"],
            Self::Tests => &["clippy", "docs", "deny"],
        }
    }

    /// Their group in the timings.
    const fn group(self) -> &'static str {
        match self {
            Self::Builds => "checks, beside the builds",
            Self::Tests => "checks, beside the tests",
        }
    }

    /// How far they give way. Beside the builds they still get a tenth of a processor that these want whole; a worker that waits for
    /// a processor misses its callers' deadlines.
    const fn niceness(self) -> &'static str {
        match self {
            Self::Builds => "10",
            Self::Tests => "19",
        }
    }

    /// What they say, among the logs of the run.
    const fn output(self) -> &'static str {
        match self {
            Self::Builds => "checks-beside-builds.log",
            Self::Tests => "checks-beside-tests.log",
        }
    }
}

/// Running checks; dropping them ends them.
#[derive(Debug)]
pub struct Checks {
    process: Child,
    output: PathBuf,
}

impl Checks {
    /// Starts them. Their output goes to a file of the run, their times to its timings.
    pub fn start(run: &Run, beside: Beside) -> Result<Self> {
        let output = run.logs().join(beside.output());
        let log = File::create(&output).with_context(|| format!("create {}", output.display()))?;
        let word = beside.to_possible_value().context("no word for the checks")?;
        let process = Command::new("nice")
            .args(["-n", beside.niceness()])
            .arg(paths::program()?)
            .args(["checks", word.get_name()])
            .arg(run.root())
            .stdout(log.try_clone()?)
            .stderr(log)
            // So that they end together.
            .process_group(0)
            .spawn()
            .context("start the quick checks")?;
        Ok(Self { process, output })
    }

    /// Waits for their end, prints what they said, and fails as they do.
    pub fn finish(mut self) -> Result<()> {
        let status = self.process.wait().context("wait for the quick checks")?;
        let said = fs::read(&self.output).with_context(|| format!("read {}", self.output.display()))?;
        println!("\nThe quick checks\n\n{}", String::from_utf8_lossy(&said));
        ensure!(status.success(), "the quick checks failed: see above, or {}", self.output.display());
        Ok(())
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
pub fn run(beside: Beside, folder: PathBuf) -> Result<u8> {
    let timings = Timings::of_run(&Run::open(folder)?);
    for target in beside.targets() {
        let make = || {
            let mut command = Command::new("make");
            let status =
                command.args(["--no-print-directory", target]).current_dir(paths::repository()).status();
            let status = status.context("run make")?;
            ensure!(status.success(), "make {target} ended with {status}");
            Ok(())
        };
        timings.measure(beside.group(), target, make)?;
    }
    Ok(0)
}
