//! Which volumes may be plugged in: only this guest's, and none that is being deleted or has failed.

use infra::{DataVolume, ObjectName};

use crate::{error::Error, volume};

/// Whether a volume may be plugged in. It need not be populated yet: with `WaitForFirstConsumer` the VM is the
/// consumer.
pub(crate) fn check(volume: &DataVolume, name: &ObjectName) -> Result<(), Error> {
    if volume.deleting() {
        Err(Error::Deleting(name.clone()))
    } else if volume::has_failed(volume) {
        Err(Error::Failed { volume: name.clone(), progress: volume.progress() })
    } else {
        Ok(())
    }
}

/// Logs for the operator that a guest asked for a volume that is not its own.
pub(crate) fn audit(volume: &ObjectName, what: &str) {
    tracing::warn!(%volume, "refused to {what} a volume that lacks the infra labels of this guest");
}
