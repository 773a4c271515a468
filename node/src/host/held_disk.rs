//! A disk that is held open while a call works on it.

use std::fs::File;

use nix::fcntl::Flock;

use crate::device::Disk;

/// A disk that is held open.
///
/// The kernel frees a disk's name and number only when its last descriptor is closed, so while this lives both mean
/// this disk. The lock keeps udev from probing it, and others that honour it from writing.
#[derive(Debug)]
pub struct HeldDisk {
    disk: Disk,
    /// `None` in the tests' model, which has no descriptors.
    _lock: Option<Flock<File>>,
}

impl HeldDisk {
    /// The disk, with the lock on its open node.
    pub(crate) fn new(disk: Disk, lock: Flock<File>) -> Self {
        Self { disk, _lock: Some(lock) }
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    #[cfg(test)]
    pub(crate) fn without_descriptor(disk: Disk) -> Self {
        Self { disk, _lock: None }
    }
}
