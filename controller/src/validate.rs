//! `ValidateVolumeCapabilities`: whether an existing volume serves the requested capabilities.

use infra::Infra;

use crate::{
    controller_operation::ControllerOperation,
    error::Error,
    request::{Sharing, Validate},
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
    Ok(match &wanted.sharing {
        Ok(Sharing::ManyNodes) if !volume::is_shared(&found) => Some(Error::NotShared(name).to_string()),
        Ok(Sharing::OneNode | Sharing::ManyNodes) => None,
        Err(invalid) => Some(invalid.to_string()),
    })
}
