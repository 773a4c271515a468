//! `NodeUnstageVolume`: what is at the staging path → the steps that are missing.
//!
//! Decides only. It needs no disk: a disk that is gone must not keep its mount from being taken away.

use std::path::Path;

use crate::mount_table::MountTable;
use crate::step::{MkfsRecord, Step};

/// Plans the end of a staging mount; the directory stays, it is the kubelet's.
///
/// The record of an unfinished mkfs goes with it: the kubelet could not remove the directory otherwise.
pub fn plan(staging: &Path, mounts: &MountTable, record: Option<&MkfsRecord>) -> Vec<Step> {
    let depth = mounts.at(staging).len();
    if depth > 0 {
        return vec![Step::Unmount { target: staging.to_owned() }; depth];
    }
    record.map(|_| Step::RemoveMkfsRecord { staging: staging.to_owned() }).into_iter().collect()
}
