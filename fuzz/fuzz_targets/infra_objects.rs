//! Objects of the infra cluster as the driver reads them: a `DataVolume`, its claim, a VM, its VMI and a `VolumeSnapshot`, one
//! JSON document on each line. Every RPC is made about them; [`InfraApi`] judges each call.
#![no_main]

use csi_proto::v1::{
    self as csi,
    controller_server::Controller as _,
    volume_capability::{AccessMode, AccessType, BlockVolume, access_mode::Mode},
};
use fuzz::{
    assert_bounded,
    infra_api::{InfraApi, RESOURCES, run, within_deadline},
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tonic::{Code, Status};

const NAMES: [&str; 5] = ["pvc-1", "pvc-1", "w1", "w1", "pvc-s"];

fuzz_target!(|input: &[u8]| {
    let api = InfraApi::default();
    let documents = input.split(|byte| *byte == b'\n');
    let mut is_any = false;
    for ((resource, name), document) in RESOURCES.into_iter().zip(NAMES).zip(documents) {
        if let Ok(object @ Value::Object(_)) = serde_json::from_slice(document) {
            api.put(resource, name, object);
            is_any = true;
        }
    }
    if is_any {
        run(ask_everything(&api));
    }
});

async fn ask_everything(api: &InfraApi) {
    let controller = api.controller();
    let (volume_id, node_id, snapshot_id) =
        (|| "pvc-1".to_owned(), || "infra/w1".to_owned(), || "pvc-s".to_owned());
    let capability = csi::VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    };
    let range = |bytes| Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 });
    judge(
        controller
            .validate_volume_capabilities(within_deadline(csi::ValidateVolumeCapabilitiesRequest {
                volume_id: volume_id(),
                volume_capabilities: vec![capability.clone()],
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .controller_publish_volume(within_deadline(csi::ControllerPublishVolumeRequest {
                volume_id: volume_id(),
                node_id: node_id(),
                volume_capability: Some(capability.clone()),
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .controller_expand_volume(within_deadline(csi::ControllerExpandVolumeRequest {
                volume_id: volume_id(),
                capacity_range: range(2 << 30),
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .create_volume(within_deadline(csi::CreateVolumeRequest {
                name: volume_id(),
                capacity_range: range(1 << 30),
                volume_capabilities: vec![capability.clone()],
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .create_volume(within_deadline(csi::CreateVolumeRequest {
                name: "pvc-restored".into(),
                volume_capabilities: vec![capability],
                volume_content_source: Some(csi::VolumeContentSource {
                    r#type: Some(csi::volume_content_source::Type::Snapshot(
                        csi::volume_content_source::SnapshotSource { snapshot_id: snapshot_id() },
                    )),
                }),
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .create_snapshot(within_deadline(csi::CreateSnapshotRequest {
                name: "snapshot-1".into(),
                source_volume_id: volume_id(),
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .get_snapshot(within_deadline(csi::GetSnapshotRequest {
                snapshot_id: snapshot_id(),
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .list_snapshots(within_deadline(csi::ListSnapshotsRequest {
                snapshot_id: snapshot_id(),
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .controller_unpublish_volume(within_deadline(csi::ControllerUnpublishVolumeRequest {
                volume_id: volume_id(),
                node_id: node_id(),
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .controller_unpublish_volume(within_deadline(csi::ControllerUnpublishVolumeRequest {
                volume_id: volume_id(),
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .delete_snapshot(within_deadline(csi::DeleteSnapshotRequest {
                snapshot_id: snapshot_id(),
                ..Default::default()
            }))
            .await,
    );
    judge(
        controller
            .delete_volume(within_deadline(csi::DeleteVolumeRequest {
                volume_id: volume_id(),
                ..Default::default()
            }))
            .await,
    );
}

/// What infra's objects say is never taken for a fault of the driver.
fn judge<T>(answer: Result<T, Status>) {
    if let Err(status) = answer {
        assert!(!matches!(status.code(), Code::Unknown | Code::DataLoss | Code::Ok), "{status:?}");
        assert_bounded(status.message());
    }
}
