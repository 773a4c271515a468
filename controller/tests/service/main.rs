//! The services on a real socket, over a fake infra API under the real client.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod clones;
mod expand;
mod fake_infra;
mod fake_resizer;
mod filesystems;
mod lifecycle;
mod moved;
mod node_ids;
mod parameters;
mod publish;
mod snapshots;
mod unpublish;
mod whose_vm;

use std::{collections::BTreeMap, time::Duration};

use controller::{Controller, ControllerSettings, StorageClassPolicy};
use csi_proto::v1::{
    self as csi,
    controller_client::ControllerClient,
    controller_server::ControllerServer,
    identity_client::IdentityClient,
    identity_server::IdentityServer,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use fake_infra::{FakeInfra, LABEL, NAMESPACE};
use infra::{Infra, WriteRate};
use serving::Tasks;
use tempfile::TempDir;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Server},
};

/// A served controller and its client.
struct Fixture {
    client: ControllerClient<Channel>,
    channel: Channel,
    controller: Controller,
    _directory: TempDir,
}

fn controller_over(fake: &FakeInfra) -> Controller {
    controller_of(fake, &Tasks::default())
}

/// A controller whose long-lived tasks `tasks` owns.
fn controller_of(fake: &FakeInfra, tasks: &Tasks) -> Controller {
    controller_with(fake, tasks, StorageClassPolicy::default())
}

fn controller_with(fake: &FakeInfra, tasks: &Tasks, storage_classes: StorageClassPolicy) -> Controller {
    controller_demanding(fake, tasks, storage_classes, BTreeMap::new())
}

/// A controller that gives volumes only to VMs with `vm_labels`.
fn controller_demanding(
    fake: &FakeInfra,
    tasks: &Tasks,
    storage_classes: StorageClassPolicy,
    vm_labels: BTreeMap<String, String>,
) -> Controller {
    controller_using(infra_demanding(fake, tasks, vm_labels), storage_classes, tasks)
}

fn infra_demanding(fake: &FakeInfra, tasks: &Tasks, vm_labels: BTreeMap<String, String>) -> Infra {
    let settings = infra::InfraSettings {
        kubeconfig: None,
        namespace: NAMESPACE.into(),
        labels: [(LABEL.0.to_owned(), LABEL.1.to_owned())].into(),
        volume_prefix: "pvc".into(),
        vm_labels,
        write_rate: WriteRate::default(),
    };
    Infra::from_client(fake.client(), settings, tasks).unwrap()
}

fn controller_using(infra: Infra, storage_classes: StorageClassPolicy, tasks: &Tasks) -> Controller {
    let driver_name = "csi.kubevirt.io".into();
    let settings = ControllerSettings { driver_name, vendor_version: "0.1.0".into(), storage_classes };
    Controller::new(infra, settings, tasks)
}

impl Fixture {
    async fn new(fake: &FakeInfra) -> Self {
        Self::serving(controller_over(fake)).await
    }

    /// With the text of `INFRA_STORAGE_CLASS_ENFORCEMENT`.
    async fn with_policy(fake: &FakeInfra, text: &str) -> Self {
        let (policy, _) = StorageClassPolicy::parse(text).unwrap();
        Self::serving(controller_with(fake, &Tasks::default(), policy)).await
    }

    async fn serving(controller: Controller) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("csi.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let server = Server::builder()
            .add_service(IdentityServer::new(controller.identity()))
            .add_service(ControllerServer::new(controller.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
        let channel = tonic::transport::Endpoint::try_from(format!("unix://{}", path.display()))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self { client: ControllerClient::new(channel.clone()), channel, controller, _directory: directory }
    }

    async fn create(&self, request: csi::CreateVolumeRequest) -> Result<csi::Volume, Status> {
        let answer = self.client.clone().create_volume(request).await?;
        Ok(answer.into_inner().volume.unwrap())
    }

    async fn publish(&self, volume: &str, node: &str) -> Result<(), Status> {
        self.publish_within(volume, node, Duration::from_secs(10)).await
    }

    async fn publish_within(&self, volume: &str, node: &str, timeout: Duration) -> Result<(), Status> {
        let mut request = Request::new(csi::ControllerPublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            volume_capability: Some(capability(false, Mode::SingleNodeWriter)),
            ..Default::default()
        });
        request.set_timeout(timeout);
        self.client.clone().controller_publish_volume(request).await.map(drop)
    }

    async fn unpublish(&self, volume: &str, node: &str) -> Result<(), Status> {
        let mut request = Request::new(csi::ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            ..Default::default()
        });
        request.set_timeout(Duration::from_secs(10));
        self.client.clone().controller_unpublish_volume(request).await.map(drop)
    }

    async fn delete(&self, volume: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest { volume_id: volume.into(), ..Default::default() };
        self.client.clone().delete_volume(request).await.map(drop)
    }
}

fn capability(block: bool, mode: Mode) -> csi::VolumeCapability {
    let access =
        if block { AccessType::Block(BlockVolume {}) } else { AccessType::Mount(MountVolume::default()) };
    csi::VolumeCapability { access_type: Some(access), access_mode: Some(AccessMode { mode: mode.into() }) }
}

fn new_volume(name: &str) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
        volume_capabilities: vec![capability(false, Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

/// Asserts code and text of a failure.
fn assert_fails(result: Result<(), Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(text), "{:?} lacks {text:?}", status.message());
    assert!(status.details().is_empty());
}

#[tokio::test]
async fn identity_and_capabilities() {
    let fixture = Fixture::new(&FakeInfra::default()).await;
    let mut identity = IdentityClient::new(fixture.channel.clone());
    let info = identity.get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.name.as_str(), info.vendor_version.as_str()), ("csi.kubevirt.io", "0.1.0"));
    assert_eq!(identity.probe(csi::ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    let mut client = fixture.client.clone();
    let capabilities =
        client.controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {}).await.unwrap();
    assert_eq!(capabilities.into_inner().capabilities.len(), 6);
    let modified = client.controller_modify_volume(csi::ControllerModifyVolumeRequest::default()).await;
    assert_eq!(modified.unwrap_err().code(), Code::Unimplemented);
}
