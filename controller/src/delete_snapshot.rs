//! `DeleteSnapshot`: only our snapshots. The infra cluster's own finalizer keeps one from which it restores a claim.

use infra::{Infra, ObjectName};

use crate::{controller_operation::ControllerOperation, error::Error, take_snapshot};

/// Deletes the snapshot. A snapshot that does not exist counts as deleted.
pub(crate) async fn delete_snapshot(
    infra: &Infra,
    operation: &ControllerOperation,
    id: &str,
) -> Result<(), Error> {
    let Some(name) = ObjectName::parse(id) else { return Ok(()) };
    let Some(found) = operation.wait(infra.volume_snapshot(&name)).await?? else { return Ok(()) };
    let ours = infra.guard().admit_snapshot(found).map_err(|_| {
        take_snapshot::audit(&name, "delete");
        Error::NotOurSnapshot
    })?;
    take_snapshot::delete(infra, operation, &name, &ours).await
}
