//! The **storage system of the infra cluster**: a CSI plugin. Everything above it is real: csi-provisioner, csi-resizer,
//! csi-snapshotter and snapshot-controller (`cluster::infra_storage`) decide when it is called, write the objects and the
//! events.
//!
//! The data of a block volume is one sparse file, a device's stand-in. A filesystem volume is a folder, in which CDI's importer
//! (`infra_pods`) makes the `disk.img`. The virt-handler simulator plugs the one or the other into machines. All of it lies
//! in one filesystem that shares extents (`pool`): a snapshot and a clone are reflinks, made at one point in time.
//!
//! A volume's handle is its name, which is its PV's: `pvc-<uid>`.
//!
//! What it does not do: topology, attaching (infra pods need no device here), group snapshots, and mutable parameters.
//! Nothing keeps a folder's files within the size of its volume.

mod fault;
mod identity;
mod parameters;
mod plan;
mod plugin;
mod pool;
mod service;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use csi_proto::v1::{controller_server::ControllerServer, identity_server::IdentityServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;

pub use self::fault::{Fault, Operation, Selector};
use self::{identity::Identity, plugin::Plugin, pool::Pool, service::Service};
use super::{Running, fault_plan::FaultPlan};

/// The volume mode of a device.
pub(super) const BLOCK: &str = "Block";

/// The file in a filesystem volume that is the disk (CDI's `DiskImageName`, which virt-handler opens).
const DISK_IMAGE: &str = "disk.img";

/// What the plugin needs.
pub struct Options {
    /// The file that holds the pool's filesystem. The plugin creates it, and replaces one that exists.
    pub pool: PathBuf,
    /// The folder where the pool is mounted: the images.
    pub volumes: PathBuf,
    /// The unix socket where the sidecars find it.
    pub socket: PathBuf,
    /// The faults to inject.
    pub faults: FaultPlan<Fault>,
}

/// Makes and mounts the pool, and serves the plugin.
///
/// # Errors
/// When the machine can't make or mount the pool, with what is missing.
pub async fn start(options: Options) -> Result<Running> {
    let pool = Pool::make(&options.pool, &options.volumes).await.context("make the pool of infra storage")?;
    let doing = || format!("serve infra storage at {}", options.socket.display());
    let listener = UnixListener::bind(&options.socket).with_context(doing)?;
    let plugin = Plugin::new(pool, options.faults);
    let server = Server::builder()
        .add_service(IdentityServer::new(Identity))
        .add_service(ControllerServer::new(Service(plugin)))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let task = tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!("infra storage serves no longer: {error:#}");
        }
    });
    Ok(Running::new(vec![AbortOnDropHandle::new(task)]))
}

/// The image of a PV that a machine gets: the device, or the disk in the filesystem. Of a filesystem PV it exists once
/// CDI has populated it. `volume_mode` is the claim's or the PV's; absent it means `Filesystem`.
pub fn image(volumes: &Path, pv: &str, volume_mode: Option<&str>) -> PathBuf {
    if volume_mode == Some(BLOCK) { device(volumes, pv) } else { folder(volumes, pv).join(DISK_IMAGE) }
}

/// What `NodeExpandVolume` does on an infra node: a device has to have its size already, a folder has none.
///
/// # Errors
/// When the device is smaller than `bytes`.
pub(super) async fn expand_on_node(
    volumes: &Path,
    pv: &str,
    volume_mode: Option<&str>,
    bytes: u64,
) -> Result<()> {
    if volume_mode != Some(BLOCK) {
        return Ok(());
    }
    let device = device(volumes, pv);
    let found = tokio::fs::metadata(&device).await;
    let found = found.with_context(|| format!("read the size of {}", device.display()))?.len();
    anyhow::ensure!(found >= bytes, "{} has {found} bytes, expected {bytes}", device.display());
    Ok(())
}

fn device(volumes: &Path, pv: &str) -> PathBuf {
    volumes.join(format!("{pv}.img"))
}

fn folder(volumes: &Path, pv: &str) -> PathBuf {
    volumes.join(pv)
}

/// A sparse file of zeros; one that is there keeps its content.
pub(super) async fn create_image(path: &Path, bytes: u64) -> Result<()> {
    let doing = || format!("create {}", path.display());
    let file =
        tokio::fs::OpenOptions::new().create(true).append(true).open(path).await.with_context(doing)?;
    file.set_len(bytes).await.with_context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_image_is_sparse_and_keeps_its_content() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let dir = tempfile::tempdir().expect("a folder");
        let path = image(dir.path(), "pvc-1", Some(BLOCK));
        create_image(&path, 1 << 30).await.expect("created");
        let file = std::fs::metadata(&path).expect("a file");
        assert_eq!(file.len(), 1 << 30);
        assert!(file.blocks() < 64, "{} blocks", file.blocks());
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("a file");
        file.write_all_at(b"data", 0).expect("written");
        create_image(&path, 1 << 30).await.expect("created again");
        assert_eq!(&std::fs::read(&path).expect("read")[..4], b"data");
    }

    #[tokio::test]
    async fn a_device_is_expanded_before_the_node_says_so() {
        let dir = tempfile::tempdir().expect("a folder");
        create_image(&image(dir.path(), "pvc-1", Some(BLOCK)), 1 << 20).await.expect("created");
        assert!(expand_on_node(dir.path(), "pvc-1", Some(BLOCK), 1 << 20).await.is_ok());
        assert!(expand_on_node(dir.path(), "pvc-1", Some(BLOCK), 2 << 20).await.is_err());
        assert!(expand_on_node(dir.path(), "pvc-2", Some(BLOCK), 1).await.is_err(), "no device");
        assert!(expand_on_node(dir.path(), "pvc-2", None, 1).await.is_ok(), "a folder has no size");
    }
}
