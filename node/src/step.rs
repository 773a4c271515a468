//! The single changes that a plan is made of. [`crate::host`] makes each of them, and each may be repeated.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    device::Disk,
    disk_record::DiskRecord,
    filesystem::FilesystemType,
    mount_options::{Flag, MountOptions},
    origin::FilesystemUuid,
};

/// Written, and on the disk, before mkfs starts; removed before the filesystem is mounted.
///
/// If mkfs was cut short, it leaves bytes that are neither blank nor a filesystem. Only this record permits formatting
/// a disk with such bytes again: it shows that the bytes are our own, and that nothing was ever mounted from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MkfsRecord {
    /// Serial of the volume.
    pub serial: String,
    /// What was being made.
    pub filesystem: FilesystemType,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a directory to mount on.
    CreateDirectory(PathBuf),
    /// Make an empty file to bind a device node on.
    CreateFile(PathBuf),
    /// Make the record of a volume's disks durable.
    WriteDiskRecord(DiskRecord),
    /// Remove the record of a volume's disks, durably: their release is proved.
    RemoveDiskRecord {
        /// Volume id.
        volume: String,
    },
    /// Make the record durable.
    WriteMkfsRecord {
        /// Unmounted staging directory.
        staging: PathBuf,
        /// Its content.
        record: MkfsRecord,
    },
    /// Remove the record, durably.
    RemoveMkfsRecord {
        /// Unmounted staging directory.
        staging: PathBuf,
    },
    /// Zero the superblock that an unfinished mkfs of ours left, since mkfs without force refuses a disk that has one.
    ClearUnfinished {
        /// Where.
        disk: Disk,
        /// Of the bytes that were probed. If the disk has others, nothing is written.
        fingerprint: u64,
    },
    /// Run mkfs.
    Format {
        /// Where.
        disk: Disk,
        /// What.
        filesystem: FilesystemType,
        /// Of the bytes that were probed. If the disk has others, nothing is written.
        fingerprint: u64,
        /// Its UUID; `None`: any.
        uuid: Option<FilesystemUuid>,
    },
    /// Check, and repair what can be repaired unasked.
    Check {
        /// Where.
        disk: Disk,
        /// What.
        filesystem: FilesystemType,
    },
    /// Mount the disk's filesystem.
    Mount {
        /// What.
        disk: Disk,
        /// As what.
        filesystem: FilesystemType,
        /// How.
        options: MountOptions,
        /// Where.
        target: PathBuf,
    },
    /// Let the mounted filesystem take its whole disk.
    Grow {
        /// Its disk.
        disk: Disk,
        /// What.
        filesystem: FilesystemType,
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// Make a directory or a device node visible at the target.
    Bind {
        /// What.
        source: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// Make one bind mount read-only, its other flags kept.
    RemountReadOnly {
        /// Which.
        target: PathBuf,
        /// Flags that it has, which mount(2) would otherwise drop.
        keep: BTreeSet<Flag>,
    },
    /// Take the topmost mount off the path.
    Unmount {
        /// Where.
        target: PathBuf,
    },
    /// Remove an empty directory or file that the mount table proves to be no mount point.
    RemoveTarget(PathBuf),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateDirectory(path) | Self::CreateFile(path) => write!(f, "creating {}", path.display()),
            Self::WriteDiskRecord(record) => write!(f, "recording the disk of volume {}", record.volume),
            Self::RemoveDiskRecord { volume } => {
                write!(f, "removing the record of the disk of volume {volume}")
            }
            Self::WriteMkfsRecord { .. } => f.write_str("recording that mkfs starts"),
            Self::RemoveMkfsRecord { .. } => f.write_str("removing the record of mkfs"),
            Self::ClearUnfinished { disk, .. } => {
                write!(f, "clearing the unfinished filesystem on {}", disk.name)
            }
            Self::Format { disk, filesystem, .. } => write!(f, "formatting {} with {filesystem}", disk.name),
            Self::Check { disk, filesystem } => write!(f, "checking the {filesystem} on {}", disk.name),
            Self::Mount { disk, target, .. } => write!(f, "mounting {} at {}", disk.name, target.display()),
            Self::Grow { disk, filesystem, .. } => write!(f, "growing the {filesystem} on {}", disk.name),
            Self::Bind { source, target } => {
                write!(f, "binding {} to {}", source.display(), target.display())
            }
            Self::RemountReadOnly { target, .. } => write!(f, "making {} read-only", target.display()),
            Self::Unmount { target } => write!(f, "unmounting {}", target.display()),
            Self::RemoveTarget(path) => write!(f, "removing {}", path.display()),
        }
    }
}
