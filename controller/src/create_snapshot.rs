//! `CreateSnapshot`: an infra snapshot of the volume's claim. It is crash-consistent: what the guest's kernel had not
//! written yet is not in it.

use infra::{Infra, Owned, VolumeSnapshot};

use crate::{
    controller_operation::ControllerOperation,
    error::Error,
    request::CreateSnapshot,
    snapshot,
    storage_class_policy::StorageClassPolicy,
    take_snapshot::{self, CopySource},
};

/// Takes the snapshot, or finds it, and waits for a while until it is ready. The source is read only where there is no
/// snapshot yet: it may be deleted while the sidecar still asks whether the snapshot is ready.
pub(crate) async fn create_snapshot(
    infra: &Infra,
    policy: &StorageClassPolicy,
    operation: &ControllerOperation,
    request: &CreateSnapshot,
) -> Result<Owned<VolumeSnapshot>, Error> {
    let name = snapshot::object_name(&request.name);
    let found = take_snapshot::existing(infra, operation, &name).await?;
    let made = if let Some(found) = found {
        found
    } else {
        let source = CopySource::read(infra, operation, &request.volume).await?;
        let class = policy.snapshot_class(source.storage_class(), request.class.as_deref())?;
        let new = snapshot::desired(request, &source.name, class, source.guest_size());
        take_snapshot::take(infra, operation, &new).await?
    };
    snapshot::compatible(&made, request)?;
    take_snapshot::until_ready(infra, operation, &name, made).await
}
