//! The number by which the kernel names a block device.

use std::{
    fmt,
    fs::Metadata,
    os::unix::fs::{FileTypeExt, MetadataExt},
    str::FromStr,
};

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};

/// Major and minor number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
}

impl DeviceNumber {
    /// From its two halves.
    pub fn new(major: u64, minor: u64) -> Self {
        Self { major, minor }
    }

    /// The number that a block device node leads to; `None` for any other file.
    pub fn of_node(metadata: &Metadata) -> Option<Self> {
        let device = metadata.rdev();
        metadata.file_type().is_block_device().then(|| Self::new(major(device), minor(device)))
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.trim().split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(drop)?, minor: minor.parse().map_err(drop)? })
    }
}
