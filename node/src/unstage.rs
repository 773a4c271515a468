//! `NodeUnstageVolume`: what is at the staging path → the steps that are still needed.
//!
//! Decides only. It needs no disk: a disk that is gone must not keep its mount from being taken away.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::path::Path;

use crate::{
    disk_record::DiskRecord,
    mount_table::MountTable,
    step::{MkfsRecord, Step},
};

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The whole mount table.
    pub mounts: MountTable,
    /// Record of an unfinished mkfs; only readable while nothing is mounted.
    pub mkfs_record: Option<MkfsRecord>,
    /// The record of the disks that are mounted here, where it is not written yet.
    pub disk_record: Option<DiskRecord>,
}

/// Plans the unmounting of a staging path; the directory stays, it is the kubelet's.
///
/// The mount is the last thing that leads to its disk, so the disk is recorded first. The record of an unfinished mkfs
/// goes with the mount: the kubelet could not remove the directory otherwise.
pub fn plan(staging: &Path, observed: &Observed) -> Vec<Step> {
    let unmount = || Step::Unmount { target: staging.to_owned() };
    let record = observed.disk_record.clone().map(Step::WriteDiskRecord);
    match observed.mounts.at(staging).len() {
        0 => observed
            .mkfs_record
            .iter()
            .map(|_| Step::RemoveMkfsRecord { staging: staging.to_owned() })
            .collect(),
        depth => record.into_iter().chain(std::iter::repeat_with(unmount).take(depth)).collect(),
    }
}
