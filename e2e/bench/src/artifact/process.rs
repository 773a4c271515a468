//! Runs a tool to its end and keeps its output for the error message.

use std::{ffi::OsString, process::Stdio};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// Runs `command` without input; returns its standard output. A failure quotes the end of its standard error.
pub async fn run(command: &mut Command) -> Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("start {program}; is it installed?"))?;
    if !output.status.success() {
        bail!(
            "{program} ended with {}: {}",
            output.status,
            last_lines(&String::from_utf8_lossy(&output.stderr), 15)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Folders of system tools (modprobe, depmod) that an ordinary user's PATH may lack.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// PATH, and after it the folders of system tools.
pub fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for folder in SYSTEM_FOLDERS {
        path.push(":");
        path.push(folder);
    }
    path
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
