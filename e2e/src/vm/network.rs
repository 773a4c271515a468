//! The tap device through which a worker VM stands on a bridge of the sandbox.

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// Creates the tap device `name` in this network namespace, up, and enslaves it to `bridge` if one is given. A device
/// that is there already is only brought into that state.
pub async fn create_tap(name: &str, bridge: Option<&str>) -> Result<()> {
    if !exists(name).await? {
        ip(&["tuntap", "add", "dev", name, "mode", "tap"]).await?;
    }
    if let Some(bridge) = bridge {
        ip(&["link", "set", name, "master", bridge]).await?;
    }
    ip(&["link", "set", name, "up"]).await
}

/// Whether this network namespace has the device.
pub(super) async fn exists(name: &str) -> Result<bool> {
    let shown = Command::new("ip").args(["link", "show", "dev", name]).output().await.context("run ip")?;
    Ok(shown.status.success())
}

async fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().await.context("run ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
