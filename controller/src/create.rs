//! `CreateVolume`: one conditional call for a blank volume; an existing object is read only when the name is taken. A
//! volume that is filled from a source is looked for first, because the source may be gone when a request is repeated.

use infra::{Class, DataVolume, Infra, NewDataVolume, NewSource, ObjectName, Owned};

use crate::{
    clone, clone_method,
    content::{self, Size},
    controller_operation::ControllerOperation,
    error::Error,
    request::{Create, Source},
    snapshot,
    storage_class_policy::StorageClassPolicy,
    take_snapshot, volume,
};

/// A volume that exists.
pub(crate) struct Created {
    pub volume: Owned<DataVolume>,
    /// Size in bytes, as the guest knows it.
    pub size: u64,
}

/// Creates the volume, or finds it. Does not wait for its disk: with `WaitForFirstConsumer` the disk comes with the
/// first use.
pub(crate) async fn create(
    infra: &Infra,
    policy: &StorageClassPolicy,
    operation: &ControllerOperation,
    request: &Create,
) -> Result<Created, Error> {
    policy.permit(request.storage_class.as_deref())?;
    let prefix = infra.guard().prefix();
    let Some(source) = &request.source else {
        let size = Size { guest: request.capacity.size, made: request.capacity.size };
        return make(infra, operation, request, &volume::desired(request, prefix, NewSource::Blank, size))
            .await;
    };
    let name = volume::object_name(&request.name, prefix);
    if let Some(made) = existing(infra, operation, request, &name).await? {
        if clone_method::has_temporary_snapshot(&made.volume) && volume::is_populated(&made.volume) {
            clone::try_clean_up(infra, operation, &name).await;
        }
        return Ok(made);
    }
    let id = match source {
        Source::Snapshot(id) => {
            let (source, size) = restore(infra, operation, request, id).await?;
            return make(infra, operation, request, &volume::desired(request, prefix, source, size)).await;
        }
        Source::Volume(id) => id,
    };
    let cloned = async {
        let prepared = clone::prepare(infra, policy, operation, request, (&name, id)).await?;
        make(infra, operation, request, &volume::desired(request, prefix, prepared.0, prepared.1)).await
    };
    let cloned = cloned.await;
    if let Err(error) = &cloned
        && error.is_final()
    {
        // The sidecar will not ask again, nor delete a volume that it takes for never made.
        clone::clean_up(infra, operation, &name).await?;
    }
    cloned
}

async fn make(
    infra: &Infra,
    operation: &ControllerOperation,
    request: &Create,
    desired: &NewDataVolume,
) -> Result<Created, Error> {
    let error = match operation.change(|| infra.create_data_volume(desired)).await? {
        Ok(made) => {
            let volume = infra.guard().admit(made).map_err(|_| Error::NameTaken(desired.name.clone()))?;
            let size = volume::guest_size(&volume).unwrap_or(desired.size);
            return Ok(Created { volume, size });
        }
        Err(error) => error,
    };
    match error.class() {
        Class::Conflict => {}
        _ if error.is_quota() => return Err(Error::Quota(error)),
        Class::Invalid | Class::BadRequest => return Err(Error::RefusedVolume(error)),
        _ => return Err(error.into()),
    }
    // Where the object is gone again, or the conflict was about something else, the infra API's message states it.
    existing(infra, operation, request, &desired.name).await?.ok_or(Error::Infra(error))
}

/// The volume of this name, if it is the requested one; `None` = the name is free.
async fn existing(
    infra: &Infra,
    operation: &ControllerOperation,
    request: &Create,
    name: &ObjectName,
) -> Result<Option<Created>, Error> {
    let Some(found) = operation.wait(infra.data_volume(name)).await?? else { return Ok(None) };
    let found = infra.guard().admit(found).map_err(|_| Error::NameTaken(name.clone()))?;
    if found.deleting() {
        return Err(Error::Changed(name.clone()));
    }
    let size = volume::compatible(&found, request)?;
    Ok(Some(Created { volume: found, size }))
}

/// What CDI is to restore, and to which size.
async fn restore(
    infra: &Infra,
    operation: &ControllerOperation,
    request: &Create,
    id: &str,
) -> Result<(NewSource, Size), Error> {
    let found = take_snapshot::find(infra, operation, id).await?;
    let name = ObjectName::parse(id).ok_or(infra::ForeignSnapshot)?;
    if found.deleting() {
        return Err(Error::SnapshotDeleting(name));
    }
    let of_guest = snapshot::guest_size(&found).filter(|_| found.is_ready);
    let of_guest = of_guest.ok_or_else(|| Error::SnapshotPending {
        snapshot: name.clone(),
        message: found.error.clone().unwrap_or_else(|| "not ready yet".to_owned()),
    })?;
    let size = content::size(&request.capacity, of_guest, found.restore_size.unwrap_or_default())?;
    Ok((NewSource::Snapshot(name), size))
}
