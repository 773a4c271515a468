//! Clones of volumes: what CDI is to make them from, and the end of their temporary snapshots.
//!
//! No record of a clone is kept: the temporary snapshot has the new volume's name in its own, and each later call on that
//! volume deletes it as soon as it is not needed. A process that dies at any point leaves no more than that.

use infra::{Class, Failure, Infra, NewSource, ObjectName, Owned, VolumeSnapshot};

use crate::{
    clone_method::{self, Way},
    content::{self, Size},
    controller_operation::ControllerOperation,
    error::Error,
    request::Create,
    storage_class_policy::StorageClassPolicy,
    take_snapshot::{self, CopySource},
    volume::Incompatible,
};

/// What CDI is to make the new volume `name` from, and of which size. Takes the temporary snapshot where one is needed.
pub(crate) async fn prepare(
    infra: &Infra,
    policy: &StorageClassPolicy,
    operation: &ControllerOperation,
    request: &Create,
    (name, id): (&ObjectName, &str),
) -> Result<(NewSource, Size), Error> {
    let temporary = clone_method::snapshot_name(name);
    let found = match take_snapshot::existing(infra, operation, &temporary).await {
        Err(Error::Infra(error)) if are_not_served(&error) => Err(Error::Infra(error)),
        found => Ok(found?),
    };
    let source = CopySource::read(infra, operation, id).await?;
    let of_claim = source.claim.requested().unwrap_or_default();
    let of_guest = source.guest_size().unwrap_or_default();
    // Refused before a snapshot is taken.
    let size = content::size(&request.capacity, of_guest, of_claim)?;
    let taken = match found {
        Ok(Some(taken)) => taken,
        unavailable_or_absent => {
            let class =
                unavailable_or_absent.and_then(|_| Ok(policy.snapshot_class(source.storage_class(), None)?));
            let is_plugged = match request.clone_method {
                None => !operation.wait(infra.census()).await??.holders(&source.name).is_empty(),
                Some(_) => false,
            };
            let new = match clone_method::way(request.clone_method, is_plugged, class)? {
                Way::Claim => return Ok((NewSource::Claim(source.name), size)),
                Way::DataSourceRef => return Ok((NewSource::DataSourceRef(source.name), size)),
                Way::Snapshot { class } => {
                    clone_method::temporary_snapshot(name, &source.name, class, source.guest_size())
                }
            };
            take_snapshot::take(infra, operation, &new).await?
        }
    };
    let taken = ready(infra, operation, (&temporary, &source.name), taken).await?;
    let least = taken.restore_size.unwrap_or_default().max(of_claim);
    Ok((NewSource::Snapshot(temporary), content::size(&request.capacity, of_guest, least)?))
}

async fn ready(
    infra: &Infra,
    operation: &ControllerOperation,
    (temporary, source): (&ObjectName, &ObjectName),
    taken: Owned<VolumeSnapshot>,
) -> Result<Owned<VolumeSnapshot>, Error> {
    if taken.claim.as_deref() != Some(source.as_str()) {
        let has = taken.claim.as_deref().unwrap_or("none");
        return Err(
            Incompatible::of_snapshot(temporary.as_str(), "source volume", has, source.as_str()).into()
        );
    }
    let pending =
        |message: &str| Error::SnapshotPending { snapshot: temporary.clone(), message: message.to_owned() };
    match take_snapshot::until_ready(infra, operation, temporary, taken).await {
        Ok(taken) if taken.is_ready => Ok(taken),
        Ok(_) => Err(pending("not ready yet")),
        // By an earlier call that ended; the storage takes its time. The next call takes a snapshot anew.
        Err(Error::SnapshotDeleting(_)) => Err(pending("the one of an earlier attempt is being deleted")),
        Err(error) => Err(error),
    }
}

/// Deletes the temporary snapshot of the volume `name`, if there is one.
pub(crate) async fn clean_up(
    infra: &Infra,
    operation: &ControllerOperation,
    name: &ObjectName,
) -> Result<(), Error> {
    let temporary = clone_method::snapshot_name(name);
    let found = match operation.wait(infra.volume_snapshot(&temporary)).await? {
        // We could not have made one.
        Err(error) if are_not_served(&error) => return Ok(()),
        found => found?,
    };
    match found.map(|found| infra.guard().admit_snapshot(found)) {
        Some(Ok(ours)) => take_snapshot::delete(infra, operation, &temporary, &ours).await,
        Some(Err(_)) | None => Ok(()),
    }
}

/// As [`clean_up`], where the call's own result must not depend on it: a later call deletes the snapshot then.
pub(crate) async fn try_clean_up(infra: &Infra, operation: &ControllerOperation, name: &ObjectName) {
    if let Err(error) = clean_up(infra, operation, name).await {
        tracing::warn!(%error, "the temporary snapshot of a clone stays until the next call on the volume");
    }
}

/// Whether the infra cluster has no `VolumeSnapshots`, or grants no right on them.
fn are_not_served(error: &infra::Error) -> bool {
    let absent = matches!(&*error.failure, Failure::Answer { code: 404, .. });
    error.class() == Class::Forbidden || (absent && error.class() == Class::Server)
}
