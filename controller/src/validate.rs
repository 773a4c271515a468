//! `ValidateVolumeCapabilities`: whether an existing volume serves the requested capabilities.

use csi_call::Filesystem;
use infra::{Claim, DataVolume, Infra};

use crate::{
    claim_size::Layout,
    controller_operation::ControllerOperation,
    error::Error,
    expand::{Observed, present_disk},
    request::{Needs, Sharing, Validate},
    volume,
};

/// Why the volume does not serve the capabilities; `None` = it does.
pub(crate) async fn validate(
    infra: &Infra,
    operation: &ControllerOperation,
    wanted: &Validate,
) -> Result<Option<String>, Error> {
    let name = infra.guard().volume_name(&wanted.volume)?;
    let found = operation.wait(infra.data_volume(&name)).await??.ok_or(infra::Foreign)?;
    let found = infra.guard().admit(found)?;
    Ok(match &wanted.needs {
        Ok(Needs { sharing: Sharing::ManyNodes, .. }) if !volume::is_shared(&found) => {
            Some(Error::NotShared(name).to_string())
        }
        Ok(Needs { filesystem: Some(filesystem), .. }) => match too_small(found.size, *filesystem) {
            None => None,
            // The DataVolume has the size of the creation. The volume may have been expanded since.
            Some(small) => match operation.wait(infra.claim(&name)).await?? {
                Some(claim) => too_small(Some(disk(&found, &claim)), *filesystem),
                None => Some(small),
            },
        },
        Ok(Needs { filesystem: None, .. }) => None,
        Err(invalid) => Some(invalid.to_string()),
    })
}

/// The size in bytes that the volume's disk has by now.
fn disk(volume: &DataVolume, claim: &Claim) -> u64 {
    let (layout, _) = Layout::of(volume, claim);
    present_disk(&Observed::of(claim), layout, layout.first_disk(volume))
}

fn too_small(size: Option<u64>, filesystem: Filesystem) -> Option<String> {
    let Filesystem { name, least_bytes } = filesystem;
    let size = size.filter(|size| *size < least_bytes)?;
    Some(format!("{name} needs a volume of {least_bytes} bytes at least, and this one has {size}"))
}
