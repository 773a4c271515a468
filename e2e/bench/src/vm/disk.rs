//! Plugs disks into a running QEMU and takes them out, the way libvirt does for KubeVirt: the same drivers, the same
//! serial in both places where a guest reads one, one SCSI target with a logical unit per disk.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use qapi::qmp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    block_nodes::Nodes,
    command_line::{ROOT_PORTS, SCSI_CONTROLLER, root_port},
    disk_fault::{DiskFaults, brake, filters},
    qmp::Monitor,
    wait::wait_for,
};

/// SCSI logical units of one target (SAM-5 peripheral device addressing).
const SCSI_UNITS: u16 = 256;

/// A guest acknowledges a PCIe removal within a second; software emulation on a loaded machine takes longer.
const UNPLUG_LIMIT: Duration = Duration::from_mins(1);

/// QEMU frees a removed device within its next main loop turns.
const CLOSE_LIMIT: Duration = Duration::from_secs(20);

/// Where a disk is plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// `scsi-hd` on the machine's virtio-scsi controller: what KubeVirt hotplugs by default. The guest sees the whole serial.
    Scsi,
    /// `virtio-blk-pci` on a PCIe root port. The guest sees the serial's first 20 bytes.
    Virtio,
}

/// A disk to plug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Unique within the machine: KubeVirt's volume name.
    pub name: String,
    /// A raw image file or a block device. QEMU locks it: a second machine is refused.
    pub image: PathBuf,
    /// Where to plug it.
    pub bus: Bus,
    /// What the guest reads as the disk's serial number.
    pub serial: String,
    /// What it does wrong from the beginning.
    #[serde(default)]
    pub faults: DiskFaults,
    /// Plugged by a test, for no volume of the VMI: virt-handler neither sees it nor takes it out.
    #[serde(default)]
    pub by_test: bool,
}

/// The disks of one machine. Changes are made one at a time; reading never waits for one.
#[derive(Debug, Default)]
pub(super) struct Disks {
    plugged: Mutex<Places>,
    change: tokio::sync::Mutex<()>,
}

/// Disks by name, each with its place on its bus.
#[derive(Debug, Default)]
struct Places(BTreeMap<String, (Disk, u16)>);

impl Places {
    fn free(&self, bus: Bus) -> Result<u16> {
        let places = match bus {
            Bus::Scsi => SCSI_UNITS,
            Bus::Virtio => u16::from(ROOT_PORTS),
        };
        let taken = |place: &u16| self.0.values().any(|(disk, at)| disk.bus == bus && at == place);
        (0..places)
            .find(|place| !taken(place))
            .with_context(|| format!("all {places} places of the {bus:?} bus are taken"))
    }
}

impl Disks {
    pub(super) fn names(&self) -> Vec<String> {
        let places = self.places();
        let of_volumes = places.0.iter().filter(|(_, (disk, _))| !disk.by_test);
        of_volumes.map(|(name, _)| name.clone()).collect()
    }

    /// Plugs `disk`. The same disk again is a success, another disk under its name an error.
    pub(super) async fn plug(&self, monitor: &Monitor, disk: &Disk) -> Result<()> {
        let _change = self.change.lock().await;
        let place = {
            let places = self.places();
            if let Some((plugged, _)) = places.0.get(&disk.name) {
                ensure!(plugged == disk, "another disk is plugged as {}; unplug it first", disk.name);
                return Ok(());
            }
            places.free(disk.bus)?
        };
        let nodes = Nodes::of(&disk.name);
        add_nodes(monitor, &nodes, disk, false).await?;
        if let Err(error) = add_device(monitor, device(&nodes, disk, place)).await {
            delete_nodes(monitor, &nodes).await.ok();
            return Err(error.context(format!("plug {}", disk.name)));
        }
        self.places().0.insert(disk.name.clone(), (disk.clone(), place));
        if disk.faults.frozen_after.is_some() {
            brake(monitor, &nodes, &disk.faults).await.with_context(|| format!("freeze {}", disk.name))?;
        }
        Ok(())
    }

    /// Takes a disk out: the device, once the guest has let go, then its block nodes. One that is not there is out.
    pub(super) async fn unplug(&self, monitor: &Monitor, name: &str) -> Result<()> {
        let _change = self.change.lock().await;
        if !self.places().0.contains_key(name) {
            return Ok(());
        }
        let nodes = Nodes::of(name);
        monitor.remove_device(&nodes.device, UNPLUG_LIMIT).await.with_context(|| format!("unplug {name}"))?;
        delete_nodes(monitor, &nodes).await.with_context(|| format!("unplug {name}"))?;
        self.places().0.remove(name);
        Ok(())
    }

    /// The size that the guest sees, in bytes, and the image; `None` when it is not plugged.
    pub(super) async fn size(&self, monitor: &Monitor, name: &str) -> Result<Option<(u64, PathBuf)>> {
        let _change = self.change.lock().await;
        let image = self.places().0.get(name).map(|(disk, _)| disk.image.clone());
        let Some(image) = image else { return Ok(None) };
        let top = Nodes::of(name).format;
        let nodes = monitor.execute(qmp::query_named_block_nodes { flat: Some(true) }).await?;
        let node = nodes.into_iter().find(|node| node.node_name.as_ref() == Some(&top));
        let node = node.with_context(|| format!("QEMU has no block node {top} of {name}"))?;
        let bytes = u64::try_from(node.image.base.virtual_size).context("QEMU reports a negative size")?;
        Ok(Some((bytes, image)))
    }

    /// Grows a plugged disk to so many bytes.
    pub(super) async fn grow(&self, monitor: &Monitor, name: &str, bytes: u64) -> Result<()> {
        let _change = self.change.lock().await;
        ensure!(self.places().0.contains_key(name), "no disk is plugged as {name}");
        let size = i64::try_from(bytes).with_context(|| format!("{bytes} bytes are too many for a disk"))?;
        // By the topmost node: what lies under it follows, and the guest's device is told.
        let node_name = Some(Nodes::of(name).format);
        monitor.execute(qmp::block_resize { device: None, node_name, size }).await?;
        Ok(())
    }

    /// Gives a plugged disk other faults, or none, while the guest goes on.
    pub(super) async fn set_faults(&self, monitor: &Monitor, name: &str, faults: &DiskFaults) -> Result<()> {
        let _change = self.change.lock().await;
        ensure!(self.places().0.contains_key(name), "no disk is plugged as {name}");
        let nodes = Nodes::of(name);
        // First without any, so that the names of the filters are free.
        reopen(monitor, &nodes, &nodes.file).await?;
        delete_node(monitor, &nodes.faults).await?;
        let (graph, top) = filters(&nodes, faults);
        add_graph(monitor, graph).await?;
        reopen(monitor, &nodes, top).await?;
        brake(monitor, &nodes, faults).await?;
        if let Some((disk, _)) = self.places().0.get_mut(name) {
            disk.faults = faults.clone();
        }
        Ok(())
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Plugs a read-only disk into a root port that no other disk uses. It stays as long as the machine.
pub(super) async fn plug_read_only(monitor: &Monitor, disk: &Disk, port: u8) -> Result<()> {
    let nodes = Nodes::of(&disk.name);
    add_nodes(monitor, &nodes, disk, true).await?;
    add_device(monitor, device(&nodes, disk, port.into())).await
}

async fn add_nodes(monitor: &Monitor, nodes: &Nodes, disk: &Disk, read_only: bool) -> Result<()> {
    let image = disk.image.to_str().with_context(|| format!("{} is not UTF-8", disk.image.display()))?;
    if let Err(error) = add_graph(monitor, block_nodes(nodes, image, &disk.faults, read_only)).await {
        delete_nodes(monitor, nodes).await.ok();
        return Err(error.context(format!("open {image}")));
    }
    Ok(())
}

/// Adds block nodes, bottom first.
async fn add_graph(monitor: &Monitor, graph: Vec<Value>) -> Result<()> {
    for node in graph {
        let options: qmp::BlockdevOptions = serde_json::from_value(node).context("block node options")?;
        monitor.execute(qmp::blockdev_add(options)).await?;
    }
    Ok(())
}

/// Puts a writable disk's format node on another node; what the guest has under way is ended first.
async fn reopen(monitor: &Monitor, nodes: &Nodes, below: &str) -> Result<()> {
    let options = serde_json::from_value(format_node(nodes, below, false)).context("block node options")?;
    monitor.execute(qmp::blockdev_reopen { options: vec![options] }).await?;
    Ok(())
}

async fn add_device(monitor: &Monitor, properties: Value) -> Result<()> {
    let command: qmp::device_add = serde_json::from_value(properties).context("device properties")?;
    monitor.execute(command).await?;
    Ok(())
}

/// Deletes the nodes that exist, top first.
async fn delete_nodes(monitor: &Monitor, nodes: &Nodes) -> Result<()> {
    for node in [&nodes.format, &nodes.faults, &nodes.file] {
        delete_node(monitor, node).await?;
    }
    Ok(())
}

async fn delete_node(monitor: &Monitor, node: &str) -> Result<()> {
    wait_for(&format!("QEMU to close {node}"), CLOSE_LIMIT, || try_delete_node(monitor, node)).await
}

/// One attempt; nothing while the node is in use: QEMU announces a device's end before the object that holds the node
/// has been freed.
async fn try_delete_node(monitor: &Monitor, node: &str) -> Result<Option<()>> {
    match monitor.attempt(qmp::blockdev_del { node_name: node.into() }).await? {
        Ok(_) => Ok(Some(())),
        Err(refusal) if refusal.to_string().contains("Failed to find node") => Ok(Some(())),
        Err(refusal) if refusal.to_string().contains("is in use") => Ok(None),
        Err(refusal) => bail!("QEMU refuses to close {node}: {refusal}"),
    }
}

/// The block graph, bottom first: the file, the faults if any, the raw format on top.
fn block_nodes(nodes: &Nodes, image: &str, faults: &DiskFaults, read_only: bool) -> Vec<Value> {
    let (between, top) = filters(nodes, faults);
    let file = json!({
        "driver": "file", "node-name": nodes.file, "filename": image, "read-only": read_only, "cache": cache(),
    });
    std::iter::once(file).chain(between).chain([format_node(nodes, top, read_only)]).collect()
}

fn format_node(nodes: &Nodes, below: &str, read_only: bool) -> Value {
    json!({
        "driver": "raw", "node-name": nodes.format, "file": below, "read-only": read_only, "cache": cache(),
    })
}

/// The images live no longer than the bench: what the host's page cache holds is safe enough, and flushing to a real
/// disk would only make every test wait.
fn cache() -> Value {
    json!({"direct": false, "no-flush": true})
}

/// `device_add`'s arguments. Errors go to the guest, so that a test can see what its kernel and our driver make of
/// them; KubeVirt's own default pauses the VM instead.
fn device(nodes: &Nodes, disk: &Disk, place: u16) -> Value {
    let mut properties = json!({
        "id": nodes.device, "drive": nodes.format, "serial": disk.serial, "werror": "report", "rerror": "report",
    });
    let more = match disk.bus {
        // libvirt sets device_id to the serial: without it the guest's /dev/disk/by-id holds only 20 characters.
        Bus::Scsi => json!({
            "driver": "scsi-hd", "bus": format!("{SCSI_CONTROLLER}.0"), "device_id": disk.serial,
            "channel": 0, "scsi-id": 0, "lun": place,
        }),
        Bus::Virtio => json!({"driver": "virtio-blk-pci", "bus": root_port(place)}),
    };
    if let (Value::Object(all), Value::Object(more)) = (&mut properties, more) {
        all.extend(more);
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, bus: Bus) -> Disk {
        let (faults, by_test) = (DiskFaults::default(), false);
        Disk { name: name.into(), image: "/images/a.img".into(), bus, serial: "b9d4".into(), faults, by_test }
    }

    #[test]
    fn the_format_reads_the_topmost_filter_or_the_file() {
        let nodes = Nodes::of("v");
        let graph = block_nodes(&nodes, "/a.img", &DiskFaults::read_errors(vec![7]), false);
        assert_eq!((graph.len(), &graph[2]["file"]), (3, &json!(nodes.faults)));
        for node in graph {
            serde_json::from_value::<qmp::BlockdevOptions>(node).expect("options of QEMU's schema");
        }
        let graph = block_nodes(&nodes, "/a.img", &DiskFaults::default(), true);
        assert_eq!(graph.len(), 2);
        assert_eq!(graph[1]["file"], graph[0]["node-name"]);
        assert_eq!(graph[0]["read-only"], json!(true));
    }

    #[test]
    fn a_scsi_disk_carries_its_serial_twice() {
        let properties = device(&Nodes::of("v"), &disk("v", Bus::Scsi), 3);
        assert_eq!((&properties["serial"], &properties["device_id"]), (&json!("b9d4"), &json!("b9d4")));
        assert_eq!(properties["lun"], json!(3));
    }

    #[test]
    fn places_are_counted_per_bus_and_used_again() {
        let mut plugged = Places::default();
        for (name, bus, place) in [("a", Bus::Virtio, 0), ("b", Bus::Virtio, 1), ("c", Bus::Scsi, 0)] {
            assert_eq!(plugged.free(bus).expect("a place"), place);
            plugged.0.insert(name.into(), (disk(name, bus), place));
        }
        plugged.0.remove("a");
        assert_eq!(plugged.free(Bus::Virtio).expect("a place"), 0);
        for place in 2..=u16::from(ROOT_PORTS) {
            plugged.0.insert(format!("v{place}"), (disk("v", Bus::Virtio), place));
        }
        plugged.0.insert("z".into(), (disk("z", Bus::Virtio), 0));
        assert!(plugged.free(Bus::Virtio).is_err());
    }

    #[test]
    fn a_tests_own_disk_is_not_told_to_virt_handler() {
        let disks = Disks::default();
        let own = Disk { by_test: true, ..disk("own", Bus::Scsi) };
        disks
            .places()
            .0
            .extend([("own".into(), (own, 0)), ("volume".into(), (disk("volume", Bus::Scsi), 1))]);
        assert_eq!(disks.names(), ["volume"]);
    }
}
