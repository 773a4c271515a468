//! The loops *observe → plan → act* of the mutating calls, each on one blocking thread, until a plan is empty.
//!
//! The last, empty plan is the proof of success: it is made from a fresh observation. What is observed and done is the
//! host's, what is planned the planners'; here is only their order.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::device::{Disk, DiskUse, Serial, check};
use crate::device_number::DeviceNumber;
use crate::error::{Error, Result};
use crate::filesystem::FilesystemType;
use crate::host::{HeldDisk, Host};
use crate::inflight::Progress;
use crate::metrics::Metrics;
use crate::mount_table::MountTable;
use crate::probe::{Content, judge};
use crate::step::Step;
use crate::{publish, stage, unstage};

/// A plan is followed by at most: clear, format and mount, grow, nothing; each may be preceded by taking off a broken mount.
const MAX_ROUNDS: usize = 6;
/// How long a disk may stay in use after its last mount is gone: the kernel ends a filesystem after umount(2) when
/// another mount namespace is just being torn down.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
/// Pause between two looks at a disk that is being released.
const RELEASE_PAUSE: Duration = Duration::from_millis(100);

/// What each operation works with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The machine.
    pub host: &'a dyn Host,
    /// The operator allows to format data of an unknown kind.
    pub allow_format_nonzero: bool,
    /// Where decisions are counted.
    pub metrics: &'a Metrics,
    /// What is being done, for those who ask.
    pub progress: &'a Progress,
}

impl Context<'_> {
    fn apply(&self, steps: &[Step]) -> Result<()> {
        for step in steps {
            self.progress.set(step.to_string());
            self.host.apply(step)?;
        }
        Ok(())
    }

    /// The top mount at `path` belongs to a disk that is gone, or the path answers as such mounts do.
    fn is_stale(&self, path: &Path, state: &PathState, mounts: &MountTable) -> Result<bool> {
        let Some(top) = mounts.at(path).pop() else { return Ok(false) };
        let gone = |number| Ok::<_, Error>(self.host.capacity(number)?.is_none());
        Ok(match state {
            PathState::Corrupted(_) => true,
            PathState::Directory => top.number.major != NO_DEVICE && gone(top.number)?,
            PathState::Node(number) => gone(*number)?,
            PathState::Missing | PathState::File { .. } | PathState::Other(_) => false,
        })
    }
}

/// Major number of filesystems without a disk.
const NO_DEVICE: u64 = 0;

/// Stages a filesystem on its disk.
pub fn stage_filesystem(context: Context<'_>, wanted: &stage::Wanted, disk: &Disk) -> Result<()> {
    let held = context.host.hold(disk)?;
    let mut grown = false;
    for _ in 0..MAX_ROUNDS {
        let observed = observe_stage(context, wanted, &held, grown)?;
        count_decision(context, wanted, &observed);
        let steps = stage::plan(wanted, &observed, context.allow_format_nonzero)?;
        if steps.is_empty() {
            return Ok(());
        }
        context.apply(&steps)?;
        // A program that ended well has done what it could; its size is not asked again in this call.
        grown |= steps.iter().any(|step| matches!(step, Step::Grow { .. }));
    }
    Err(Error::NotSettled("staging"))
}

fn observe_stage(
    context: Context<'_>,
    wanted: &stage::Wanted,
    held: &HeldDisk,
    grown: bool,
) -> Result<stage::Observed> {
    let host = context.host;
    let disk = held.disk();
    let mounts = host.mounts()?;
    let path = host.path(&wanted.staging)?;
    let stale = context.is_stale(&wanted.staging, &path, &mounts)?;
    let top = mounts.at(&wanted.staging).pop();
    let (mut record, mut probed, mut filesystem_bytes) = (None, None, None);
    match &top {
        None => {
            context.progress.set(format!("reading {}", disk.name));
            record = host.mkfs_record(&wanted.staging)?;
            let verdict = probe(host, held, &mounts);
            probed = Some(verdict.inspect_err(|error| context.metrics.count_decision(Err(error)))?);
        }
        Some(mount) if mount.number == disk.number && !stale && !grown => {
            filesystem_bytes = FilesystemType::parse(&mount.fs_type)
                .map(|filesystem| host.filesystem_bytes(disk, filesystem, &wanted.staging))
                .transpose()?
                .flatten();
        }
        Some(_) => {}
    }
    Ok(stage::Observed { disk: disk.clone(), mounts, path, stale, record, content: probed, filesystem_bytes })
}

/// What is on the disk. One that is mounted on this node already (the older layout) can not be opened exclusively; its
/// filesystem is known from the mount table.
fn probe(host: &dyn Host, held: &HeldDisk, mounts: &MountTable) -> Result<Content> {
    if let Some(mount) = mounts.of(held.disk().number).first() {
        return Ok(Content::Mounted { kind: mount.fs_type.clone() });
    }
    host.examine(held).map(|evidence| judge(&evidence))
}

fn count_decision(context: Context<'_>, wanted: &stage::Wanted, observed: &stage::Observed) {
    if let Some(content) = &observed.content {
        let decision = stage::decide(wanted, observed, content, context.allow_format_nonzero);
        tracing::info!(disk = observed.disk.name, serial = %wanted.serial, %content, ?decision, "looked at the disk");
        context.metrics.count_decision(decision.as_ref().copied());
    }
}

/// Verifies the disk of a block volume; nothing is made at the staging path.
pub fn stage_block(context: Context<'_>, disk: &Disk, staging: &Path) -> Result<()> {
    check(disk, DiskUse::Block, &context.host.mounts()?, staging)?;
    context.host.hold(disk).map(drop)
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is done.
    Done,
    /// Nothing is mounted at the staging path, or what belonged to a disk that is gone; the target is not yet the volume's.
    NotStaged,
}

/// Publishes a filesystem that is staged.
///
/// A target that is the volume's already is done even if nothing is staged: so it is after the older driver.
pub fn publish_filesystem(
    context: Context<'_>,
    wanted: &publish::Wanted,
    serial: &Serial,
) -> Result<Published> {
    let publish::Source::Staging(staging) = &wanted.source else {
        return Err(Error::NotSettled("publishing"));
    };
    for _ in 0..MAX_ROUNDS {
        let mounts = context.host.mounts()?;
        let target_mounted = !mounts.at(&wanted.target).is_empty();
        if !target_mounted {
            match mounts.at(staging).last() {
                None => return Ok(Published::NotStaged),
                // Its disk is gone: another one may have come in its place, which staging finds out.
                Some(staged) if context.host.capacity(staged.number)?.is_none() => {
                    return Ok(Published::NotStaged);
                }
                Some(staged) if !is_volume(context.host, staged.number, serial)? => {
                    return Err(Error::MountConflict {
                        path: staging.clone(),
                        found: format!("device {}", staged.number),
                        wanted: format!("the disk with serial {serial}"),
                    });
                }
                Some(_) => {}
            }
        }
        let observed =
            observe_publish(context, wanted, mounts, |number| is_volume(context.host, number, serial))?;
        let steps = publish::plan(wanted, &observed)?;
        if steps.is_empty() {
            return Ok(Published::Done);
        }
        context.apply(&steps)?;
    }
    Err(Error::NotSettled("publishing"))
}

fn is_volume(host: &dyn Host, number: DeviceNumber, serial: &Serial) -> Result<bool> {
    Ok(host.disk(number)?.is_some_and(|disk| disk.identity.is(serial)))
}

/// Publishes the device node of a disk.
pub fn publish_block(context: Context<'_>, wanted: &publish::Wanted, disk: &Disk) -> Result<()> {
    check(disk, DiskUse::Block, &context.host.mounts()?, &wanted.target)?;
    // Held until it is published, so that the node is this disk's all the time.
    let held = context.host.hold(disk)?;
    for _ in 0..MAX_ROUNDS {
        let mounts = context.host.mounts()?;
        let observed = observe_publish(context, wanted, mounts, |number| Ok(number == held.disk().number))?;
        let steps = publish::plan(wanted, &observed)?;
        if steps.is_empty() {
            return Ok(());
        }
        context.apply(&steps)?;
    }
    Err(Error::NotSettled("publishing"))
}

fn observe_publish(
    context: Context<'_>,
    wanted: &publish::Wanted,
    mounts: MountTable,
    is_ours: impl Fn(DeviceNumber) -> Result<bool>,
) -> Result<publish::Observed> {
    let target = context.host.path(&wanted.target)?;
    let stale = context.is_stale(&wanted.target, &target, &mounts)?;
    let number = match (&wanted.source, &target) {
        (publish::Source::Node { .. }, PathState::Node(number)) => Some(*number),
        (publish::Source::Staging(_), _) => mounts.at(&wanted.target).last().map(|mount| mount.number),
        (publish::Source::Node { .. }, _) => None,
    };
    let target_is_ours = number.map(is_ours).transpose()?.unwrap_or(false);
    Ok(publish::Observed { mounts, target, stale, target_is_ours })
}

/// Ends a target.
pub fn unpublish(context: Context<'_>, target: &Path) -> Result<()> {
    for _ in 0..MAX_ROUNDS {
        let mounts = context.host.mounts()?;
        // Looking at what is mounted could hang; the mount table suffices.
        let state =
            if mounts.at(target).is_empty() { context.host.path(target)? } else { PathState::Directory };
        let steps = publish::plan_removal(target, &mounts, &state)?;
        if steps.is_empty() {
            return Ok(());
        }
        context.apply(&steps)?;
    }
    Err(Error::NotSettled("unpublishing"))
}

/// Ends a staging mount, and returns the disks that were mounted there.
pub fn unstage(context: Context<'_>, staging: &Path) -> Result<Vec<Disk>> {
    let mut disks: Vec<Disk> = Vec::new();
    for _ in 0..MAX_ROUNDS {
        let mounts = context.host.mounts()?;
        let here = mounts.at(staging);
        for mount in &here {
            if let Some(disk) = context.host.disk(mount.number)?
                && !disks.contains(&disk)
            {
                disks.push(disk);
            }
        }
        let record = if here.is_empty() { context.host.mkfs_record(staging)? } else { None };
        let steps = unstage::plan(staging, &mounts, record.as_ref());
        if steps.is_empty() {
            return Ok(disks);
        }
        context.apply(&steps)?;
    }
    Err(Error::NotSettled("unstaging"))
}

/// Waits until nobody on this node uses the disk any more, so that it may be detached.
///
/// # Errors
/// `StillInUse` with the mount points or processes that keep it.
pub fn wait_released(context: Context<'_>, disk: &Disk, staging: &Path) -> Result<()> {
    context.progress.set(format!("waiting until {} is released", disk.name));
    let still_in_use =
        |holders: String| Error::StillInUse { name: disk.name.clone(), path: staging.to_owned(), holders };
    let begin = Instant::now();
    loop {
        // Another disk may have the number by now: then nobody can be using this one.
        if context.host.disk(disk.number)?.is_none_or(|now| now.identity != disk.identity) {
            return Ok(());
        }
        // A mount that this process sees ends by another call, not by waiting.
        if let Some(mount) = context.host.mounts()?.of(disk.number).first() {
            return Err(still_in_use(format!("mounted at {}", mount.point.display())));
        }
        let Some(holders) = context.host.in_use(disk)? else { return Ok(()) };
        if begin.elapsed() >= RELEASE_WAIT {
            return Err(still_in_use(holders));
        }
        thread::sleep(RELEASE_PAUSE);
    }
}

#[cfg(test)]
mod tests;
