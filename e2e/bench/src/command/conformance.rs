//! Kubernetes' own tests of a CSI driver: what the command and the end-to-end tests that run them share.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The end-to-end test that runs all of them that apply.
pub(super) const TEST: &str = "conformance::every_spec";

/// The environment variable with a regular expression: only the tests that it finds are run.
pub const FOCUS: &str = "CONFORMANCE_FOCUS";

/// What the names of the tables begin with.
const TABLE: &str = "conformance-table-";

/// Where a test writes its table.
pub fn table_file(run: &Path, name: &str) -> PathBuf {
    run.join("logs").join(format!("{TABLE}{name}.txt"))
}

/// The tables of a run, one after the other.
pub(super) fn tables(run: &Path) -> Result<String> {
    let logs = run.join("logs");
    let mut all = String::new();
    let entries = std::fs::read_dir(&logs).with_context(|| format!("read {}", logs.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TABLE)) {
            all += &std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            all.push('\n');
        }
    }
    Ok(all)
}
