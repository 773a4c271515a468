//! The real node plugin's socket in a worker, reached over the bench's bridge: a forwarder in the guest
//! (`socat TCP → unix socket`) lets a test call what kubelet calls.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use bench::{
    bring_up::{PLUGIN_FOLDER, Worker},
    control::Request as Ask,
    fault_proxy::{GrpcProxy, Place},
    scenario::{Deadline, until},
};
use csi_proto::v1::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, Volume, VolumeCapability, node_client::NodeClient, volume_usage::Unit,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{controller_process::timed, fixture::Fixture};

/// The port of the forwarder in each worker.
const PORT: u16 = 7002;

/// kubelet's deadline for a CSI call.
const KUBELET_DEADLINE: std::time::Duration = std::time::Duration::from_secs(120);

/// The node plugin of one worker.
pub struct NodeSocket<'a> {
    fixture: &'a Fixture,
    worker: &'a str,
    client: NodeClient<Channel>,
}

impl<'a> NodeSocket<'a> {
    /// Connects to the plugin in `worker`.
    pub async fn connect(fixture: &'a Fixture, worker: &'a str) -> Result<Self> {
        let address = forwarder(fixture, worker).await?;
        Self::at(fixture, worker, address).await
    }

    /// The same through a fault proxy at `front`.
    pub async fn behind_proxy(
        fixture: &'a Fixture,
        worker: &'a str,
        front: SocketAddr,
    ) -> Result<(Self, GrpcProxy)> {
        let address = forwarder(fixture, worker).await?;
        // Once the forwarder answers: a proxy lets its clients in before.
        Self::at(fixture, worker, address).await?;
        let proxy = GrpcProxy::start(Place::Tcp(front), Place::Tcp(address)).await?;
        let Place::Tcp(front) = *proxy.place() else { bail!("a proxy at {:?}", proxy.place()) };
        Ok((Self::at(fixture, worker, front).await?, proxy))
    }

    /// Where the volume is staged.
    #[expect(clippy::unused_self, reason = "read beside the socket's calls")]
    pub fn staging(&self, volume: &Volume) -> String {
        staging(volume)
    }

    async fn at(fixture: &'a Fixture, worker: &'a str, address: SocketAddr) -> Result<Self> {
        let endpoint = Endpoint::try_from(format!("http://{address}"))?;
        let channel = until("the node plugin's socket", Deadline::Reaction, async || {
            Ok(endpoint.connect().await.map_err(|error| format!("{error:?}")))
        })
        .await?;
        Ok(Self { fixture, worker, client: NodeClient::new(channel) })
    }
    /// NodeStageVolume at a staging directory of the volume's own, made as kubelet makes it.
    pub async fn stage(&self, volume: &Volume, capability: &VolumeCapability) -> Result<(), Status> {
        let path = staging(volume);
        self.run(&["mkdir", "-p", &path]).await.map_err(|error| Status::internal(format!("{error:#}")))?;
        let request = NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: path,
            volume_capability: Some(capability.clone()),
            volume_context: volume.volume_context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        self.client.clone().node_stage_volume(timed(request, KUBELET_DEADLINE)).await.map(drop)
    }

    /// NodeUnstageVolume.
    pub async fn unstage(&self, volume: &Volume) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging(volume),
        };
        self.client.clone().node_unstage_volume(timed(request, KUBELET_DEADLINE)).await.map(drop)
    }

    /// NodePublishVolume at a target of the volume's own.
    pub async fn publish(&self, volume: &Volume, capability: &VolumeCapability) -> Result<String, Status> {
        let target = format!("{}-target", staging(volume));
        let request = NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging(volume),
            target_path: target.clone(),
            volume_capability: Some(capability.clone()),
            volume_context: volume.volume_context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        self.client.clone().node_publish_volume(timed(request, KUBELET_DEADLINE)).await?;
        Ok(target)
    }

    /// NodeGetVolumeStats: total bytes at a target.
    pub async fn total_bytes(&self, volume: &Volume, target: &str) -> Result<i64, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: target.to_owned(),
            ..NodeGetVolumeStatsRequest::default()
        };
        let answer = self.client.clone().node_get_volume_stats(timed(request, KUBELET_DEADLINE)).await?;
        let usage = answer.into_inner().usage;
        Ok(usage.iter().find(|usage| usage.unit == Unit::Bytes as i32).map_or(0, |usage| usage.total))
    }

    /// NodeUnpublishVolume of what [`Self::publish`] made.
    pub async fn unpublish(&self, volume: &Volume) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: format!("{}-target", staging(volume)),
        };
        self.client.clone().node_unpublish_volume(timed(request, KUBELET_DEADLINE)).await.map(drop)
    }

    /// Runs a command in the worker; what it printed.
    pub async fn run(&self, argv: &[&str]) -> Result<String> {
        let output = self.fixture.control.run(self.worker, argv).await?;
        if output.code != 0 {
            bail!("{argv:?} in {}: {}{}", self.worker, output.stdout, output.stderr);
        }
        Ok(output.stdout)
    }
}

/// Starts the forwarder in `worker`; where it listens.
async fn forwarder(fixture: &Fixture, worker: &str) -> Result<SocketAddr> {
    let listen = format!("TCP-LISTEN:{PORT},fork,reuseaddr");
    let forward = format!("UNIX-CONNECT:{PLUGIN_FOLDER}/csi.sock");
    // A second forwarder finds the port taken and ends; the first one serves all tests.
    let argv = ["socat".to_owned(), listen, forward];
    let log = "/var/log/socat.log".to_owned();
    fixture.control.ask(&Ask::Spawn { worker: worker.to_owned(), argv: argv.into(), log }).await?;
    let address = Worker::named(worker).context("not a worker's name")?.address;
    Ok(SocketAddr::new(IpAddr::from(address), PORT))
}

/// Where kubelet stages a volume of this driver (its path holds a hash of the volume handle; any unique name will do).
fn staging(volume: &Volume) -> String {
    format!("/var/lib/kubelet/plugins/kubernetes.io/csi/csi.kubevirt.io/{}/globalmount", volume.volume_id)
}
