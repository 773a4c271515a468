//! `DeleteVolume`: only our volumes, and only while no VM has them. CDI would delete the `DataVolume` of a plugged disk
//! at once, and the claim with its data as soon as the VM releases it.

use infra::{Claim, Class, Infra, ObjectName, Owned};

use crate::{
    clone, clone_method, controller_operation::ControllerOperation, error::Error, node_id::node_ids, usable,
};

/// Deletes the volume. A volume that does not exist counts as deleted.
pub(crate) async fn delete(infra: &Infra, operation: &ControllerOperation, id: &str) -> Result<(), Error> {
    let Some(name) = ObjectName::parse(id) else { return Ok(()) };
    let Some(volume) = operation.wait(infra.data_volume(&name)).await?? else {
        return without_data_volume(infra, operation, &name).await;
    };
    let volume = infra.guard().admit(volume).map_err(|_| {
        usable::audit(&name, "delete");
        Error::NotOurs
    })?;
    let is_clone = clone_method::has_temporary_snapshot(&volume);
    if volume.deleting() {
        return if is_clone { clone::clean_up(infra, operation, &name).await } else { Ok(()) };
    }
    free(infra, operation, &name).await?;
    match operation.change(|| infra.delete_data_volume(&name, &volume)).await? {
        Ok(()) if is_clone => clone::clean_up(infra, operation, &name).await,
        Ok(()) => Ok(()),
        Err(error) if error.class() == Class::NotFound => clone::clean_up(infra, operation, &name).await,
        // Also if another volume has taken the name: the next try reads that one.
        Err(error) => Err(error.into()),
    }
}

/// Fails while a VM has the volume.
async fn free(infra: &Infra, operation: &ControllerOperation, name: &ObjectName) -> Result<(), Error> {
    let census = operation.wait(infra.census()).await??;
    let holders = census.holders(name);
    if holders.is_empty() { Ok(()) } else { Err(Error::InUse { holders: node_ids(infra, &holders) }) }
}

/// Without a `DataVolume` the volume was deleted or never made; or somebody deleted the `DataVolume` alone, and the claim
/// with the data is left. An OK would make the guest forget that claim, and its storage would be lost for good.
async fn without_data_volume(
    infra: &Infra,
    operation: &ControllerOperation,
    name: &ObjectName,
) -> Result<(), Error> {
    if !infra.guard().admits_name(name.as_str()) {
        return Ok(());
    }
    let claim = match operation.wait(infra.claim(name)).await? {
        // Without the right to read claims, none is known to be left.
        Err(error) if error.class() == Class::Forbidden => None,
        found => found?,
    };
    if let Some(Ok(claim)) = claim.map(|claim| infra.guard().admit(claim))
        && !claim.deleting()
        && !claim.goes_with_data_volume()
    {
        free(infra, operation, name).await?;
        delete_claim(infra, operation, name, &claim).await?;
    }
    // A clone that ended before its volume was made may have left its snapshot.
    clone::clean_up(infra, operation, name).await
}

async fn delete_claim(
    infra: &Infra,
    operation: &ControllerOperation,
    name: &ObjectName,
    claim: &Owned<Claim>,
) -> Result<(), Error> {
    let left = |answer: String| Error::ClaimLeft { claim: name.clone(), answer };
    if !infra.may_delete_claims() {
        return Err(left(String::new()));
    }
    tracing::info!(claim = %name, "the DataVolume of the volume is gone; deleting its claim");
    match operation.change(|| infra.delete_claim(name, claim)).await? {
        Ok(()) => Ok(()),
        Err(error) if error.class() == Class::NotFound => Ok(()),
        Err(error) if error.class() == Class::Forbidden => Err(left(format!(": {error}"))),
        Err(error) => Err(error.into()),
    }
}
