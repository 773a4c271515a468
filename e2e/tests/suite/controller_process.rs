//! A controller process of the test's own, as the ServiceAccount that `deploy/` gives the controller, beside the installed
//! one: its socket is where tests call RPCs directly.

mod content;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use bench::{
    command::goal::Plan,
    paths::{self, RUNTIME},
    scenario::{Deadline, HCP_NAMESPACE, until},
    supervise::{Process, ProcessSpec, Supervisor},
};
use csi_proto::v1::{
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateVolumeRequest,
    DeleteVolumeRequest, ValidateVolumeCapabilitiesRequest, Volume, VolumeCapability,
    controller_client::ControllerClient,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use fault_proxy::KubeProxy;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams, config::Kubeconfig};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

pub use self::content::Content;
use crate::fixture::Fixture;

/// The controller's ServiceAccount, named as in kubevirt/csi-driver.
const SERVICE_ACCOUNT: &str = "kubevirt-csi";

/// The labels that the bench's installation gives this guest's infra objects (`e2e/installation/infra`).
pub const INFRA_LABELS: &str = "hypershift.openshift.io/infra-id=guest";

/// Bytes of a test's volume: more than the 300 MiB that mkfs.xfs requires, and little else, because a blank disk is read as a whole
/// before it is formatted, which takes an emulated processor 10 s for each GiB.
pub const VOLUME_BYTES: i64 = 320 << 20;

/// Deadline of an RPC that should succeed, the sidecars' `--timeout=3m`.
pub const RPC_DEADLINE: Duration = Duration::from_mins(3);

/// A running controller; killed when dropped.
pub struct Controller {
    process: Process,
    socket: PathBuf,
    http: SocketAddr,
    kubeconfig: PathBuf,
    channel: Channel,
    client: ControllerClient<Channel>,
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.process.signal(nix::sys::signal::Signal::SIGKILL);
    }
}

impl Controller {
    /// Starts a controller named after the test and `suffix`, and waits for its socket.
    pub async fn start(fixture: &Fixture, suffix: &str) -> Result<Self> {
        Self::start_with(fixture, suffix, &service_account_kubeconfig(fixture).await?).await
    }

    /// The same, which reaches infra through `proxy`.
    pub async fn behind(fixture: &Fixture, suffix: &str, proxy: &KubeProxy) -> Result<Self> {
        Self::start_with(fixture, suffix, proxy.kubeconfig()).await
    }

    /// The same for a guest that only the test has: the lists of the others do not show its volumes and snapshots, nor its
    /// lists theirs.
    pub async fn of_own_guest(fixture: &Fixture, suffix: &str) -> Result<Self> {
        let labels = format!("test={}", fixture.word);
        Self::start_of(fixture, suffix, &service_account_kubeconfig(fixture).await?, &labels, &[]).await
    }

    /// The same with the operator's rules for classes (`--infra-storage-class-enforcement`).
    pub async fn enforcing(fixture: &Fixture, suffix: &str, rules: &str) -> Result<Self> {
        let flag = format!("--infra-storage-class-enforcement={rules}");
        let access = service_account_kubeconfig(fixture).await?;
        Self::start_of(fixture, suffix, &access, INFRA_LABELS, &[flag]).await
    }

    /// The same with a kubeconfig of the test's own.
    pub async fn start_with(fixture: &Fixture, suffix: &str, access: &Kubeconfig) -> Result<Self> {
        Self::start_of(fixture, suffix, access, INFRA_LABELS, &[]).await
    }

    async fn start_of(
        fixture: &Fixture,
        suffix: &str,
        access: &Kubeconfig,
        labels: &str,
        flags: &[String],
    ) -> Result<Self> {
        let name = format!("test-{}-{suffix}", fixture.word);
        let socket = PathBuf::from(RUNTIME).join(format!("{name}.sock"));
        let kubeconfig = PathBuf::from(RUNTIME).join(format!("{name}.kubeconfig"));
        std::fs::write(&kubeconfig, serde_json::to_vec(access)?)?;
        // A port that was free a moment ago: the program takes an address, not a socket.
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut args = vec![
            format!("--endpoint=unix://{}", socket.display()),
            format!("--infra-cluster-namespace={HCP_NAMESPACE}"),
            format!("--infra-cluster-labels={labels}"),
            format!("--infra-cluster-kubeconfig={}", kubeconfig.display()),
            "--run-node-service=false".to_owned(),
            "--run-controller-service=true".to_owned(),
            format!("--http-endpoint={http}"),
            "--v=5".to_owned(),
        ];
        args.extend_from_slice(flags);
        let spec =
            ProcessSpec { name: name.clone(), program: program(fixture)?, args, ..ProcessSpec::default() };
        let process = Supervisor::new(fixture.run.join("logs")).start(&spec)?;
        let endpoint = Endpoint::try_from(format!("unix:{}", socket.display()))?;
        let channel = until(
            "the controller's socket to accept connections",
            Deadline::Reaction,
            async || match process.ended() {
                Some(status) => Ok(Err(format!("it ended with {status}: {}", process.log_tail(5)))),
                None => Ok(endpoint.connect().await.map_err(|error| format!("{error:?}"))),
            },
        )
        .await?;
        let client = ControllerClient::new(channel.clone());
        Ok(Self { process, socket, http, kubeconfig, channel, client })
    }

    /// Its CSI socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// SIGKILL; returns when it has ended.
    pub async fn kill(&self) {
        self.process.kill().await;
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        self.process.ended().is_none()
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The connection to its CSI socket.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Status and body of a GET from where it serves `/livez`, `/readyz` and `/metrics`.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        // The CSI socket is there before it: this server may only just be starting.
        let mut stream = until("the admin endpoint to accept connections", Deadline::Reaction, async || {
            Ok(TcpStream::connect(self.http).await.map_err(|error| error.to_string()))
        })
        .await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let code = head.split(' ').nth(1).context("no status in the answer")?.parse()?;
        Ok((code, body.to_owned()))
    }

    /// Replaces its kubeconfig by another, atomically as kubelet does with the files of a Secret.
    pub fn swap_kubeconfig(&self, access: &Kubeconfig) -> Result<()> {
        let new = self.kubeconfig.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(access)?)?;
        std::fs::rename(&new, &self.kubeconfig).context("swap the kubeconfig")
    }

    /// CreateVolume of [`VOLUME_BYTES`]; block or ext4.
    pub async fn create(&self, name: &str, capability: VolumeCapability) -> Result<Volume, Status> {
        self.create_within(name, capability, RPC_DEADLINE).await
    }

    /// CreateVolume with a deadline of the test's choice.
    pub async fn create_within(
        &self,
        name: &str,
        capability: VolumeCapability,
        deadline: Duration,
    ) -> Result<Volume, Status> {
        self.create_with(&[], name, capability, deadline).await
    }

    /// CreateVolume of [`VOLUME_BYTES`] with these parameters of a guest StorageClass.
    pub async fn create_of(
        &self,
        parameters: &[(&str, &str)],
        name: &str,
        capability: VolumeCapability,
    ) -> Result<Volume, Status> {
        self.create_with(parameters, name, capability, RPC_DEADLINE).await
    }

    async fn create_with(
        &self,
        parameters: &[(&str, &str)],
        name: &str,
        capability: VolumeCapability,
        deadline: Duration,
    ) -> Result<Volume, Status> {
        let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(csi_proto::v1::CapacityRange {
                required_bytes: VOLUME_BYTES,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![capability],
            parameters: parameters.iter().map(owned).collect(),
            ..CreateVolumeRequest::default()
        };
        let response = self.client.clone().create_volume(timed(request, deadline)).await?;
        response.into_inner().volume.ok_or_else(|| Status::internal("CreateVolume answered no volume"))
    }

    /// ControllerPublishVolume with the sidecars' deadline.
    pub async fn publish(&self, volume: &Volume, machine: &str) -> Result<(), Status> {
        self.publish_within(volume, machine, RPC_DEADLINE).await
    }

    /// ControllerPublishVolume with a deadline of the test's choice.
    pub async fn publish_within(
        &self,
        volume: &Volume,
        machine: &str,
        deadline: Duration,
    ) -> Result<(), Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: node_id(machine),
            volume_capability: Some(block()),
            volume_context: volume.volume_context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        self.client.clone().controller_publish_volume(timed(request, deadline)).await.map(drop)
    }

    /// ControllerUnpublishVolume with the sidecars' deadline.
    pub async fn unpublish(&self, volume: &Volume, machine: &str) -> Result<(), Status> {
        self.unpublish_within(volume, machine, RPC_DEADLINE).await
    }

    /// ControllerUnpublishVolume with a deadline of the test's choice.
    pub async fn unpublish_within(
        &self,
        volume: &Volume,
        machine: &str,
        deadline: Duration,
    ) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: node_id(machine),
            ..ControllerUnpublishVolumeRequest::default()
        };
        self.client.clone().controller_unpublish_volume(timed(request, deadline)).await.map(drop)
    }

    /// DeleteVolume.
    pub async fn delete(&self, volume: &Volume) -> Result<(), Status> {
        self.delete_id(&volume.volume_id).await
    }

    /// DeleteVolume by id.
    pub async fn delete_id(&self, volume_id: &str) -> Result<(), Status> {
        self.delete_within(volume_id, RPC_DEADLINE).await
    }

    /// DeleteVolume by id with a deadline of the test's choice.
    pub async fn delete_within(&self, volume_id: &str, deadline: Duration) -> Result<(), Status> {
        let request =
            DeleteVolumeRequest { volume_id: volume_id.to_owned(), ..DeleteVolumeRequest::default() };
        self.client.clone().delete_volume(timed(request, deadline)).await.map(drop)
    }

    /// `ValidateVolumeCapabilities`: whether `capability` is confirmed.
    pub async fn validate(&self, volume_id: &str, capability: VolumeCapability) -> Result<bool, Status> {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.to_owned(),
            volume_capabilities: vec![capability],
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        let answer = self.client.clone().validate_volume_capabilities(timed(request, RPC_DEADLINE)).await?;
        Ok(answer.into_inner().confirmed.is_some())
    }

    /// Unpublishes from a machine until that is done, then deletes: the end of a test's volume.
    pub async fn discard(&self, volume: &Volume, machine: &str) -> Result<()> {
        self.discard_keeping(volume, machine).await?;
        self.delete(volume).await.context("delete the volume")
    }

    /// Unpublishes from a machine until that is done.
    pub async fn discard_keeping(&self, volume: &Volume, machine: &str) -> Result<()> {
        until("the volume to be detached", Deadline::PodStart, async || {
            Ok(self.unpublish(volume, machine).await.map_err(|status| format!("{status:?}")))
        })
        .await
    }
}

/// A raw block volume for one node.
pub fn block() -> VolumeCapability {
    capability(AccessType::Block(BlockVolume {}))
}

/// A filesystem volume for one node.
pub fn filesystem(fs_type: &str) -> VolumeCapability {
    capability(AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() }))
}

fn capability(access_type: AccessType) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(access_type),
    }
}

/// The node id of a virtual machine of the HCP namespace.
pub fn node_id(machine: &str) -> String {
    format!("{HCP_NAMESPACE}/{machine}")
}

/// A request with a deadline that the server sees (`grpc-timeout`).
pub fn timed<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// The driver that this bench runs.
fn program(fixture: &Fixture) -> Result<PathBuf> {
    Ok(Plan::read(&fixture.run)?.artifacts.programs.path("kubevirt-csi-driver")?.to_path_buf())
}

/// A kubeconfig of the controller's ServiceAccount.
pub async fn service_account_kubeconfig(fixture: &Fixture) -> Result<Kubeconfig> {
    kubeconfig(&service_account_token(fixture, TokenRequestSpec::default()).await?)
}

/// A token of the controller's ServiceAccount.
pub async fn service_account_token(fixture: &Fixture, spec: TokenRequestSpec) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let response = accounts.create_token_request(SERVICE_ACCOUNT, &PostParams::default(), &request).await?;
    response.status.and_then(|status| status.token).context("no token in the answer")
}

/// A kubeconfig of the infra cluster: the administrator's with the user whose token this is.
pub fn kubeconfig(token: &str) -> Result<Kubeconfig> {
    let mut admin = Kubeconfig::read_from(paths::kubeconfig())?;
    admin.clusters.retain(|cluster| cluster.name == "infra");
    let mut admin = serde_json::to_value(admin)?;
    admin["users"] = json!([{"name": "account", "user": {"token": token}}]);
    admin["contexts"] = json!([{"name": "infra", "context": {"cluster": "infra", "user": "account"}}]);
    admin["current-context"] = json!("infra");
    Ok(serde_json::from_value(admin)?)
}
