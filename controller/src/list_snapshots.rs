//! `ListSnapshots` and `GetSnapshot`. One snapshot is got by its name, with a right that `HyperShift` grants. To list
//! them takes the right to list, which nobody in Kubernetes needs.

use infra::{Class, Infra, Owned, VolumeSnapshot};

use crate::{
    clone_method,
    controller_operation::ControllerOperation,
    error::Error,
    request::ListSnapshots,
    snapshot::{self, Page},
    take_snapshot,
};

/// Lists the guest's snapshots. An id that is unknown, or is not ours, makes an empty list.
pub(crate) async fn list_snapshots(
    infra: &Infra,
    operation: &ControllerOperation,
    request: &ListSnapshots,
) -> Result<Page<Owned<VolumeSnapshot>>, Error> {
    let found = match &request.snapshot {
        Some(id) => match take_snapshot::find(infra, operation, id).await {
            Ok(found) => vec![found],
            Err(Error::NoSuchSnapshot(_)) => Vec::new(),
            Err(error) => return Err(error),
        },
        None => all(infra, operation).await?,
    };
    // One that is being deleted counts as deleted, as for DeleteSnapshot: its object stays until the storage is done.
    let is_listed = |snapshot: &Owned<VolumeSnapshot>| {
        !snapshot.deleting()
            && (request.volume.is_none() || snapshot.claim.as_deref() == request.volume.as_deref())
    };
    let found = found.into_iter().filter(is_listed).collect();
    let (token, most) = (request.token.as_deref(), request.most);
    Ok(snapshot::page(found, |snapshot: &Owned<VolumeSnapshot>| &snapshot.metadata.name, token, most)?)
}

async fn all(infra: &Infra, operation: &ControllerOperation) -> Result<Vec<Owned<VolumeSnapshot>>, Error> {
    match operation.wait(infra.volume_snapshots()).await? {
        Ok(listed) => {
            let ours = listed.into_iter().filter_map(|found| infra.guard().admit_snapshot(found).ok());
            // Those of clones are not the guest's.
            Ok(ours.filter(|found| !clone_method::is_temporary(found)).collect())
        }
        Err(error) if error.class() == Class::Forbidden => Err(Error::MayNotListSnapshots(error)),
        Err(error) => Err(error.into()),
    }
}
