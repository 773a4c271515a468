//! The machine as the rest of the crate sees it: what can be observed, and the one way to change something.
//!
//! Decides nothing about volumes. All of it blocks, so it is only called from the threads of a bounded pool.

mod held_disk;

use std::path::{Path, PathBuf};

use crate::{
    device::Disk,
    device_number::DeviceNumber,
    disk_record::DiskRecordFile,
    error::Result,
    filesystem::FilesystemType,
    mount_table::MountTable,
    path_state::PathState,
    probe::Evidence,
    step::{MkfsRecord, Step},
    usage::{Capacity, Usage},
};

pub use held_disk::HeldDisk;

/// The machine.
pub trait Host: Send + Sync + 'static {
    /// All whole disks.
    fn disks(&self) -> Result<Vec<Disk>>;
    /// The disk that has this number now; `None` when there is none.
    fn disk(&self, number: DeviceNumber) -> Result<Option<Disk>>;
    /// Makes the SCSI hosts scan for disks, in case an announcement was lost.
    fn rescan(&self) -> Result<()>;
    /// Makes the kernel ask one SCSI disk for its size, in case an announcement was lost; other disks have no such
    /// question. Hangs for as long as the disk does.
    fn rescan_disk(&self, disk: &Disk) -> Result<()>;
    /// Path of a disk's device node.
    fn node_path(&self, disk: &Disk) -> PathBuf;
    /// Opens a disk, proves that it is still the one that was found, and keeps udev's tools away from it. While the
    /// result lives the kernel gives neither its name nor its number to another disk.
    fn hold(&self, disk: &Disk) -> Result<HeldDisk>;
    /// As [`Self::hold`], without keeping anyone away: for what neither reads nor writes the disk. The workload of a block volume
    /// may lock its disk for as long as it runs.
    fn open(&self, disk: &Disk) -> Result<HeldDisk>;
    /// Reads what is on a disk that nobody else uses.
    ///
    /// # Errors
    /// `DiskBusy` when someone does; a read error is part of the evidence.
    fn examine(&self, disk: &HeldDisk) -> Result<Evidence>;
    /// What has claimed the disk, in any mount namespace; `None` when nothing has, and all that was written to the disk
    /// is on it.
    fn in_use(&self, disk: &Disk) -> Result<Option<String>>;
    /// Why nothing can be written to the filesystem that is mounted here, though the mount table calls it writable: after
    /// an error the kernel refuses all writes. `None`: it can be written, or why it cannot is of another kind, such as a
    /// full disk. Writes nothing that stays; may wait for as long as the filesystem is frozen.
    fn write_refusal(&self, mount_point: &Path) -> Result<Option<String>>;
    /// The mount table.
    fn mounts(&self) -> Result<MountTable>;
    /// The path as the mount table names it: its parent's links resolved, its last component as given.
    fn canonical(&self, path: &Path) -> Result<PathBuf>;
    /// What lies at a path.
    fn path(&self, path: &Path) -> Result<PathState>;
    /// The record in an unmounted staging directory; one that cannot be read as ours is `None`.
    fn mkfs_record(&self, staging: &Path) -> Result<Option<MkfsRecord>>;
    /// The record of the disks that a volume was used from.
    fn disk_record(&self, volume: &str) -> Result<DiskRecordFile>;
    /// Identifies this boot of the kernel: mounts and device numbers end with it.
    fn boot_id(&self) -> Result<String>;
    /// Disks that other mount namespaces have mounted at a staging path, as far as this process sees their processes.
    fn mounted_elsewhere(&self, staging: &Path) -> Result<Vec<DeviceNumber>>;
    /// Size of a mounted filesystem; `None` where its superblock is not understood.
    fn filesystem_bytes(
        &self,
        disk: &Disk,
        filesystem: FilesystemType,
        mount_point: &Path,
    ) -> Result<Option<u64>>;
    /// The kernel met an error in the disk's filesystem, and no check has followed.
    fn has_errors(&self, disk: &Disk, filesystem: FilesystemType) -> Result<bool>;
    /// Usage of a mounted filesystem. May hang for as long as its disk does.
    fn usage(&self, mount_point: &Path) -> Result<Usage>;
    /// Size of a block device, a partition included; `None` when it is gone.
    fn capacity(&self, number: DeviceNumber) -> Result<Option<Capacity>>;
    /// Makes one change.
    fn apply(&self, step: &Step) -> Result<()>;
}
