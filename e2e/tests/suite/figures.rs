//! How fast, and with how many infra calls: measured, reported in the run's table, and limited where the limit does not depend on
//! the machine.

pub mod already_ready;
pub mod copies;
pub mod hostile_guest;
pub mod many_claims;
pub mod many_volumes;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bench::scenario::HCP_NAMESPACE;
use futures::TryStreamExt;
use kube::{
    Api, Client,
    api::{DynamicObject, WatchParams},
    core::WatchEvent,
};
use serde_json::Value;

use crate::controller_process::Controller;

/// The value below which `share` of the (sorted) samples lie, nearest rank.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among some dozen samples"
    )]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The resident memory that a controller reports.
async fn resident_mib(controller: &Controller) -> Result<f64> {
    const NAME: &str = "process_resident_memory_bytes ";
    const MIB: f64 = 1_048_576.0;
    let (_, metrics) = controller.get("/metrics").await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(NAME)).context("no resident memory")?;
    Ok(value.parse::<f64>()? / MIB)
}

/// `addvolume` or `removevolume` of a VM, without a driver.
async fn hotplug_call(infra: &Client, machine: &str, verb: &str, body: &Value) -> Result<()> {
    let request = http::Request::put(format!(
        "/apis/subresources.kubevirt.io/v1/namespaces/{HCP_NAMESPACE}/virtualmachines/{machine}/{verb}"
    ))
    .header("accept", "application/json, */*")
    .header("content-type", "application/json")
    .body(serde_json::to_vec(body)?)?;
    infra.request_text(request).await?;
    Ok(())
}

/// Waits with a watch, so that no poll makes the bare calls slower than they are.
async fn becomes(
    api: &Api<DynamicObject>,
    name: &str,
    is_done: impl Fn(&DynamicObject) -> bool,
) -> Result<()> {
    let only = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(290);
    let mut events = Box::pin(api.watch(&only, "0").await?);
    while let Some(event) = events.try_next().await? {
        if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event
            && is_done(&object)
        {
            return Ok(());
        }
    }
    bail!("expected a change of {name} within 290 s, saw its watch end")
}
