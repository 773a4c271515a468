//! A disk that is held open while a call works on it.

use std::fs::File;

use nix::fcntl::Flock;

use crate::device::Disk;

/// A disk that is held open.
///
/// The kernel frees a disk's name and number only when its last descriptor is closed, so while this lives both mean
/// this disk. A lock keeps udev from probing it, and others that honour it from writing.
#[derive(Debug)]
pub struct HeldDisk {
    disk: Disk,
    _descriptor: Descriptor,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held for what their end releases")]
enum Descriptor {
    Locked(Flock<File>),
    Open(File),
    /// The tests' model has no descriptors.
    #[cfg(test)]
    Modelled,
}

impl HeldDisk {
    /// The disk, with the lock on its open node.
    pub(crate) fn locked(disk: Disk, lock: Flock<File>) -> Self {
        Self { disk, _descriptor: Descriptor::Locked(lock) }
    }

    /// The disk with its open node.
    pub(crate) fn open(disk: Disk, file: File) -> Self {
        Self { disk, _descriptor: Descriptor::Open(file) }
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    #[cfg(test)]
    pub(crate) fn without_descriptor(disk: Disk) -> Self {
        Self { disk, _descriptor: Descriptor::Modelled }
    }
}
