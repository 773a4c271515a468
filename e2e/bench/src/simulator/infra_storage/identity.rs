//! CSI Identity.

use csi_proto::v1::{
    self as csi, identity_server, plugin_capability,
    plugin_capability::{service, volume_expansion},
};
use tonic::{Request, Response, Status};

use crate::cluster::storage_classes::PROVISIONER;

/// Says what the plugin is.
pub(super) struct Identity;

#[tonic::async_trait]
impl identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: PROVISIONER.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let service = plugin_capability::Type::Service(plugin_capability::Service {
            r#type: service::Type::ControllerService.into(),
        });
        let expansion = plugin_capability::Type::VolumeExpansion(plugin_capability::VolumeExpansion {
            r#type: volume_expansion::Type::Online.into(),
        });
        let capabilities = [service, expansion].map(|kind| csi::PluginCapability { r#type: Some(kind) });
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}
