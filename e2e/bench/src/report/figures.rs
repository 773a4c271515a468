//! What the tests measured, kept in a file of the run folder, so that the process which prints the table need not be the
//! one that measured.

use std::{fs, io::Write, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Table;
use crate::paths::Run;

/// One measured value.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The value with its unit.
    pub value: String,
    /// What it is compared with: a goal, the upstream program, a bare run of the same calls; empty if nothing.
    pub beside: String,
}

/// A file of one JSON line per figure, appended to by whoever measures.
#[derive(Clone, Debug)]
pub struct Figures {
    file: PathBuf,
}

impl Figures {
    /// The figures of a run, kept with its logs.
    pub fn of_run(run: &Run) -> Self {
        Self { file: run.logs().join("figures.jsonl") }
    }

    /// Appends a figure.
    pub fn add(&self, name: &str, value: impl Into<String>, beside: impl Into<String>) -> Result<()> {
        let figure = Figure { name: name.to_owned(), value: value.into(), beside: beside.into() };
        let line = serde_json::to_string(&figure)? + "\n";
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.file)
            .with_context(|| format!("open {}", self.file.display()))?;
        file.write_all(line.as_bytes())?;
        Ok(())
    }

    /// All figures so far as a table; empty when none was measured.
    pub fn table(&self) -> Result<Table> {
        let mut table = Table::new(["figure", "measured", "beside"]);
        let text = match fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.file.display())),
        };
        for line in text.lines() {
            let figure: Figure = serde_json::from_str(line).context("a line of the figures")?;
            table.row([figure.name, figure.value, figure.beside]);
        }
        Ok(table)
    }
}
