//! CSI Identity, the same for the controller and the node role.

use std::sync::Arc;

use csi_proto::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse, identity_server, plugin_capability,
};
use tonic::{Request, Response, Status};

/// Returns why the process will not recover by itself, if so.
pub type Wedged = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// The CSI Identity service. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    name: String,
    version: String,
    capabilities: Vec<PluginCapability>,
    wedged: Wedged,
}

impl Identity {
    /// `name` is the CSI driver name, at most 63 characters, starting and ending with a letter or digit; `capabilities`
    /// are the plugin's services, e.g. [`Identity::controller_service`].
    pub fn new(
        name: impl Into<String>,
        version: impl Into<String>,
        capabilities: Vec<PluginCapability>,
    ) -> Self {
        let wedged: Wedged = Arc::new(|| None);
        Self { name: name.into(), version: version.into(), capabilities, wedged }
    }

    /// As [`Self::new`], but `Probe` fails when `wedged` returns a reason.
    #[must_use]
    pub fn with_wedged(self, wedged: Wedged) -> Self {
        Self { wedged, ..self }
    }

    /// Capability `CONTROLLER_SERVICE`.
    pub fn controller_service() -> PluginCapability {
        let service =
            plugin_capability::Service { r#type: plugin_capability::service::Type::ControllerService.into() };
        PluginCapability { r#type: Some(plugin_capability::Type::Service(service)) }
    }

    /// Capability `VolumeExpansion` `ONLINE`: volumes are expanded also while they are published. By the CSI
    /// specification it includes volumes that are not.
    pub fn online_expansion() -> PluginCapability {
        let expansion = plugin_capability::VolumeExpansion {
            r#type: plugin_capability::volume_expansion::Type::Online.into(),
        };
        PluginCapability { r#type: Some(plugin_capability::Type::VolumeExpansion(expansion)) }
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: self.version.clone(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: self.capabilities.clone() }))
    }

    /// Ready whenever the process answers and is not wedged. An outage of the infra API is no reason to restart us: a
    /// restart would not help, and each RPC reports by itself what it can't reach. `FAILED_PRECONDITION` = restart me
    /// (CSI, `Probe`).
    async fn probe(&self, _request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        if let Some(reason) = (self.wedged)() {
            return Err(Status::failed_precondition(reason));
        }
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use identity_server::Identity as _;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_probe_fails_while_the_process_is_wedged_and_says_why() {
        let hanging = Arc::new(AtomicBool::new(false));
        let wedged: Wedged = {
            let hanging = Arc::clone(&hanging);
            Arc::new(move || hanging.load(Ordering::Relaxed).then(|| "an operation hangs".to_owned()))
        };
        let identity = Identity::new("csi.kubevirt.io", "0.1.0", Vec::new()).with_wedged(wedged);
        let probe = || identity.probe(Request::new(ProbeRequest {}));
        assert_eq!(probe().await.unwrap().into_inner().ready, Some(true));
        hanging.store(true, Ordering::Relaxed);
        let failed = probe().await.unwrap_err();
        assert_eq!((failed.code(), failed.message()), (Code::FailedPrecondition, "an operation hangs"));
        hanging.store(false, Ordering::Relaxed);
        assert!(probe().await.is_ok());
    }
}
