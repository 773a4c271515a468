//! `NodeGetVolumeStats`: what is at the path → usage. A path without a volume is *not found*, even if it is not a valid
//! path: csi-sanity requires that.

use std::path::Path;

use crate::{
    error::{Error, Result},
    host::Host,
    path_state::PathState,
    usage::{Capacity, Usage},
};

/// What a volume reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stats {
    /// A mounted filesystem.
    Filesystem(Usage),
    /// A block device.
    Block(Capacity),
}

/// Measures the volume at a path.
///
/// # Errors
/// `VolumeNotFound` when the path is neither a mount point nor a published block device.
pub fn measure(host: &dyn Host, path: &Path) -> Result<Stats> {
    let not_found = || Error::VolumeNotFound { path: path.to_owned() };
    if !path.is_absolute() {
        return Err(not_found());
    }
    let place = host.canonical(path)?;
    if host.mounts()?.at(&place).is_empty() {
        return Err(not_found());
    }
    match host.path(&place)? {
        PathState::Directory => Ok(Stats::Filesystem(host.usage(&place)?)),
        PathState::Node(number) => host.capacity(number)?.map(Stats::Block).ok_or_else(not_found),
        PathState::Corrupted(reason) => {
            Err(Error::observe(format!("read {}", path.display()))(std::io::Error::other(reason)))
        }
        PathState::Missing | PathState::File { .. } | PathState::Other(_) => Err(not_found()),
    }
}
