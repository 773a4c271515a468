//! Requests of the CSI Controller service: the first byte chooses the RPC, the rest is the message. The infra cluster has a
//! volume, a VM and a snapshot of this guest, and foreign ones; [`InfraApi`] judges each call.
#![no_main]

use csi_proto::v1::controller_server::Controller as _;
use fuzz::{
    assert_bounded, chosen,
    infra_api::{InfraApi, LABEL, RESOURCES, run, within_deadline},
};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use serde_json::json;
use tonic::{Code, Response, Status};

fuzz_target!(|input: &[u8]| {
    if let Some((rpc, message)) = chosen(input) {
        run(serve(rpc, message));
    }
});

async fn serve(rpc: u8, message: &[u8]) {
    let api = InfraApi::default();
    populate(&api);
    let controller = api.controller();
    macro_rules! call {
        ($method:ident) => {
            if let Ok(message) = Message::decode(message) {
                judge(controller.$method(within_deadline(message)).await);
            }
        };
    }
    match rpc {
        b'c' => {
            let Ok(message) = csi_proto::v1::CreateVolumeRequest::decode(message) else { return };
            let asked = message.capacity_range;
            if let Some(created) = judge(controller.create_volume(within_deadline(message)).await) {
                let volume = created.volume.expect("a volume");
                assert!(infra::is_dns_label(&volume.volume_id), "{volume:?}");
                let least = asked.map_or(0, |range| range.required_bytes);
                assert!(volume.capacity_bytes >= least.max(0), "{volume:?} is smaller than {least}");
            }
        }
        b'd' => call!(delete_volume),
        b'p' => call!(controller_publish_volume),
        b'u' => call!(controller_unpublish_volume),
        b'v' => call!(validate_volume_capabilities),
        b'e' => call!(controller_expand_volume),
        b's' => call!(create_snapshot),
        b'x' => call!(delete_snapshot),
        b'l' => call!(list_snapshots),
        b'g' => call!(get_snapshot),
        _ => {}
    }
}

/// No request is answered as if the driver itself were broken, and no answer is longer than promised.
fn judge<T>(answer: Result<Response<T>, Status>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) => {
            assert!(!matches!(status.code(), Code::Unknown | Code::DataLoss | Code::Ok), "{status:?}");
            assert_bounded(status.message());
            None
        }
    }
}

fn populate(api: &InfraApi) {
    let [data_volumes, claims, vms, vmis, snapshots] = RESOURCES;
    let ours = json!({LABEL.0: LABEL.1});
    for (name, labels) in [("pvc-1", &ours), ("pvc-2", &json!({LABEL.0: "other"})), ("rootdisk", &ours)] {
        let (phase, size) = ("Succeeded", json!({"requests": {"storage": "1Gi"}}));
        api.put(data_volumes, name, json!({
            "metadata": {"uid": "5d307ca9-b3ef-428c-8861-06e72d69f223", "labels": labels},
            "spec": {"source": {"blank": {}}, "storage": {"accessModes": ["ReadWriteOnce"], "resources": size}},
            "status": {"phase": phase},
        }));
        api.put(
            claims,
            name,
            json!({
                "metadata": {"uid": "c", "labels": labels, "resourceVersion": "1"},
                "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "resources": size},
                "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
            }),
        );
        api.put(
            snapshots,
            name,
            json!({
                "metadata": {"uid": "s", "labels": labels, "creationTimestamp": "2026-11-29T10:00:00Z"},
                "spec": {"source": {"persistentVolumeClaimName": name}},
                "status": {"readyToUse": true, "restoreSize": "1Gi", "creationTime": "2026-11-29T10:00:00Z"},
            }),
        );
    }
    for (name, labels) in [("w1", json!({})), ("w2", json!({LABEL.0: "other"}))] {
        let volume = json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}});
        let volumes = if name == "w1" { json!([]) } else { json!([volume]) };
        api.put(
            vms,
            name,
            json!({
                "metadata": {"uid": name, "labels": labels},
                "spec": {"runStrategy": "Always", "template": {"spec": {"volumes": volumes}}},
            }),
        );
        api.put(
            vmis,
            name,
            json!({
                "metadata": {"uid": name, "labels": labels}, "spec": {"volumes": volumes},
                "status": {"phase": "Running", "volumeStatus": []},
            }),
        );
    }
}
