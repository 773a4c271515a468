//! The proof that a volume's disks are used by nobody on this node any more, so that they may be detached.
//!
//! Another mount namespace may still use a filesystem that is unmounted here, and a pod's own mount or a device-mapper
//! table may use a block volume. Data that they have not written back would be lost with the disk. The kernel knows
//! about them: it refuses an exclusive open of a disk that something has claimed. Which disks are the volume's is read
//! from its `disk_record`, never from the memory of this process.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    context::MutationContext,
    device::{Disk, DiskIdentity},
    disk_record::DiskRecordFile,
    error::{Error, Result},
    mount_table::MountTable,
    step::Step,
};

/// Pause between two tries.
const RELEASE_PAUSE: Duration = Duration::from_millis(100);

/// Waits until nobody on this node uses the volume's disks, then removes the record of them.
///
/// A disk that the kernel does not list any more is used by nobody. A volume that was never used here has no record and
/// no disk.
///
/// # Errors
/// `StillInUse` or `ReleaseUnknown` with the mount points or processes that keep a disk; a failed observation, from
/// which nothing is concluded.
pub fn prove(context: MutationContext<'_>, volume: &str, staging: &Path) -> Result<()> {
    context.progress.set("waiting until the volume's disk is released");
    let file = context.host.disk_record(volume)?;
    let begin = Instant::now();
    while let Some(obstacle) = obstacle(context, &file, staging)? {
        if begin.elapsed() >= context.release_wait {
            return Err(obstacle);
        }
        thread::sleep(RELEASE_PAUSE);
    }
    if file == DiskRecordFile::Missing {
        return Ok(());
    }
    context.apply(&[Step::RemoveDiskRecord { volume: volume.to_owned() }])
}

/// Why the volume is not released yet; an error when waiting cannot change that.
fn obstacle(context: MutationContext<'_>, file: &DiskRecordFile, staging: &Path) -> Result<Option<Error>> {
    let mounts = context.host.mounts()?;
    for disk in candidates(context, file, &mounts, staging)? {
        let in_use = |holders: String| match file {
            DiskRecordFile::Unreadable(record) => {
                Error::ReleaseUnknown { record: record.clone(), name: disk.name.clone(), holders }
            }
            DiskRecordFile::Read(_) | DiskRecordFile::Missing => {
                Error::StillInUse { name: disk.name.clone(), path: staging.to_owned(), holders }
            }
        };
        // A mount that this process sees ends by another call, not by waiting.
        if let Some(mount) = mounts.of(disk.number).first() {
            return Err(in_use(format!("mounted at {}", mount.point.display())));
        }
        match context.host.in_use(&disk) {
            Ok(None) => {}
            Ok(Some(holders)) => return Ok(Some(in_use(holders))),
            // The disk may have gone since it was listed, or another may have taken its place: the next listing shows
            // it.
            Err(error) => return Ok(Some(error)),
        }
    }
    Ok(None)
}

/// The disks that must be free before the volume counts as released.
///
/// Without a record: each disk that another mount namespace has mounted at the volume's staging path, because a version
/// without records can leave a volume mounted there. With a record that cannot be read: each disk that reports a
/// serial, as the volume's does, and that is not mounted in this process's mount table.
fn candidates(
    context: MutationContext<'_>,
    file: &DiskRecordFile,
    mounts: &MountTable,
    staging: &Path,
) -> Result<Vec<Disk>> {
    let host = context.host;
    let mut disks = host.disks()?;
    match file {
        DiskRecordFile::Read(record) => {
            let boot_id = host.boot_id()?;
            disks.retain(|disk| record.may_name(disk, &boot_id));
        }
        DiskRecordFile::Missing => {
            let mounted = host.mounted_elsewhere(staging)?;
            disks.retain(|disk| mounted.contains(&disk.number));
        }
        DiskRecordFile::Unreadable(_) => {
            let explained = |disk: &Disk| {
                let partitions = disk.partitions.iter().map(|partition| partition.number);
                partitions.chain([disk.number]).any(|number| !mounts.of(number).is_empty())
            };
            disks.retain(|disk| disk.identity != DiskIdentity::None && !explained(disk));
        }
    }
    Ok(disks)
}
