//! `CreateVolume`: one conditional call. An existing object is read only when the name is taken.

use infra::{Class, DataVolume, Infra, Owned};

use crate::{
    controller_operation::ControllerOperation, error::Error, request::Create,
    storage_class_policy::StorageClassPolicy, volume,
};

/// A volume that exists.
pub(crate) struct Created {
    pub volume: Owned<DataVolume>,
    /// Size in bytes.
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
    let desired = volume::desired(request, infra.guard().prefix());
    let error = match operation.change(|| infra.create_data_volume(&desired)).await? {
        Ok(made) => {
            let volume = infra.guard().admit(made).map_err(|_| Error::NameTaken(desired.name.clone()))?;
            return Ok(Created { volume, size: desired.size });
        }
        Err(error) => error,
    };
    match error.class() {
        Class::Conflict => {}
        _ if error.is_quota() => return Err(Error::Quota(error)),
        Class::Invalid | Class::BadRequest => return Err(Error::RefusedVolume(error)),
        _ => return Err(error.into()),
    }
    let existing = operation.wait(infra.data_volume(&desired.name)).await??;
    // The object is gone again, or the conflict was about something else: the infra API's message states it.
    let existing = existing.ok_or(error)?;
    let existing = infra.guard().admit(existing).map_err(|_| Error::NameTaken(desired.name.clone()))?;
    if existing.deleting() {
        return Err(Error::Changed(desired.name));
    }
    let size = volume::compatible(&existing, request, &desired)?;
    Ok(Created { volume: existing, size })
}
