//! What a disk does wrong: block nodes between its image and its device, changeable while the guest uses it.

use anyhow::{Context, Result};
use qapi::qmp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{disk::Nodes, qmp::Monitor};

/// Linux's EIO, which `blkdebug` answers for a bad sector.
const EIO: i64 = 5;

/// Bytes a second that still pass a frozen disk; QEMU knows no zero. One request of a page waits more than an hour.
const FROZEN_BYTES_PER_SECOND: u64 = 1;

/// What a disk does wrong; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskFaults {
    /// 512-byte sectors whose reads answer EIO.
    pub read_errors: Vec<u64>,
    /// Writes are taken until this many bytes have been written, at least one request; all later ones wait. They go on
    /// when the faults are lifted, or for as long as an unplugging takes.
    pub frozen_after: Option<u64>,
}

impl DiskFaults {
    /// Bad sectors only.
    pub fn read_errors(sectors: Vec<u64>) -> Self {
        Self { read_errors: sectors, ..Self::default() }
    }
}

/// The filter nodes over the node `below`, bottom first, and the name of the topmost of all.
pub(super) fn filters<'a>(nodes: &'a Nodes, faults: &DiskFaults) -> (Vec<Value>, &'a str) {
    let mut graph = Vec::new();
    let mut below = nodes.file.as_str();
    if !faults.read_errors.is_empty() {
        let rule = |sector: &u64| json!({"event": "none", "iotype": "read", "errno": EIO, "sector": sector});
        let rules: Vec<Value> = faults.read_errors.iter().map(rule).collect();
        graph.push(json!({
            "driver": "blkdebug", "node-name": nodes.faults, "image": below, "inject-error": rules,
        }));
        below = &nodes.faults;
    }
    if faults.frozen_after.is_some() {
        graph.push(json!({
            "driver": "throttle", "node-name": nodes.brake, "throttle-group": nodes.brake_group, "file": below,
        }));
        below = &nodes.brake;
    }
    (graph, below)
}

/// The bucket of a frozen disk: it holds `bytes`, and practically nothing ever leaks from it.
fn brake_group(nodes: &Nodes, bytes: u64) -> Value {
    let bytes = bytes.max(FROZEN_BYTES_PER_SECOND);
    json!({
        "qom-type": "throttle-group", "id": nodes.brake_group,
        "limits": {"bps-write": FROZEN_BYTES_PER_SECOND, "bps-write-max": bytes},
    })
}

/// Makes what the filters need beside block nodes.
pub(super) async fn add_objects(monitor: &Monitor, nodes: &Nodes, faults: &DiskFaults) -> Result<()> {
    let Some(bytes) = faults.frozen_after else { return Ok(()) };
    let options = serde_json::from_value(brake_group(nodes, bytes)).context("throttle group options")?;
    monitor.execute(qmp::object_add(options)).await?;
    Ok(())
}

/// Lets go on what waits. QEMU 7.2 stands still for ever, with its monitor, when it drains a disk whose writes wait.
pub(super) async fn release(monitor: &Monitor, nodes: &Nodes, faults: &DiskFaults) -> Result<()> {
    if faults.frozen_after.is_none() {
        return Ok(());
    }
    let limits = json!({
        "path": format!("/objects/{}", nodes.brake_group), "property": "limits",
        "value": {"bps-write": 0, "bps-write-max": 0},
    });
    let command: qmp::qom_set = serde_json::from_value(limits).context("throttle limits")?;
    monitor.execute(command).await?;
    Ok(())
}

/// Deletes what [`add_objects`] made, if it did.
pub(super) async fn delete_objects(monitor: &Monitor, nodes: &Nodes) -> Result<()> {
    match monitor.attempt(qmp::object_del { id: nodes.brake_group.clone() }).await? {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.to_string().contains("not found") => Ok(()),
        Err(refusal) => anyhow::bail!("QEMU refuses to delete {}: {refusal}", nodes.brake_group),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_lie_between_the_file_and_what_is_on_top() {
        let nodes = Nodes::of("v");
        let faults = DiskFaults { read_errors: vec![0, 2048], frozen_after: Some(4096) };
        let (graph, top) = filters(&nodes, &faults);
        assert_eq!(
            (graph[0]["image"].as_str(), graph[1]["file"].as_str()),
            (Some(&*nodes.file), Some(&*nodes.faults))
        );
        assert_eq!(graph[0]["inject-error"][1]["sector"], json!(2048));
        assert_eq!(top, nodes.brake);
        for node in graph {
            serde_json::from_value::<qmp::BlockdevOptions>(node).expect("options of QEMU's schema");
        }
        serde_json::from_value::<qmp::ObjectOptions>(brake_group(&nodes, 4096))
            .expect("options of QEMU's schema");
    }

    #[test]
    fn without_faults_there_are_no_filters() {
        let nodes = Nodes::of("v");
        assert_eq!(filters(&nodes, &DiskFaults::default()), (vec![], nodes.file.as_str()));
    }
}
