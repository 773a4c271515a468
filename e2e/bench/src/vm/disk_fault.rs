//! What a disk does wrong, changeable while the guest uses it: read errors by a block node between its image and its device,
//! standing still by the device's own throttle.

use anyhow::{Context, Result};
use qapi::qmp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{block_nodes::Nodes, qmp::Monitor};

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

/// The filter nodes over the disk's file, and the name of the topmost of all.
pub(super) fn filters<'a>(nodes: &'a Nodes, faults: &DiskFaults) -> (Vec<Value>, &'a str) {
    if faults.read_errors.is_empty() {
        return (Vec::new(), &nodes.file);
    }
    let rule = |sector: &u64| json!({"event": "none", "iotype": "read", "errno": EIO, "sector": sector});
    let rules: Vec<Value> = faults.read_errors.iter().map(rule).collect();
    let filter = json!({
        "driver": "blkdebug", "node-name": nodes.faults, "image": nodes.file, "inject-error": rules,
    });
    (vec![filter], &nodes.faults)
}

/// Brakes a plugged device, or lets it go. By the device's own throttle and not by a throttle node below it: when a device is
/// drained, which unplugging and reopening do, QEMU lets go on what waits in the former, and stands still for ever, with its
/// monitor, over what waits in the latter (seen with 7.2).
pub(super) async fn brake(monitor: &Monitor, nodes: &Nodes, faults: &DiskFaults) -> Result<()> {
    let command = qmp::block_set_io_throttle(
        serde_json::from_value(limits(nodes, faults)).context("limits of a device")?,
    );
    monitor.execute(command).await?;
    Ok(())
}

/// The bucket of a frozen disk holds so many bytes, and practically nothing ever leaks from it.
fn limits(nodes: &Nodes, faults: &DiskFaults) -> Value {
    let (rate, burst) = match faults.frozen_after {
        Some(bytes) => (FROZEN_BYTES_PER_SECOND, bytes.max(FROZEN_BYTES_PER_SECOND)),
        None => (0, 0),
    };
    json!({
        "id": nodes.device, "bps": 0, "bps_rd": 0, "bps_wr": rate, "bps_wr_max": burst,
        "iops": 0, "iops_rd": 0, "iops_wr": 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_lie_between_the_file_and_what_is_on_top() {
        let nodes = Nodes::of("v");
        let faults = DiskFaults { read_errors: vec![0, 2048], frozen_after: Some(4096) };
        let (graph, top) = filters(&nodes, &faults);
        assert_eq!((graph[0]["image"].as_str(), top), (Some(&*nodes.file), &*nodes.faults));
        assert_eq!(graph[0]["inject-error"][1]["sector"], json!(2048));
        for node in graph {
            serde_json::from_value::<qmp::BlockdevOptions>(node).expect("options of QEMU's schema");
        }
        let frozen = limits(&nodes, &faults);
        assert_eq!((&frozen["bps_wr"], &frozen["bps_wr_max"]), (&json!(1), &json!(4096)));
        for limits in [frozen, limits(&nodes, &DiskFaults::default())] {
            serde_json::from_value::<qmp::BlockIOThrottle>(limits).expect("options of QEMU's schema");
        }
    }

    #[test]
    fn without_faults_there_are_no_filters() {
        let nodes = Nodes::of("v");
        assert_eq!(filters(&nodes, &DiskFaults::default()), (vec![], nodes.file.as_str()));
    }
}
