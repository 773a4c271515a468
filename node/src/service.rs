//! The gRPC service: receives requests, passes them to [`Volumes`], returns answers. It has no policy of its own.

use std::{sync::Arc, time::Duration};

use csi_call::{Deadline, log_fields::record_volume};
use csi_proto::v1::{
    self,
    node_service_capability::{self, Rpc, rpc},
    volume_usage::Unit,
};
use prometheus_client::registry::Registry;
use tokio::{sync::OnceCell, time::timeout_at};
use tonic::{Request, Response, Status};

use crate::{
    error::{Error, Result},
    host::Host,
    linux::Linux,
    metrics::Metrics,
    node_id::{NodeIdentitySource, node_id},
    request,
    settings::NodeSettings,
    stats::Stats,
    usage::{Amount, Capacity},
    volumes::Volumes,
};

/// The CSI Node service of this worker.
///
/// Wrap it: `csi_proto::v1::node_server::NodeServer::new(node)`. Clones serve the same volumes.
pub struct Node<S> {
    volumes: Arc<Volumes>,
    metrics: Metrics,
    identity: Arc<S>,
    id: Arc<OnceCell<String>>,
}

impl<S> Clone for Node<S> {
    fn clone(&self) -> Self {
        Self {
            volumes: Arc::clone(&self.volumes),
            metrics: self.metrics.clone(),
            identity: Arc::clone(&self.identity),
            id: Arc::clone(&self.id),
        }
    }
}

impl<S: NodeIdentitySource> Node<S> {
    /// On this machine. Nothing is read or started yet.
    pub fn new(settings: NodeSettings, identity: S) -> Self {
        let host = Linux::new(settings.paths.clone());
        Self::with_host(Arc::new(host), settings, identity)
    }

    /// On a given machine.
    pub fn with_host(host: Arc<dyn Host>, settings: NodeSettings, identity: S) -> Self {
        let metrics = Metrics::default();
        Self {
            volumes: Volumes::new(host, settings, metrics.clone()),
            metrics,
            identity: Arc::new(identity),
            id: Arc::default(),
        }
    }

    /// Puts this service's metrics into a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        registry.register_collector(Box::new(self.volumes.work()));
    }

    /// Waits for mutating calls that outlived their callers, but not longer than `grace`. True: all have ended.
    ///
    /// What has not ended is safe to leave: the next process finds it as it is and goes on. Threads that hang in the
    /// kernel do not keep the process from ending.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.volumes.shutdown(grace).await
    }

    async fn identify(&self, deadline: Deadline) -> Result<String> {
        let ask = self.id.get_or_try_init(|| async {
            let node = self.identity.node().await.map_err(Error::IdentitySource)?;
            node_id(&node)
        });
        match timeout_at(deadline.answer_by, ask).await {
            Ok(id) => id.cloned(),
            Err(_) => Err(Error::Hung { what: "the guest API".to_owned() }),
        }
    }
}

#[tonic::async_trait]
impl<S: NodeIdentitySource> v1::node_server::Node for Node<S> {
    async fn node_stage_volume(
        &self,
        request: Request<v1::NodeStageVolumeRequest>,
    ) -> Result<Response<v1::NodeStageVolumeResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        let deadline = Deadline::read(request.metadata());
        let request = request::StageRequest::try_from(request.into_inner())?;
        self.volumes.stage(request, deadline).await?;
        Ok(Response::new(v1::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Result<Response<v1::NodeUnstageVolumeResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        let deadline = Deadline::read(request.metadata());
        let request = request::RemoveRequest::try_from(request.into_inner())?;
        self.volumes.unstage(request, deadline).await?;
        Ok(Response::new(v1::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Result<Response<v1::NodePublishVolumeResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        let deadline = Deadline::read(request.metadata());
        let request = request::PublishRequest::try_from(request.into_inner())?;
        self.volumes.publish(request, deadline).await?;
        Ok(Response::new(v1::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<v1::NodeUnpublishVolumeResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        let deadline = Deadline::read(request.metadata());
        let request = request::RemoveRequest::try_from(request.into_inner())?;
        self.volumes.unpublish(request, deadline).await?;
        Ok(Response::new(v1::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<v1::NodeGetVolumeStatsResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        let deadline = Deadline::read(request.metadata());
        let request = request::StatsRequest::try_from(request.into_inner())?;
        let stats = self.volumes.stats(request, deadline).await?;
        Ok(Response::new(v1::NodeGetVolumeStatsResponse { usage: usage(stats), volume_condition: None }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<v1::NodeExpandVolumeRequest>,
    ) -> Result<Response<v1::NodeExpandVolumeResponse>, Status> {
        record_volume(&request.get_ref().volume_id);
        let deadline = Deadline::read(request.metadata());
        let request = request::ExpandRequest::try_from(request.into_inner())?;
        let Capacity(bytes) = self.volumes.expand(request, deadline).await?;
        Ok(Response::new(v1::NodeExpandVolumeResponse { capacity_bytes: count(bytes) }))
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<v1::NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| v1::NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities =
            [rpc::Type::StageUnstageVolume, rpc::Type::GetVolumeStats, rpc::Type::ExpandVolume]
                .map(capability)
                .to_vec();
        Ok(Response::new(v1::NodeGetCapabilitiesResponse { capabilities }))
    }

    /// Reports no limit of volumes: the limit depends on the VM's other disks and ports, which the guest cannot see.
    async fn node_get_info(
        &self,
        request: Request<v1::NodeGetInfoRequest>,
    ) -> Result<Response<v1::NodeGetInfoResponse>, Status> {
        let node_id = self.identify(Deadline::read(request.metadata())).await?;
        Ok(Response::new(v1::NodeGetInfoResponse {
            node_id,
            max_volumes_per_node: 0,
            accessible_topology: None,
        }))
    }
}

fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn usage(stats: Stats) -> Vec<v1::VolumeUsage> {
    let entry = |unit: Unit, amount: Amount| v1::VolumeUsage {
        available: count(amount.available),
        total: count(amount.total),
        used: count(amount.used),
        unit: unit.into(),
    };
    match stats {
        Stats::Filesystem(usage) => {
            let inodes = usage.inodes.map(|inodes| entry(Unit::Inodes, inodes));
            [entry(Unit::Bytes, usage.bytes)].into_iter().chain(inodes).collect()
        }
        // Only the user of a raw device knows how much of it is used.
        Stats::Block(capacity) => {
            vec![v1::VolumeUsage { total: count(capacity.0), unit: Unit::Bytes.into(), ..Default::default() }]
        }
    }
}

#[cfg(test)]
mod tests;
