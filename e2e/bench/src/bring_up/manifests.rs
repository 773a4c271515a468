//! `deploy/` as an operator applies it: rendered by kustomize, read as documents.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;

/// Renders the kustomization in `folder` with the bench's own kubectl.
pub async fn render(kubectl: &Path, folder: &Path) -> Result<Vec<Value>> {
    let output = Command::new(kubectl)
        .args(["kustomize", "--load-restrictor=LoadRestrictionsNone"])
        .arg(folder)
        .output()
        .await
        .with_context(|| format!("run {}", kubectl.display()))?;
    if !output.status.success() {
        bail!("kustomize {}: {}", folder.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout).context("kustomize printed no UTF-8")?;
    serde_saphyr::from_multiple(&text).with_context(|| format!("the manifests of {}", folder.display()))
}

/// The object of that kind and name.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .with_context(|| format!("the manifests have no {kind} {name}"))
}
