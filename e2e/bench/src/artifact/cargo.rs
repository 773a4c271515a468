//! Our own programs, as the repository builds them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::process::Command;

use super::{CLOUD_CONTROLLER_MANAGER, DRIVER, process::run};
use crate::{paths, report::Progress};

/// The files of our programs.
#[derive(Clone, Debug)]
pub(super) struct OwnPrograms {
    /// The CSI driver.
    pub driver: PathBuf,
    /// The cloud controller manager.
    pub ccm: PathBuf,
}

/// Builds them as they are shipped. cargo decides what is stale, and where its target directory is.
pub(super) async fn build(progress: &dyn Progress) -> Result<OwnPrograms> {
    let names = [DRIVER.program, CLOUD_CONTROLLER_MANAGER.program];
    progress.step(&format!("building {}", names.join(", ")));
    let mut cargo = cargo();
    // One selection of packages: with each alone, cargo would build shared dependencies twice, with other features.
    cargo.args(["build", "--locked", "--release", "-p", "driver", "-p", "ccm"]);
    let messages = run(cargo.arg(MESSAGES).current_dir(paths::repository())).await?;
    let [driver, ccm] = names.map(|name| {
        executable(&messages, name).with_context(|| format!("cargo does not say where {name} is"))
    });
    Ok(OwnPrograms { driver: driver?, ccm: ccm? })
}

/// Builds the end-to-end tests; the program that runs them. `--workspace`, because cargo chooses the features of shared dependencies
/// by the selection of packages.
pub(super) async fn suite(progress: &dyn Progress) -> Result<PathBuf> {
    progress.step("building the end-to-end tests");
    let mut cargo = cargo();
    cargo.args(["test", "--locked", "--workspace", "--test", SUITE, "--no-run"]);
    let messages = run(cargo.arg(MESSAGES).current_dir(paths::repository())).await?;
    executable(&messages, SUITE).context("cargo does not say where the end-to-end tests are")
}

/// The target with the end-to-end tests.
const SUITE: &str = "suite";

/// Makes cargo print a JSON object per finished target.
const MESSAGES: &str = "--message-format=json-render-diagnostics";

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// cargo's message about one finished target (The Cargo Book, "External tools").
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let mut ours =
        messages.filter(|message| message.target.as_ref().is_some_and(|target| target.name == name));
    ours.find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_the_named_targets() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"bench"},"executable":"/t/bench"}
{"reason":"compiler-artifact","target":{"name":"driver"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"kubevirt-csi-driver"},"executable":"/t/d"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "kubevirt-csi-driver"), Some("/t/d".into()));
        assert_eq!(executable(messages, "driver"), None);
    }
}
