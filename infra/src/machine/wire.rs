//! The fields of VM and VMI that we read, as KubeVirt writes them, and how they become the types of `machine`.

use serde::Deserialize;

use super::{
    RunStrategy, VirtualMachine, VirtualMachineInstance, VmiPhase, Volume, VolumeRequest, VolumeSource,
    VolumeStatus,
};
use crate::object::{Metadata, ObjectName, null_as_default};

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct WireVm {
    metadata: Metadata,
    spec: WireVmSpec,
    #[serde(deserialize_with = "null_as_default")]
    status: WireVmStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireVmSpec {
    run_strategy: Option<String>,
    running: Option<bool>,
    template: WireTemplate,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireTemplate {
    spec: WireVmiSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireVmiSpec {
    #[serde(deserialize_with = "null_as_default")]
    volumes: Vec<WireVolume>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireVolume {
    name: String,
    data_volume: Option<WireSource>,
    persistent_volume_claim: Option<WireSource>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireSource {
    name: String,
    claim_name: String,
    hotpluggable: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireVmStatus {
    printable_status: String,
    #[serde(deserialize_with = "null_as_default")]
    volume_requests: Vec<WireRequest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireRequest {
    add_volume_options: Option<WireAdd>,
    remove_volume_options: Option<WireRemove>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireAdd {
    name: String,
    volume_source: WireVolume,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireRemove {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct WireVmi {
    metadata: Metadata,
    spec: WireVmiSpec,
    #[serde(deserialize_with = "null_as_default")]
    status: WireVmiStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireVmiStatus {
    phase: String,
    #[serde(deserialize_with = "null_as_default")]
    volume_status: Vec<WireVolumeStatus>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireVolumeStatus {
    name: String,
    phase: String,
    reason: String,
    message: String,
    target: String,
    hotplug_volume: Option<serde::de::IgnoredAny>,
    persistent_volume_claim_info: Option<WireSource>,
}

impl WireVolume {
    fn source(&self) -> (VolumeSource, bool) {
        match (&self.data_volume, &self.persistent_volume_claim) {
            (Some(source), _) => (VolumeSource::DataVolume(source.name.clone()), source.hotpluggable),
            (None, Some(source)) => (VolumeSource::Claim(source.claim_name.clone()), source.hotpluggable),
            (None, None) => (VolumeSource::Other, false),
        }
    }
}

impl From<WireVolume> for Volume {
    fn from(wire: WireVolume) -> Self {
        let (source, hotpluggable) = wire.source();
        Self { name: wire.name, source, hotpluggable }
    }
}

impl From<WireVm> for VirtualMachine {
    fn from(wire: WireVm) -> Self {
        let automatic = match wire.spec.run_strategy.as_deref() {
            Some(strategy) => matches!(strategy, "Always" | "RerunOnFailure"),
            None => wire.spec.running == Some(true),
        };
        let requests = wire.status.volume_requests.into_iter().flat_map(|request| {
            let add = request
                .add_volume_options
                .map(|add| VolumeRequest::Add { source: add.volume_source.source().0, name: add.name });
            let remove =
                request.remove_volume_options.map(|remove| VolumeRequest::Remove { name: remove.name });
            [add, remove].into_iter().flatten()
        });
        Self {
            name: wire.metadata.name,
            uid: wire.metadata.uid,
            deleting: wire.metadata.deletion_timestamp.is_some(),
            run_strategy: if automatic { RunStrategy::Automatic } else { RunStrategy::OnDemand },
            printable_status: wire.status.printable_status,
            volumes: wire.spec.template.spec.volumes.into_iter().map(Into::into).collect(),
            requests: requests.collect(),
        }
    }
}

impl From<WireVmi> for VirtualMachineInstance {
    fn from(wire: WireVmi) -> Self {
        let owner = wire.metadata.owner_references.iter().find(|o| o.kind == "VirtualMachine");
        let phase = match wire.status.phase.as_str() {
            "" | "Pending" | "Scheduling" | "Scheduled" => VmiPhase::Starting,
            "Running" => VmiPhase::Running,
            "Succeeded" | "Failed" => VmiPhase::Ended,
            _ => VmiPhase::Unknown(wire.status.phase),
        };
        Self {
            owner: owner.and_then(|o| ObjectName::parse(&o.name)),
            name: wire.metadata.name,
            uid: wire.metadata.uid,
            deleting: wire.metadata.deletion_timestamp.is_some(),
            phase,
            volumes: wire.spec.volumes.into_iter().map(Into::into).collect(),
            status: wire.status.volume_status.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<WireVolumeStatus> for VolumeStatus {
    fn from(wire: WireVolumeStatus) -> Self {
        Self {
            name: wire.name,
            phase: wire.phase.into(),
            reason: wire.reason,
            message: wire.message,
            target: wire.target,
            hotplug: wire.hotplug_volume.is_some(),
            claim: wire.persistent_volume_claim_info.map(|info| info.claim_name),
        }
    }
}
