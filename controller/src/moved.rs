//! A volume that KubeVirt has moved to another claim (`updateVolumesStrategy: Migration`).
//!
//! The VM alone shows where the data is, and a detach takes that away: the next attach would plug the volume's own claim,
//! whose data is older. So the detach first records the move in an annotation of that claim, and nothing uses a claim that
//! has it. Where the claim cannot be patched, the volume is not detached.

use std::time::Duration;

use infra::{Claim, Class, Infra, ObjectName};

use crate::{
    attach::{SpecEntry, VmView},
    controller_operation::ControllerOperation,
    error::Error,
    keys::MOVED_ANNOTATION,
    metrics::WaitCause,
};

/// Pause before the claim is read again, after it was changed by another client.
const PAUSE: Duration = Duration::from_millis(100);

/// Fails if the claim has older data than the one that KubeVirt moved the volume to.
pub(crate) fn check(volume: &ObjectName, claim: &Claim) -> Result<(), Error> {
    match claim.metadata.annotations.get(MOVED_ANNOTATION) {
        None => Ok(()),
        Some(to) => Err(Error::Moved { volume: volume.clone(), claim: to.clone() }),
    }
}

/// As [`check`], and fails also while a VM has the volume from another claim, for a copy that is to have its data of now.
pub(crate) async fn check_source(
    infra: &Infra,
    operation: &ControllerOperation,
    volume: &ObjectName,
    claim: &Claim,
) -> Result<(), Error> {
    check(volume, claim)?;
    let census = match operation.wait(infra.census()).await? {
        Err(error) if error.class() == Class::Forbidden => return Ok(()),
        census => census?,
    };
    for vm in &census.vms {
        if let SpecEntry::Moved { claim } = VmView::of(vm, volume.as_str()).spec {
            return Err(Error::Moved { volume: volume.clone(), claim });
        }
    }
    Ok(())
}

/// As [`check`], and reads the claim first. Where claims may not be read, no move can have been recorded.
pub(crate) async fn check_claim(
    infra: &Infra,
    operation: &ControllerOperation,
    volume: &ObjectName,
) -> Result<(), Error> {
    match operation.wait(infra.claim(volume)).await? {
        Ok(Some(claim)) => check(volume, &claim),
        Ok(None) => Ok(()),
        Err(error) if error.class() == Class::Forbidden => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Records at the claim of `volume` that it was moved to the claim `to`. Returns whether the next attach is refused; false:
/// the claim cannot be patched.
pub(crate) async fn record(
    infra: &Infra,
    operation: &ControllerOperation,
    volume: &ObjectName,
    to: &str,
) -> Result<bool, Error> {
    loop {
        let claim = match operation.wait(infra.claim(volume)).await? {
            Ok(Some(claim)) => claim,
            // Without `DataVolume` no attach finds the volume; with one CDI might make the claim again, blank.
            Ok(None) => return Ok(operation.wait(infra.data_volume(volume)).await??.is_none()),
            Err(error) if error.class() == Class::Forbidden => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let Ok(claim) = infra.guard().admit(claim) else { return Ok(false) };
        if claim.metadata.annotations.get(MOVED_ANNOTATION).is_some_and(|recorded| recorded == to) {
            return Ok(true);
        }
        match operation.change(|| infra.patch_claim(volume, claim.annotating(MOVED_ANNOTATION, to))).await? {
            Ok(_) => {
                tracing::warn!(%volume, to, "KubeVirt has moved the volume; recorded at its claim, which is not used any more");
                return Ok(true);
            }
            Err(error) if error.class() == Class::Forbidden => return Ok(false),
            // The claim has changed since it was read.
            Err(error) if matches!(error.class(), Class::Invalid | Class::Conflict | Class::NotFound) => {
                operation.report(&error);
                operation.wait_for(WaitCause::InfraClaim, tokio::time::sleep(PAUSE)).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
