//! Where the time went: named parts with their duration, kept in a file of the run folder so that the process which
//! prints the table need not be the one that spent the time.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::paths::Run;

/// One part of a run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PartTime {
    /// What it belongs to: `build`, `boot`, `tests`.
    pub group: String,
    /// Its name.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// What came of it: `ok`, `cached`, `failed`, `skipped: <reason>`.
    pub result: String,
}

/// A file of one JSON line per part, appended to by whoever spends time.
#[derive(Clone, Debug)]
pub struct Timings {
    file: PathBuf,
}

impl Timings {
    /// The timings of a run, kept with its logs.
    pub fn of_run(run: &Run) -> Self {
        Self { file: run.logs().join("timings.jsonl") }
    }

    /// Appends a part.
    pub fn add(&self, group: &str, name: &str, duration: Duration, result: &str) -> Result<()> {
        let part = PartTime {
            group: group.to_owned(),
            name: name.to_owned(),
            seconds: duration.as_secs_f64(),
            result: result.to_owned(),
        };
        let line = serde_json::to_string(&part)? + "\n";
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.file)
            .with_context(|| format!("open {}", self.file.display()))?;
        std::io::Write::write_all(&mut file, line.as_bytes())?;
        Ok(())
    }

    /// Does `work`, appends how long it took and whether it succeeded, and returns what it returned.
    pub fn measure<T>(&self, group: &str, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        self.outcome(group, name, started, work())
    }

    /// [`Self::measure`] for work that waits.
    pub async fn measure_async<T>(
        &self,
        group: &str,
        name: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        self.outcome(group, name, started, work.await)
    }

    fn outcome<T>(&self, group: &str, name: &str, started: Instant, outcome: Result<T>) -> Result<T> {
        self.add(group, name, started.elapsed(), if outcome.is_ok() { "ok" } else { "failed" })?;
        outcome
    }

    /// All parts so far; a run that wrote none has none.
    pub fn read(&self) -> Result<Vec<PartTime>> {
        let text = match fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.file.display())),
        };
        text.lines().map(|line| serde_json::from_str(line).context("a line of the timings")).collect()
    }
}
