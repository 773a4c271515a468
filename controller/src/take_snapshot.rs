//! Infra snapshots of our volumes: find, take, wait for, and delete them.

use std::time::Duration;

use infra::{Claim, Class, DataVolume, Infra, NewVolumeSnapshot, ObjectName, Owned, VolumeSnapshot};
use tokio::time::Instant;

use crate::{
    controller_operation::ControllerOperation,
    error::Error,
    metrics::WaitCause,
    moved,
    snapshot::{self, Step},
    usable, volume,
};

/// Longest wait for a snapshot within one RPC. A sidecar that is told "not ready yet" asks again after 1 s, then after
/// twice as long each time, up to 5 min: a wait here finds out sooner.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for the content of a volume that was just created, within one RPC: a blank volume is there within seconds.
const FILLED_PATIENCE: Duration = Duration::from_secs(20);
/// Pause before the next read: most storage systems take a snapshot within a second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between reads.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A volume of ours whose content may be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopySource {
    pub name: ObjectName,
    pub volume: Owned<DataVolume>,
    pub claim: Owned<Claim>,
}

/// What is there of a volume that is to be copied.
enum Content {
    Whole(Box<CopySource>),
    /// CDI and the infra storage still make it, and how far they are.
    OnItsWay(String),
    /// Its disk is made when a VM uses it.
    AtFirstUse(String),
}

impl CopySource {
    /// Reads the volume `id`, and fails where it has no content that could be copied. Waits for a while for a volume that is being
    /// made: a claim and its snapshot are often created at the same time.
    pub(crate) async fn read(
        infra: &Infra,
        operation: &ControllerOperation,
        id: &str,
    ) -> Result<Self, Error> {
        let name = infra.guard().volume_name(id)?;
        let until = operation.answer_by().min(Instant::now() + FILLED_PATIENCE);
        let mut pause = FIRST_PAUSE;
        loop {
            let progress = match Self::look(infra, operation, &name).await? {
                Content::Whole(source) => return Ok(*source),
                Content::OnItsWay(progress) if Instant::now() + pause < until => progress,
                Content::OnItsWay(progress) | Content::AtFirstUse(progress) => {
                    return Err(Error::NothingToCopy { volume: name, progress });
                }
            };
            operation.report(format_args!("volume {name}: {progress}"));
            operation.wait_for(WaitCause::VolumePending, tokio::time::sleep(pause)).await?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn look(
        infra: &Infra,
        operation: &ControllerOperation,
        name: &ObjectName,
    ) -> Result<Content, Error> {
        let volume = operation.wait(infra.data_volume(name)).await??.ok_or(infra::Foreign)?;
        let volume = infra.guard().admit(volume).inspect_err(|_| usable::audit(name, "copy"))?;
        usable::check(&volume, name)?;
        let empty = |progress| {
            if volume::waits_for_consumer(&volume) {
                Content::AtFirstUse(progress)
            } else {
                Content::OnItsWay(progress)
            }
        };
        let Some(claim) = operation.wait(infra.claim(name)).await?? else {
            return Ok(empty(volume.progress()));
        };
        let claim = infra.guard().admit(claim).inspect_err(|_| usable::audit(name, "copy"))?;
        if claim.deleting() {
            return Err(Error::Deleting(name.clone()));
        }
        if !claim.is_bound() || !volume::is_populated(&volume) {
            return Ok(empty(format!("claim {}, {}", claim.status.phase, volume.progress())));
        }
        moved::check_source(infra, operation, name, &claim).await?;
        Ok(Content::Whole(Box::new(Self { name: name.clone(), volume, claim })))
    }

    /// Its infra storage class, once infra's default is filled in.
    pub(crate) fn storage_class(&self) -> Option<&str> {
        self.claim.spec.storage_class_name.as_deref().or(self.volume.storage_class.as_deref())
    }

    /// The size in bytes that the guest knows.
    pub(crate) fn guest_size(&self) -> Option<u64> {
        volume::guest_size_with(&self.volume, &self.claim)
    }
}

/// Finds a snapshot of ours by the id that the guest gives; absent and foreign are the same to it.
pub(crate) async fn find(
    infra: &Infra,
    operation: &ControllerOperation,
    id: &str,
) -> Result<Owned<VolumeSnapshot>, Error> {
    let name = ObjectName::parse(id).ok_or(infra::ForeignSnapshot)?;
    let found = operation.wait(infra.volume_snapshot(&name)).await??.ok_or(infra::ForeignSnapshot)?;
    Ok(infra.guard().admit_snapshot(found).inspect_err(|_| audit(&name, "use"))?)
}

/// The snapshot of this name, which is to be ours; `None` = the name is free.
pub(crate) async fn existing(
    infra: &Infra,
    operation: &ControllerOperation,
    name: &ObjectName,
) -> Result<Option<Owned<VolumeSnapshot>>, Error> {
    let found = operation.wait(infra.volume_snapshot(name)).await??;
    let ours = found.map(|found| infra.guard().admit_snapshot(found)).transpose();
    ours.map_err(|_| Error::SnapshotNameTaken(name.clone()))
}

/// Creates the snapshot; a name that has been taken in the meantime is read.
pub(crate) async fn take(
    infra: &Infra,
    operation: &ControllerOperation,
    new: &NewVolumeSnapshot,
) -> Result<Owned<VolumeSnapshot>, Error> {
    let error = match operation.change(|| infra.create_volume_snapshot(new)).await? {
        Ok(made) => {
            return infra
                .guard()
                .admit_snapshot(made)
                .map_err(|_| Error::SnapshotNameTaken(new.name.clone()));
        }
        Err(error) => error,
    };
    match error.class() {
        Class::Conflict => existing(infra, operation, &new.name).await?.ok_or(Error::Infra(error)),
        _ if error.is_quota() => Err(Error::RefusedSnapshot(error)),
        Class::Invalid | Class::BadRequest => Err(Error::RefusedSnapshot(error)),
        _ => Err(error.into()),
    }
}

/// Waits until the snapshot is ready, at most [`READY_PATIENCE`]; returns it as it was read last.
pub(crate) async fn until_ready(
    infra: &Infra,
    operation: &ControllerOperation,
    name: &ObjectName,
    mut snapshot: Owned<VolumeSnapshot>,
) -> Result<Owned<VolumeSnapshot>, Error> {
    let until = operation.answer_by().min(Instant::now() + READY_PATIENCE);
    let mut pause = FIRST_PAUSE;
    let mut failing_since = None;
    loop {
        if snapshot.deleting() {
            return Err(Error::SnapshotDeleting(name.clone()));
        }
        failing_since = snapshot.error.as_ref().map(|_| failing_since.unwrap_or_else(Instant::now));
        let failing = failing_since.map_or(Duration::ZERO, |since| since.elapsed());
        match snapshot::next(&snapshot, failing, Instant::now() + pause >= until) {
            Step::Ready | Step::Later => return Ok(snapshot),
            Step::Failed(message) => return Err(failed(infra, operation, name, &snapshot, message).await?),
            Step::Wait => {
                let error = snapshot.error.as_deref().unwrap_or("not ready yet");
                operation.report(format_args!("infra snapshot {name}: {error}"));
            }
        }
        operation.wait_for(WaitCause::Snapshot, tokio::time::sleep(pause)).await?;
        pause = (pause * 2).min(LONGEST_PAUSE);
        let read = existing(infra, operation, name).await?;
        snapshot = read.ok_or_else(|| Error::SnapshotGone(name.clone()))?;
    }
}

/// The error of a snapshot that the infra cluster can't take. If its storage was never asked, the snapshot is deleted, and the next
/// call begins anew: csi-snapshotter deletes a guest's `VolumeSnapshot` only after a final answer, which must leave nothing behind.
/// Once the storage was asked, the infra cluster goes on by itself: an object that is deleted before its csi-snapshotter knows the
/// outcome stays for ever.
async fn failed(
    infra: &Infra,
    operation: &ControllerOperation,
    name: &ObjectName,
    snapshot: &Owned<VolumeSnapshot>,
    message: String,
) -> Result<Error, Error> {
    let snapshot_name = name.clone();
    if snapshot.has_content || snapshot.taken_at.is_some() {
        return Ok(Error::SnapshotNotReady { snapshot: snapshot_name, message });
    }
    delete(infra, operation, name, snapshot).await?;
    Ok(Error::SnapshotFailed { snapshot: snapshot_name, message })
}

/// Deletes the snapshot; absent counts as deleted.
pub(crate) async fn delete(
    infra: &Infra,
    operation: &ControllerOperation,
    name: &ObjectName,
    snapshot: &Owned<VolumeSnapshot>,
) -> Result<(), Error> {
    if snapshot.deleting() {
        return Ok(());
    }
    match operation.change(|| infra.delete_volume_snapshot(name, snapshot)).await? {
        Ok(()) => Ok(()),
        Err(error) if error.class() == Class::NotFound => Ok(()),
        // Also if another snapshot has taken the name: the next try reads that one.
        Err(error) => Err(error.into()),
    }
}

/// Logs for the operator that a guest asked for a snapshot that is not its own.
pub(crate) fn audit(snapshot: &ObjectName, what: &str) {
    tracing::warn!(%snapshot, "refused to {what} a snapshot that lacks the infra labels of this guest");
}
