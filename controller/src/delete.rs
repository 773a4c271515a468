//! `DeleteVolume`: only what is ours, and only while no VM has it. With CDI the `DataVolume` of a plugged disk would vanish at
//! once, and the claim with its data as soon as the VM lets go.

use infra::{Class, Infra, ObjectName};

use crate::{error::Error, operation::Operation, publish::audit, unpublish::list};

/// Deletes the volume; what does not exist is deleted.
pub(crate) async fn delete(infra: &Infra, operation: &Operation, id: &str) -> Result<(), Error> {
    let Some(name) = ObjectName::parse(id) else { return Ok(()) };
    let Some(volume) = operation.wait(infra.data_volume(&name)).await?? else { return Ok(()) };
    let volume = infra.guard().admit(volume).map_err(|_| {
        audit(&name, "delete");
        Error::NotOurs
    })?;
    if volume.deleting() {
        return Ok(());
    }
    let census = operation.wait(infra.census()).await??;
    let holders = census.holders(&name);
    if !holders.is_empty() {
        return Err(Error::InUse { holders: list(infra, &holders) });
    }
    match operation.change(|| infra.delete_data_volume(&name, &volume)).await? {
        Ok(()) => Ok(()),
        Err(error) if error.class() == Class::NotFound => Ok(()),
        // Also where another volume took the name: the next try looks at that one.
        Err(error) => Err(error.into()),
    }
}
