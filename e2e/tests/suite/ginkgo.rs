//! What a program whose tests run under ginkgo (csi-sanity, Kubernetes' own tests) reports in JSON.

use std::{fmt, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::Deserialize;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It failed, was interrupted, or panicked.
    Failed,
    /// It ran and found nothing wrong.
    Passed,
    /// It decided to be skipped, and said why.
    Skipped,
}

/// One test.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name: the texts of its containers and its own.
    pub name: String,
    /// How it ended.
    pub state: State,
    /// Why it failed or was skipped.
    pub message: String,
    /// How long it ran.
    pub took: Duration,
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.message)
    }
}

/// All tests of a run but those that the command line left out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they are defined.
    pub specs: Vec<Spec>,
}

impl Report {
    /// Reads a report.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let suites: Vec<WireSuite> =
            serde_json::from_slice(&bytes).with_context(|| format!("parse {}", file.display()))?;
        let wire = suites.into_iter().flat_map(|suite| suite.spec_reports);
        Ok(Self { specs: wire.filter_map(WireSpec::into_spec).collect() })
    }

    /// The tests that ended so.
    pub fn of(&self, state: State) -> Vec<&Spec> {
        self.specs.iter().filter(|spec| spec.state == state).collect()
    }
}

/// Ginkgo's JSON report (`types.Report`), the fields that matter here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireSuite {
    spec_reports: Vec<WireSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireSpec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    run_time: u64,
    #[serde(default)]
    failure: WireFailure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct WireFailure {
    message: String,
}

impl WireSpec {
    fn into_spec(self) -> Option<Spec> {
        // Before and after the tests: they count if they fail.
        let is_test = self.leaf_node_type == "It";
        let state = match self.state.as_str() {
            "passed" if is_test => State::Passed,
            "passed" | "pending" => return None,
            // Ginkgo calls those skipped, too, which a filter of the command line left out; they have no reason.
            "skipped" if self.failure.message.is_empty() => return None,
            "skipped" => State::Skipped,
            _ => State::Failed,
        };
        let texts = self.container_hierarchy_texts.unwrap_or_default();
        let texts = texts.iter().chain([&self.leaf_node_text]).map(|text| text.trim());
        let name = texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
        Some(Spec { name, state, message: self.failure.message, took: Duration::from_nanos(self.run_time) })
    }
}
