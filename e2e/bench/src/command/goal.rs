//! What a bench is brought up for, handed to the process inside the sandbox as a file of the run folder.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{artifact::Artifacts, bring_up::Options};

/// The file's name in the run folder.
const FILE: &str = "plan.json";

/// What to do when the bench is up.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Goal {
    /// Show the six steps.
    Demo,
    /// Run a command with the bench around it.
    Command(Vec<String>),
    /// Stay until `bench down`.
    Serve,
}

/// Everything that the inner process must know.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Plan {
    /// What to do.
    pub goal: Goal,
    /// What was chosen.
    pub options: Options,
    /// What was built.
    pub artifacts: Artifacts,
}

impl Plan {
    /// Writes the plan into the run folder.
    pub fn write(&self, run: &Path) -> Result<()> {
        let file = run.join(FILE);
        fs::write(&file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", file.display()))
    }

    /// Reads the plan of the run folder.
    pub fn read(run: &Path) -> Result<Self> {
        let file = run.join(FILE);
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("parse {}", file.display()))
    }
}
