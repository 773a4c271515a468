//! What one CSI request is about, for span, log line and metrics: the RPC's name and the ids it carries. Nothing else
//! is taken out of a request; its `secrets` are decoded with the rest of it and dropped here.

use csi_proto::v1 as csi;
use prost::Message;
use serving::RpcSubject;

/// Volume (or snapshot) and node of a request.
type Ids = (Option<String>, Option<String>);

/// The method of what is no RPC of ours.
const UNKNOWN: &str = "unknown";

struct Rpc {
    name: &'static str,
    /// Asked all the time, see [`RpcSubject::routine`].
    routine: bool,
    ids: fn(&[u8]) -> Ids,
}

/// Every RPC of the services that the driver may serve. A name not in this table never becomes a metric label.
const RPCS: [Rpc; 26] = [
    routine("GetPluginInfo", |_| (None, None)),
    routine("GetPluginCapabilities", |_| (None, None)),
    routine("Probe", |_| (None, None)),
    rpc("CreateVolume", |m| ids(m, |r: csi::CreateVolumeRequest| (Some(r.name), None))),
    rpc("DeleteVolume", |m| volume(m, |r: csi::DeleteVolumeRequest| r.volume_id)),
    rpc("ControllerPublishVolume", |m| {
        ids(m, |r: csi::ControllerPublishVolumeRequest| (Some(r.volume_id), Some(r.node_id)))
    }),
    rpc("ControllerUnpublishVolume", |m| {
        ids(m, |r: csi::ControllerUnpublishVolumeRequest| (Some(r.volume_id), Some(r.node_id)))
    }),
    rpc("ValidateVolumeCapabilities", |m| volume(m, |r: csi::ValidateVolumeCapabilitiesRequest| r.volume_id)),
    rpc("ListVolumes", |_| (None, None)),
    rpc("GetCapacity", |_| (None, None)),
    routine("ControllerGetCapabilities", |_| (None, None)),
    rpc("CreateSnapshot", |m| volume(m, |r: csi::CreateSnapshotRequest| r.source_volume_id)),
    rpc("DeleteSnapshot", |m| volume(m, |r: csi::DeleteSnapshotRequest| r.snapshot_id)),
    rpc("ListSnapshots", |_| (None, None)),
    rpc("GetSnapshot", |m| volume(m, |r: csi::GetSnapshotRequest| r.snapshot_id)),
    rpc("ControllerExpandVolume", |m| volume(m, |r: csi::ControllerExpandVolumeRequest| r.volume_id)),
    rpc("ControllerGetVolume", |m| volume(m, |r: csi::ControllerGetVolumeRequest| r.volume_id)),
    rpc("ControllerModifyVolume", |m| volume(m, |r: csi::ControllerModifyVolumeRequest| r.volume_id)),
    rpc("NodeStageVolume", |m| volume(m, |r: csi::NodeStageVolumeRequest| r.volume_id)),
    rpc("NodeUnstageVolume", |m| volume(m, |r: csi::NodeUnstageVolumeRequest| r.volume_id)),
    rpc("NodePublishVolume", |m| volume(m, |r: csi::NodePublishVolumeRequest| r.volume_id)),
    rpc("NodeUnpublishVolume", |m| volume(m, |r: csi::NodeUnpublishVolumeRequest| r.volume_id)),
    routine("NodeGetVolumeStats", |m| volume(m, |r: csi::NodeGetVolumeStatsRequest| r.volume_id)),
    rpc("NodeExpandVolume", |m| volume(m, |r: csi::NodeExpandVolumeRequest| r.volume_id)),
    routine("NodeGetCapabilities", |_| (None, None)),
    rpc("NodeGetInfo", |_| (None, None)),
];

/// Every value of the label `method`.
#[cfg(test)]
pub fn methods() -> impl Iterator<Item = &'static str> {
    RPCS.iter().map(|rpc| rpc.name).chain([UNKNOWN])
}

const fn rpc(name: &'static str, ids: fn(&[u8]) -> Ids) -> Rpc {
    Rpc { name, routine: false, ids }
}

const fn routine(name: &'static str, ids: fn(&[u8]) -> Ids) -> Rpc {
    Rpc { name, routine: true, ids }
}

fn volume<R: Message + Default>(message: &[u8], id: impl FnOnce(R) -> String) -> Ids {
    ids(message, |request| (Some(id(request)), None))
}

/// A message that is no such request has no ids; the service answers it with the fitting error.
fn ids<R: Message + Default>(message: &[u8], ids: impl FnOnce(R) -> Ids) -> Ids {
    R::decode(message).map(ids).unwrap_or_default()
}

/// Takes name and ids out of the request `message` of the RPC at `path` (`/csi.v1.Service/Method`).
pub fn subject(path: &str, message: &[u8]) -> RpcSubject {
    let method =
        path.strip_prefix("/csi.v1.").and_then(|rest| rest.split_once('/')).map(|(_, method)| method);
    let known = RPCS.iter().find(|rpc| Some(rpc.name) == method);
    known.map_or(RpcSubject { method: UNKNOWN, ..RpcSubject::default() }, |rpc| {
        let (volume_id, node_id) = (rpc.ids)(message);
        let given = |id: Option<String>| id.filter(|id| !id.is_empty());
        let (volume_id, node_id) = (given(volume_id), given(node_id));
        RpcSubject { method: rpc.name, volume_id, node_id, routine: rpc.routine }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_ids_and_nothing_else() {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: "pvc-1".to_owned(),
            node_id: "hcp/worker-1".to_owned(),
            secrets: [("password".to_owned(), "s3cr3t".to_owned())].into(),
            volume_context: [("serial".to_owned(), "abc".to_owned())].into(),
            ..Default::default()
        };
        let subject = subject("/csi.v1.Controller/ControllerPublishVolume", &request.encode_to_vec());
        let wanted = RpcSubject {
            method: "ControllerPublishVolume",
            volume_id: Some("pvc-1".to_owned()),
            node_id: Some("hcp/worker-1".to_owned()),
            routine: false,
        };
        assert_eq!(subject, wanted);
    }

    #[test]
    fn names_the_volume_of_each_request_that_has_one() {
        // `volume_id`, `name`, `source_volume_id` and `snapshot_id` are field 1 of these messages.
        let message = csi::DeleteVolumeRequest { volume_id: "pvc-1".to_owned(), ..Default::default() };
        for path in [
            "Controller/CreateVolume",
            "Controller/DeleteVolume",
            "Controller/ControllerUnpublishVolume",
            "Controller/ControllerExpandVolume",
            "Controller/CreateSnapshot",
            "Controller/DeleteSnapshot",
            "Node/NodeStageVolume",
            "Node/NodeUnstageVolume",
            "Node/NodePublishVolume",
            "Node/NodeUnpublishVolume",
            "Node/NodeGetVolumeStats",
            "Node/NodeExpandVolume",
        ] {
            let subject = subject(&format!("/csi.v1.{path}"), &message.encode_to_vec());
            assert!(path.ends_with(subject.method), "{path}: {subject:?}");
            assert_eq!(subject.volume_id.as_deref(), Some("pvc-1"), "{path}");
        }
    }

    #[test]
    fn a_name_that_is_not_csi_becomes_unknown() {
        for path in ["/csi.v1.Controller/Invented", "/other.v1.Service/CreateVolume", "", "/"] {
            assert_eq!(subject(path, &[]).method, "unknown", "{path}");
        }
        assert_eq!(subject("/csi.v1.Identity/Probe", &[]).method, "Probe");
    }

    #[test]
    fn a_broken_message_has_no_ids() {
        let subject = subject("/csi.v1.Controller/DeleteVolume", &[0xff; 7]);
        assert_eq!((subject.method, subject.volume_id), ("DeleteVolume", None));
    }
}
