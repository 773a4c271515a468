//! The loops *observe → plan → act* of the mutating calls, each on one blocking thread, until a plan is empty.
//!
//! The last, empty plan is the proof of success: it is made from a fresh observation. The host observes and acts, the
//! planners plan; this file has only their order.

use std::path::Path;

use crate::{
    context::{MutationContext, NO_DEVICE},
    device::{Disk, DiskUse, Serial, check},
    device_number::DeviceNumber,
    disk_record::DiskRecordFile,
    error::{Error, Result},
    expand,
    filesystem::FilesystemType,
    host::{HeldDisk, Host},
    mount_table::{DEVTMPFS, Mount, MountTable, TMPFS},
    origin::Making,
    path_state::PathState,
    probe::{Content, judge},
    publish, release, stage,
    step::Step,
    unstage,
    usage::Capacity,
};

/// At most these plans follow one another: clear, format and mount, grow, nothing; before each there may be one that
/// unmounts a broken mount.
const MAX_ROUNDS: usize = 6;

/// Stages a filesystem on its disk.
pub fn stage_filesystem(context: MutationContext<'_>, wanted: &stage::Wanted, disk: &Disk) -> Result<()> {
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
        // A program that ended well has done what it could; its size is not read again in this call.
        grown |= steps.iter().any(|step| matches!(step, Step::Grow { .. }));
    }
    Err(Error::NotSettled("staging"))
}

fn observe_stage(
    context: MutationContext<'_>,
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
    let (mut record, mut probed, mut filesystem_bytes, mut write_refusal) = (None, None, None, None);
    let mut making = Making::default();
    if let Some(mount) = &top
        && mount.number == disk.number
        && !stale
        && !wanted.options.read_only()
    {
        write_refusal = probe_writes(host, mount)?;
    }
    match &top {
        None => {
            context.progress.set(format!("reading {}", disk.name));
            record = host.mkfs_record(&wanted.staging)?;
            let verdict = probe(host, held, &mounts, wanted.filesystem);
            let verdict = verdict.inspect_err(|error| context.metrics.count_decision(Err(error)))?;
            making = verdict.1;
            probed = Some(verdict.0);
        }
        Some(mount) if mount.number == disk.number && !stale && !grown => {
            filesystem_bytes = FilesystemType::parse(&mount.fs_type)
                .map(|filesystem| host.filesystem_bytes(disk, filesystem, &wanted.staging))
                .transpose()?
                .flatten();
        }
        Some(_) => {}
    }
    let disk_record = host.disk_record(&wanted.volume)?.extended(
        &wanted.volume,
        &host.boot_id()?,
        std::slice::from_ref(disk),
    );
    Ok(stage::Observed {
        disk: disk.clone(),
        mounts,
        path,
        stale,
        disk_record,
        record,
        content: probed,
        making,
        filesystem_bytes,
        write_refusal,
    })
}

/// Why a mount that is writable by the mount table takes no writes.
fn probe_writes(host: &dyn Host, mount: &Mount) -> Result<Option<String>> {
    if mount.read_only() { Ok(None) } else { host.write_refusal(&mount.point) }
}

/// What is on the disk, and what a filesystem of the wanted type shows of its making. One that is mounted on this node already (the older layout) cannot be opened exclusively; its
/// filesystem is known from the mount table.
fn probe(
    host: &dyn Host,
    held: &HeldDisk,
    mounts: &MountTable,
    wanted: FilesystemType,
) -> Result<(Content, Making)> {
    if let Some(mount) = mounts.of(held.disk().number).first() {
        return Ok((Content::Mounted { kind: mount.fs_type.clone() }, Making::default()));
    }
    host.examine(held).map(|evidence| (judge(&evidence), evidence.making(wanted)))
}

fn count_decision(context: MutationContext<'_>, wanted: &stage::Wanted, observed: &stage::Observed) {
    if let Some(content) = &observed.content {
        let decision = stage::decide(wanted, observed, content, context.allow_format_nonzero);
        // The size, because infra storage may make a disk smaller than the claim (kubevirt/containerized-data-importer#4024).
        let Disk { name, bytes, .. } = &observed.disk;
        tracing::info!(disk = name, bytes, serial = %wanted.serial, %content, ?decision, "probed the disk");
        context.metrics.count_decision(decision.as_ref().copied());
    }
}

/// Verifies and records the disk of a block volume; nothing is made at the staging path.
pub fn stage_block(context: MutationContext<'_>, volume: &str, disk: &Disk, staging: &Path) -> Result<()> {
    check(disk, DiskUse::Block, &context.host.mounts()?, staging)?;
    let _held = context.host.open(disk)?;
    context.record_disks(volume, std::slice::from_ref(disk))
}

/// The result of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is done.
    Done,
    /// Nothing is mounted at the staging path, or only a mount of a disk that is gone; the volume is not at the target
    /// yet.
    NotStaged,
}

/// Publishes a filesystem that is staged.
///
/// A target that is the volume's already is done even if nothing is staged: kubevirt/csi-driver leaves volumes like
/// that.
pub fn publish_filesystem(
    context: MutationContext<'_>,
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
                // The disk is gone, and another one may have come in its place: staging finds that out.
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
pub fn publish_block(
    context: MutationContext<'_>,
    volume: &str,
    wanted: &publish::Wanted,
    disk: &Disk,
) -> Result<()> {
    check(disk, DiskUse::Block, &context.host.mounts()?, &wanted.target)?;
    // Held until it is published, so that the node is this disk's all the time. Not locked: nothing here reads or writes the
    // disk, and a workload that locks it (a Ceph OSD, on the worker's own node of the disk) must not fail a repeated request.
    let held = context.host.open(disk)?;
    context.record_disks(volume, std::slice::from_ref(disk))?;
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
    context: MutationContext<'_>,
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
    let written = match &wanted.source {
        publish::Source::Staging(staging) if wanted.writes() => match mounts.at(&wanted.target).pop() {
            Some(top) => (target_is_ours && !stale).then_some(top),
            None => mounts.at(staging).pop(),
        },
        publish::Source::Staging(_) | publish::Source::Node { .. } => None,
    };
    let write_refusal = written.map(|mount| probe_writes(context.host, &mount)).transpose()?.flatten();
    Ok(publish::Observed { mounts, target, stale, target_is_ours, write_refusal })
}

/// Unmounts a target and removes it.
///
/// A volume that kubevirt/csi-driver or an earlier version published may have no record of its disk, and its target may
/// be the last place that leads to the disk.
pub fn unpublish(context: MutationContext<'_>, volume: &str, target: &Path) -> Result<()> {
    for _ in 0..MAX_ROUNDS {
        let mounts = context.host.mounts()?;
        // Reading the mounted filesystem could hang; the mount table suffices.
        let state =
            if mounts.at(target).is_empty() { context.host.path(target)? } else { PathState::Directory };
        let steps = publish::plan_removal(target, &mounts, &state)?;
        if steps.is_empty() {
            return Ok(());
        }
        // A device node keeps its number after its disk is gone, and the number may be another disk's by now. So a record
        // that was written when the volume was published is not extended from it.
        if !matches!(context.host.disk_record(volume)?, DiskRecordFile::Read(_))
            && let Some(number) = published_device(context, target, &mounts)?
            && let Some(disk) = context.host.disk(number)?
        {
            context.record_disks(volume, &[disk])?;
        }
        context.apply(&steps)?;
    }
    Err(Error::NotSettled("unpublishing"))
}

/// The device of the filesystem at a target, or the device to which a bound node leads.
fn published_device(
    context: MutationContext<'_>,
    target: &Path,
    mounts: &MountTable,
) -> Result<Option<DeviceNumber>> {
    let Some(top) = mounts.at(target).pop() else { return Ok(None) };
    if top.number.major != NO_DEVICE {
        return Ok(Some(top.number));
    }
    // Of the filesystems without a disk, read only those that hold device nodes: others may hang.
    if ![DEVTMPFS, TMPFS].contains(&top.fs_type.as_str()) {
        return Ok(None);
    }
    Ok(match context.host.path(target)? {
        PathState::Node(number) => Some(number),
        _ => None,
    })
}

/// Finds the volume that is to be expanded.
pub fn locate(context: MutationContext<'_>, wanted: &expand::Wanted) -> Result<expand::Volume> {
    let host = context.host;
    let mounts = host.mounts()?;
    let mut shown = None;
    for path in [Some(&wanted.path), wanted.staging.as_ref()].into_iter().flatten() {
        if shown.is_none() {
            let is_mounted = mounts.at(path).last().is_some_and(|top| top.number.major != NO_DEVICE);
            let kind = if is_mounted { expand::Shown::Mounted } else { expand::Shown::Node };
            shown = published_device(context, path, &mounts)?.map(kind);
        }
    }
    let (record, boot_id, disks) = (host.disk_record(&wanted.volume)?, host.boot_id()?, host.disks()?);
    expand::locate(wanted, &expand::Observed { mounts, shown, record, boot_id, disks })
}

/// Gives the volume all of its disk, which has the requested size; the size of the disk.
pub fn expand(context: MutationContext<'_>, wanted: &expand::Wanted) -> Result<Capacity> {
    let mut grown = false;
    for _ in 0..MAX_ROUNDS {
        let volume = locate(context, wanted)?;
        let condition = observe_condition(context, &volume, grown)?;
        let steps = expand::plan(wanted, &volume, &condition)?;
        if steps.is_empty() {
            // aws-ebs-csi-driver answers the device's size, too. That of the filesystem is smaller by its own tables, and
            // what was requested may be less than there is.
            return Ok(Capacity(volume.disk.bytes));
        }
        let _held = context.host.hold(&volume.disk)?;
        context.apply(&steps)?;
        grown = true;
    }
    Err(Error::NotSettled("expanding"))
}

fn observe_condition(
    context: MutationContext<'_>,
    volume: &expand::Volume,
    grown: bool,
) -> Result<expand::Condition> {
    let expand::Content::Filesystem { filesystem, mount } = &volume.content else {
        return Ok(expand::Condition::default());
    };
    if grown {
        return Ok(expand::Condition { grown, ..expand::Condition::default() });
    }
    let (host, disk) = (context.host, &volume.disk);
    context.progress.set(format!("reading {}", disk.name));
    let bytes = host.filesystem_bytes(disk, *filesystem, &mount.point)?;
    // A frozen filesystem, which the probe would wait for, is none of a call's business that changes nothing.
    if expand::is_whole(disk, bytes) {
        return Ok(expand::Condition { bytes, ..expand::Condition::default() });
    }
    Ok(expand::Condition {
        bytes,
        has_errors: host.has_errors(disk, *filesystem)?,
        write_refusal: probe_writes(host, mount)?,
        grown,
    })
}

/// Unmounts a staging path, and proves that the volume's disks are released.
pub fn unstage(context: MutationContext<'_>, volume: &str, staging: &Path) -> Result<()> {
    for _ in 0..MAX_ROUNDS {
        let observed = observe_unstage(context, volume, staging)?;
        let steps = unstage::plan(staging, &observed);
        if steps.is_empty() {
            return release::prove(context, volume, staging);
        }
        context.apply(&steps)?;
    }
    Err(Error::NotSettled("unstaging"))
}

fn observe_unstage(context: MutationContext<'_>, volume: &str, staging: &Path) -> Result<unstage::Observed> {
    let host = context.host;
    let mounts = host.mounts()?;
    let here = mounts.at(staging);
    let mut disks: Vec<Disk> = Vec::new();
    for mount in &here {
        disks.extend(host.disk(mount.number)?.filter(|disk| !disks.contains(disk)));
    }
    let mkfs_record = if here.is_empty() { host.mkfs_record(staging)? } else { None };
    let disk_record = host.disk_record(volume)?.extended(volume, &host.boot_id()?, &disks);
    Ok(unstage::Observed { mounts, mkfs_record, disk_record })
}

#[cfg(test)]
mod tests;
