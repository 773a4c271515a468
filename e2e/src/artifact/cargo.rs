//! Our own programs, as the repository builds them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::process::Command;

use super::process::run;
use crate::{paths, report::Progress};

/// What to build: the program under test as it is shipped; the plugin registrar, which stands in for a sidecar, in the
/// profile that the bench itself was just built in.
const BUILDS: &[(&str, &[&str])] = &[
    ("kubevirt-csi-driver", &["--release", "-p", "driver"]),
    ("plugin-registrar", &["-p", "e2e", "--bin", "plugin-registrar"]),
];

/// Builds our programs; returns name and file of each. cargo decides what is stale, and where its target directory is.
pub(super) async fn build(progress: &dyn Progress) -> Result<Vec<(String, PathBuf)>> {
    let mut programs = Vec::new();
    for (name, flags) in BUILDS {
        progress.step(&format!("building {name}"));
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--locked", "--message-format=json-render-diagnostics"]).args(*flags);
        let messages = run(cargo.current_dir(paths::repository())).await?;
        let built =
            executable(&messages, name).with_context(|| format!("cargo does not say where {name} is"))?;
        programs.push(((*name).to_string(), built));
    }
    Ok(programs)
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
