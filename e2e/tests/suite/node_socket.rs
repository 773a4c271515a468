//! The real node plugin's socket in a worker, reached over the bench's bridge: a forwarder in the guest
//! (`socat TCP → unix socket`) lets a test call what kubelet calls.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bench::{
    bring_up::{PLUGIN_FOLDER, Worker},
    control::Request as Ask,
    scenario::{Deadline, until},
};
use csi_proto::v1::{
    NodeGetCapabilitiesRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Volume, VolumeCapability, node_client::NodeClient,
    volume_usage::Unit,
};
use fault_proxy::{Address, GrpcProxy};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{bare_disk::BareDisk, controller_process::timed, fixture::Fixture};

/// The port of the forwarder in each worker.
const PORT: u16 = 7002;

/// kubelet's deadline for a CSI call (`csiTimeout`).
pub const KUBELET_DEADLINE: Duration = Duration::from_mins(2);

/// Deadline of a call that can't succeed and so takes all of it. The driver answers a tenth of the deadline before it, at most a
/// second: so its answer has as long a way here as with [`KUBELET_DEADLINE`]. With half of this a busy worker's answer came too late.
pub const SHORT_DEADLINE: Duration = Duration::from_secs(10);

/// The driver's process in the worker.
const DRIVER: &str = "kubevirt-csi-driver";

/// The node plugin of one worker. Clones share the connection.
#[derive(Clone)]
pub struct NodeSocket<'a> {
    fixture: &'a Fixture,
    worker: &'a str,
    address: SocketAddr,
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
        let proxy = GrpcProxy::start(Address::Tcp(front), Address::Tcp(address)).await?;
        let Address::Tcp(front) = *proxy.place() else {
            bail!("expected a proxy on TCP, saw {:?}", proxy.place())
        };
        Ok((Self::at(fixture, worker, front).await?, proxy))
    }

    /// Where the volume is staged.
    #[expect(clippy::unused_self, reason = "read beside the socket's calls")]
    pub fn staging(&self, volume: &Volume) -> String {
        staging(volume)
    }

    async fn at(fixture: &'a Fixture, worker: &'a str, address: SocketAddr) -> Result<Self> {
        let endpoint = Endpoint::try_from(format!("http://{address}"))?;
        let channel =
            until("the node plugin's socket to accept connections", Deadline::Reaction, async || {
                Ok(endpoint.connect().await.map_err(|error| format!("{error:?}")))
            })
            .await?;
        Ok(Self { fixture, worker, address, client: NodeClient::new(channel) })
    }

    /// Where the socket is reached over TCP, `<ip>:<port>`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// NodeStageVolume at a staging directory of the volume's own, made as kubelet makes it.
    pub async fn stage(&self, volume: &Volume, capability: &VolumeCapability) -> Result<(), Status> {
        let path = staging(volume);
        self.run(&["mkdir", "-p", &path]).await.map_err(|error| Status::internal(format!("{error:#}")))?;
        self.stage_within(volume, capability, KUBELET_DEADLINE).await
    }

    /// NodeStageVolume with a deadline of the test's choice; the staging directory is there, or the plugin makes it.
    pub async fn stage_within(
        &self,
        volume: &Volume,
        capability: &VolumeCapability,
        deadline: Duration,
    ) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging(volume),
            volume_capability: Some(capability.clone()),
            volume_context: volume.volume_context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        self.client.clone().node_stage_volume(timed(request, deadline)).await.map(drop)
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
        self.publish_within(volume, capability, KUBELET_DEADLINE).await
    }

    /// NodePublishVolume with a deadline of the test's choice.
    pub async fn publish_within(
        &self,
        volume: &Volume,
        capability: &VolumeCapability,
        deadline: Duration,
    ) -> Result<String, Status> {
        let target = target(volume);
        let request = NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging(volume),
            target_path: target.clone(),
            volume_capability: Some(capability.clone()),
            volume_context: volume.volume_context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        self.client.clone().node_publish_volume(timed(request, deadline)).await?;
        Ok(target)
    }

    /// `NodeGetVolumeStats`: total bytes at a target.
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
        let request =
            NodeUnpublishVolumeRequest { volume_id: volume.volume_id.clone(), target_path: target(volume) };
        self.client.clone().node_unpublish_volume(timed(request, KUBELET_DEADLINE)).await.map(drop)
    }

    /// Stops the driver's process, so that a call which is sent now does not begin; only [`Self::kill_driver`] ends it.
    pub async fn freeze_driver(&self) -> Result<()> {
        self.run(&["killall", "-STOP", DRIVER]).await.map(drop)
    }

    /// `kill -9` of the driver; returns when a new one answers on the socket.
    pub async fn kill_driver(&self) -> Result<()> {
        let killed = self.send_kill().await?;
        self.until_replaced(&killed).await
    }

    /// `kill -9` of the driver; gives its process id. Its container ends with it: containerd kills the programs that it
    /// started, but one that waits for a disk goes only when the disk answers.
    pub async fn send_kill(&self) -> Result<String> {
        let process = self.driver_process().await?;
        self.run(&["kill", "-KILL", &process]).await.context("kill the driver")?;
        Ok(process)
    }

    /// Waits until kubelet has started another driver than `killed` and it answers on the socket.
    pub async fn until_replaced(&self, killed: &str) -> Result<()> {
        until("a new driver process", Deadline::PodStart, async || {
            let process = self.driver_process().await?;
            Ok(if process == killed { Err("the old one".to_owned()) } else { Ok(()) })
        })
        .await?;
        until("the new driver to answer on its socket", Deadline::Reaction, async || {
            let ask = timed(NodeGetCapabilitiesRequest {}, SHORT_DEADLINE);
            let answer = self.client.clone().node_get_capabilities(ask).await;
            Ok(answer.map(drop).map_err(|status| format!("{status:?}")))
        })
        .await
    }

    /// The driver's process id in the worker.
    async fn driver_process(&self) -> Result<String> {
        Ok(self.run(&["pidof", DRIVER]).await?.trim().to_owned())
    }

    /// Whether the driver sees the processes of the whole worker, or only those of its container.
    pub async fn sees_all_processes(&self) -> Result<bool> {
        let script = format!("for pid in 1 $(pidof {DRIVER}); do readlink /proc/$pid/ns/pid; done");
        let namespaces = self.run(&["sh", "-c", &script]).await?;
        let (first, own) = namespaces.trim().split_once('\n').context("not two namespaces")?;
        Ok(first == own)
    }

    /// The name that the worker's kernel gave to a plugged SCSI disk.
    pub async fn kernel_name(&self, disk: &BareDisk<'_>) -> Result<String> {
        until("the disk in the worker", Deadline::Reaction, async || {
            Ok(self.seen_name(disk).await?.ok_or_else(|| "no disk".to_owned()))
        })
        .await
    }

    /// Waits until the worker's kernel no longer shows a SCSI disk that was taken out.
    pub async fn until_unseen(&self, disk: &BareDisk<'_>) -> Result<()> {
        until("the disk to be gone from the worker", Deadline::Reaction, async || {
            Ok(self.seen_name(disk).await?.map_or(Ok(()), Err))
        })
        .await
    }

    /// The name under which the worker's kernel shows a SCSI disk now.
    async fn seen_name(&self, disk: &BareDisk<'_>) -> Result<Option<String>> {
        let script = format!("grep -l {} /sys/block/*/device/vpd_pg80 | cut -d/ -f4", disk.serial());
        let name = self.run(&["sh", "-c", &script]).await?.trim().to_owned();
        Ok((!name.is_empty()).then_some(name))
    }

    /// Waits until the worker's kernel shows that many virtio disks with this serial.
    pub async fn until_seen(&self, serial: &str, disks: usize) -> Result<()> {
        let script = format!("grep -l {serial} /sys/block/vd*/serial | wc -l");
        until(&format!("{disks} disks in the worker"), Deadline::Reaction, async || {
            let seen = self.run(&["sh", "-c", &script]).await?.trim().to_owned();
            Ok(if seen == disks.to_string() { Ok(()) } else { Err(seen) })
        })
        .await
    }

    /// Waits until an mkfs runs in the worker for each of these blank disks, which the driver reads before.
    pub async fn until_formatting(&self, disks: &[&BareDisk<'_>]) -> Result<()> {
        let programs = disks.len();
        let deadline = Deadline::Reading(disks.iter().map(|disk| disk.bytes()).sum());
        until(&format!("{programs} running mkfs in the worker"), deadline, async || {
            let seen = self.run(&["sh", "-c", "pidof mkfs.ext4 mkfs.xfs | wc -w"]).await?.trim().to_owned();
            if seen == programs.to_string() {
                return Ok(Ok(()));
            }
            let probing =
                self.run(&["sh", "-c", "pidof blkid | wc -w; cut -d ' ' -f 1-3 /proc/loadavg"]).await?;
            Ok(Err(format!("{seen}; blkid and load: {}", probing.trim().replace('\n', ", "))))
        })
        .await
    }

    /// Starts a process in the worker that goes on.
    pub async fn spawn(&self, argv: &[&str]) -> Result<()> {
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        let log = "/var/log/test-process.log".to_owned();
        self.fixture.control.ask(&Ask::Spawn { worker: self.worker.to_owned(), argv, log }).await.map(drop)
    }

    /// Runs a command in the worker; what it printed.
    pub async fn run(&self, argv: &[&str]) -> Result<String> {
        let output = self.fixture.control.run(self.worker, argv).await?;
        if output.code != 0 {
            bail!("expected {argv:?} to succeed in {}, saw: {}{}", self.worker, output.stdout, output.stderr);
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
pub fn staging(volume: &Volume) -> String {
    format!("/var/lib/kubelet/plugins/kubernetes.io/csi/csi.kubevirt.io/{}/globalmount", volume.volume_id)
}

/// Where [`NodeSocket::publish`] publishes.
pub fn target(volume: &Volume) -> String {
    format!("{}-target", staging(volume))
}
