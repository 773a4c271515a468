//! `DeleteVolume`: only our volumes, and only while no VM has them. CDI would delete the `DataVolume` of a plugged disk
//! at once, and the claim with its data as soon as the VM releases it.

use infra::{Class, Infra, ObjectName};

use crate::{
    clone, clone_method, controller_operation::ControllerOperation, error::Error, node_id::node_ids, usable,
};

/// Deletes the volume. A volume that does not exist counts as deleted.
pub(crate) async fn delete(infra: &Infra, operation: &ControllerOperation, id: &str) -> Result<(), Error> {
    let Some(name) = ObjectName::parse(id) else { return Ok(()) };
    let Some(volume) = operation.wait(infra.data_volume(&name)).await?? else {
        // A clone that ended before its volume was made may have left its snapshot.
        return if infra.guard().admits_name(id) {
            clone::clean_up(infra, operation, &name).await
        } else {
            Ok(())
        };
    };
    let volume = infra.guard().admit(volume).map_err(|_| {
        usable::audit(&name, "delete");
        Error::NotOurs
    })?;
    let is_clone = clone_method::has_temporary_snapshot(&volume);
    if volume.deleting() {
        return if is_clone { clone::clean_up(infra, operation, &name).await } else { Ok(()) };
    }
    let census = operation.wait(infra.census()).await??;
    let holders = census.holders(&name);
    if !holders.is_empty() {
        return Err(Error::InUse { holders: node_ids(infra, &holders) });
    }
    match operation.change(|| infra.delete_data_volume(&name, &volume)).await? {
        Ok(()) if is_clone => clone::clean_up(infra, operation, &name).await,
        Ok(()) => Ok(()),
        Err(error) if error.class() == Class::NotFound => clone::clean_up(infra, operation, &name).await,
        // Also if another volume has taken the name: the next try reads that one.
        Err(error) => Err(error.into()),
    }
}
