//! `NodeExpandVolume`: what was requested and what is there → the volume's disk, and the steps that are still needed.
//!
//! Decides only. The request names a volume and a path, but no serial. So the disk is the one whose number the mount
//! table or the device node at the path has, and the volume's `disk_record` says whether that is its disk. Volumes that
//! kubevirt/csi-driver mounted have no record, and are mounted at each pod's target: for them the mount alone counts.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::path::{Path, PathBuf};

use crate::{
    device::{Disk, DiskIdentity, DiskUse, check},
    device_number::DeviceNumber,
    disk_record::DiskRecordFile,
    error::{Error, Result},
    filesystem::FilesystemType,
    mount_table::{Mount, MountTable},
    step::Step,
};

/// A filesystem is grown when its disk is larger by this at least. KubeVirt grows disks by whole MiB, and xfs can use
/// that much: its smallest allocation group has 64 blocks. If ext4 cannot, resize2fs changes nothing and ends well.
/// Staging grows only by more ([`crate::filesystem::GROW_THRESHOLD_BYTES`]), because it runs also where nobody has asked
/// for another size.
const LEAST_GROWTH_BYTES: u64 = 1 << 20;

/// The request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Volume id.
    pub volume: String,
    /// Where the volume is staged or published.
    pub path: PathBuf,
    /// Where it is staged, if the caller says so.
    pub staging: Option<PathBuf>,
    /// What its disk must have at least, in bytes.
    pub required: u64,
    /// It is used as a raw device.
    pub block: bool,
    /// It is mounted for readers only.
    pub read_only: bool,
}

/// What was observed before the volume is known.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The whole mount table.
    pub mounts: MountTable,
    /// The device of the filesystem that is mounted at the path or else at the staging path, or that the node at it
    /// leads to.
    pub shown: Option<Shown>,
    /// The record of the volume's disks.
    pub record: DiskRecordFile,
    /// This boot.
    pub boot_id: String,
    /// All whole disks.
    pub disks: Vec<Disk>,
}

/// A device that a path shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Its filesystem is mounted there.
    Mounted(DeviceNumber),
    /// Its node is bound there.
    Node(DeviceNumber),
}

/// The volume, as it is on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its disk.
    pub disk: Disk,
    /// What is on the disk.
    pub content: Content,
}

/// What is on the disk of a volume in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// What a pod put there: nothing of ours to grow.
    Block,
    /// A mounted filesystem.
    Filesystem {
        /// Which.
        filesystem: FilesystemType,
        /// The mount through which it can be grown, if it has a writable one.
        mount: Mount,
    },
}

/// Finds the volume.
///
/// # Errors
/// `VolumeNotFound` when neither path nor record shows a disk that can be a volume's; `OtherVolume` when the path shows
/// a disk that is not the recorded one; `DiskChanged` when the disk is gone from under its mount.
pub fn locate(wanted: &Wanted, observed: &Observed) -> Result<Volume> {
    let not_found = || Err(Error::VolumeNotFound { path: wanted.path.clone() });
    let number = match observed.shown {
        Some(Shown::Mounted(number) | Shown::Node(number)) => number,
        // A staged block volume has nothing at its staging path. And the kubelet names the target of the last pod that
        // started (`operation_generator.go`, `MarkDeviceAsMounted`), which may have ended before the others.
        None if wanted.block => return recorded(wanted, observed),
        None => return not_found(),
    };
    let Some(disk) = observed.disks.iter().find(|disk| disk.number == number) else {
        let mut partitions = observed.disks.iter().flat_map(|disk| &disk.partitions);
        if partitions.any(|partition| partition.number == number) {
            return not_found();
        }
        return Err(Error::DiskChanged { name: number.to_string(), detail: "it is gone".to_owned() });
    };
    match &observed.record {
        DiskRecordFile::Read(record) if !record.may_name(disk, &observed.boot_id) => {
            let (path, volume) = (wanted.path.clone(), wanted.volume.clone());
            return Err(Error::OtherVolume { path, name: disk.name.clone(), volume });
        }
        // Each disk of this driver has a serial.
        DiskRecordFile::Missing | DiskRecordFile::Unreadable(_) if disk.identity == DiskIdentity::None => {
            return not_found();
        }
        DiskRecordFile::Read(_) | DiskRecordFile::Missing | DiskRecordFile::Unreadable(_) => {}
    }
    check(disk, DiskUse::Block, &observed.mounts, &wanted.path)?;
    let content = match observed.shown {
        Some(Shown::Mounted(_)) => filesystem(wanted, observed, disk)?,
        Some(Shown::Node(_)) | None => Content::Block,
    };
    Ok(Volume { disk: disk.clone(), content })
}

/// The disk of a block volume that is staged, by its record alone.
fn recorded(wanted: &Wanted, observed: &Observed) -> Result<Volume> {
    let mut named = observed.disks.iter().filter(|disk| match &observed.record {
        DiskRecordFile::Read(record) => record.may_name(disk, &observed.boot_id),
        DiskRecordFile::Missing | DiskRecordFile::Unreadable(_) => false,
    });
    match (named.next(), named.next()) {
        (Some(disk), None) => Ok(Volume { disk: disk.clone(), content: Content::Block }),
        _ => Err(Error::VolumeNotFound { path: wanted.path.clone() }),
    }
}

fn filesystem(wanted: &Wanted, observed: &Observed, disk: &Disk) -> Result<Content> {
    let whole = |mount: &Mount| mount.root == Path::new("/");
    let mut mounts = observed.mounts.of(disk.number);
    mounts.retain(whole);
    // The staging mount is the driver's own, and outlives each pod's.
    mounts.sort_by_key(|mount| {
        let (staged, here) = (wanted.staging.as_ref() == Some(&mount.point), wanted.path == mount.point);
        (mount.read_only(), !staged, !here)
    });
    let Some(mount) = mounts.into_iter().next() else {
        return Err(Error::VolumeNotFound { path: wanted.path.clone() });
    };
    match FilesystemType::parse(&mount.fs_type) {
        Some(filesystem) => Ok(Content::Filesystem { filesystem, mount }),
        None => Err(Error::DiskRefused {
            name: disk.name.clone(),
            reason: format!("it holds {}, which this driver does not grow", mount.fs_type),
        }),
    }
}

/// What was observed of the volume's filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// Its size, where it is known.
    pub bytes: Option<u64>,
    /// The kernel met an error in it, and no check has followed.
    pub has_errors: bool,
    /// Why it takes no writes although its mount is writable.
    pub write_refusal: Option<String>,
    /// It was grown in this call: a program that ended well has done what it could.
    pub grown: bool,
}

/// Plans the next steps. Empty when the volume has the size of its disk.
///
/// # Errors
/// The disk has not the requested size yet; the filesystem must grow and cannot.
pub fn plan(wanted: &Wanted, volume: &Volume, condition: &Condition) -> Result<Vec<Step>> {
    let disk = &volume.disk;
    refuse_short(disk, wanted.required)?;
    let Content::Filesystem { filesystem, mount } = &volume.content else { return Ok(Vec::new()) };
    if is_whole(disk, condition.bytes) || condition.grown {
        return Ok(Vec::new());
    }
    let path = || mount.point.clone();
    if disk.read_only || (wanted.read_only && mount.read_only()) {
        return Err(Error::ReadOnlyNotGrown { path: path() });
    }
    if let Some(reason) = mount.write_refusal(condition.write_refusal.as_deref()) {
        return Err(Error::NotWritable { path: path(), reason });
    }
    // `ext4_resize_begin` refuses it, with the words that it has for a missing capability.
    if condition.has_errors {
        return Err(Error::GrowthNeedsCheck { path: path() });
    }
    Ok(vec![Step::Grow { disk: disk.clone(), filesystem: *filesystem, mount_point: path() }])
}

/// A filesystem of this size has all of its disk that it can use; false where the size is not known.
pub fn is_whole(disk: &Disk, filesystem_bytes: Option<u64>) -> bool {
    filesystem_bytes.is_some_and(|bytes| disk.bytes.saturating_sub(bytes) < LEAST_GROWTH_BYTES)
}

/// Refuses a disk that has not the requested size yet.
pub fn refuse_short(disk: &Disk, required: u64) -> Result<()> {
    if disk.bytes >= required {
        return Ok(());
    }
    Err(Error::DiskNotGrown { name: disk.name.clone(), bytes: disk.bytes, wanted: required })
}

#[cfg(test)]
mod tests;
