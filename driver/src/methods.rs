//! The RPCs of CSI, by their paths: for the span, the log line and the metrics.

use serving::RpcMethod;

/// For a path that is no RPC of CSI.
const UNKNOWN: RpcMethod = rpc("unknown");

/// Every RPC of the services that the driver may serve. A name not in this table never becomes a metric label.
const RPCS: [RpcMethod; 26] = [
    routine("GetPluginInfo"),
    routine("GetPluginCapabilities"),
    routine("Probe"),
    rpc("CreateVolume"),
    rpc("DeleteVolume"),
    rpc("ControllerPublishVolume"),
    rpc("ControllerUnpublishVolume"),
    rpc("ValidateVolumeCapabilities"),
    rpc("ListVolumes"),
    rpc("GetCapacity"),
    routine("ControllerGetCapabilities"),
    rpc("CreateSnapshot"),
    rpc("DeleteSnapshot"),
    rpc("ListSnapshots"),
    rpc("GetSnapshot"),
    rpc("ControllerExpandVolume"),
    rpc("ControllerGetVolume"),
    rpc("ControllerModifyVolume"),
    rpc("NodeStageVolume"),
    rpc("NodeUnstageVolume"),
    rpc("NodePublishVolume"),
    rpc("NodeUnpublishVolume"),
    routine("NodeGetVolumeStats"),
    rpc("NodeExpandVolume"),
    routine("NodeGetCapabilities"),
    rpc("NodeGetInfo"),
];

/// Every value of the label `method`.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    RPCS.iter().chain([&UNKNOWN]).map(|method| method.name)
}

const fn rpc(name: &'static str) -> RpcMethod {
    RpcMethod { name, routine: false }
}

const fn routine(name: &'static str) -> RpcMethod {
    RpcMethod { name, routine: true }
}

/// The RPC at `path` (`/csi.v1.Service/Method`).
pub fn method(path: &str) -> RpcMethod {
    let name = path.strip_prefix("/csi.v1.").and_then(|rest| rest.split_once('/')).map(|(_, name)| name);
    RPCS.into_iter().find(|rpc| Some(rpc.name) == name).unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests;
