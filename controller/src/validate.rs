//! `ValidateVolumeCapabilities`: whether an existing volume serves the requested capabilities.

use csi_call::Filesystem;
use infra::{DataVolume, Infra};

use crate::{
    controller_operation::ControllerOperation,
    error::Error,
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
        Ok(Needs { filesystem: Some(filesystem), .. }) => too_small(&found, *filesystem),
        Ok(Needs { filesystem: None, .. }) => None,
        Err(invalid) => Some(invalid.to_string()),
    })
}

fn too_small(volume: &DataVolume, filesystem: Filesystem) -> Option<String> {
    let Filesystem { name, least_bytes } = filesystem;
    let size = volume.size.filter(|size| *size < least_bytes)?;
    Some(format!("{name} needs a volume of {least_bytes} bytes at least, and this one has {size}"))
}
