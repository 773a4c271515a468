//! VM and VMI as KubeVirt writes them: the fields that a program reads. They are never written back, because that would
//! lose every field that they do not have.
//!
//! A missing field and a `null` mean the same everywhere. A value that KubeVirt may add one day is no error.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

use crate::metadata::{Metadata, null_as_default};

/// The API group of VM and VMI.
pub const GROUP: &str = "kubevirt.io";
/// The version of [`GROUP`] that is read.
pub const VERSION: &str = "v1";

/// The fields of a `VirtualMachine`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireVm {
    /// `metadata`.
    #[serde(deserialize_with = "null_as_default")]
    pub metadata: Metadata,
    /// `spec`.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: WireVmSpec,
    /// `status`.
    #[serde(deserialize_with = "null_as_default")]
    pub status: WireVmStatus,
}

/// `spec` of a VM.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireVmSpec {
    /// `runStrategy`. Read it with [`WireVmSpec::strategy`].
    pub run_strategy: Option<RunStrategy>,
    /// `running`, the older field for the same.
    pub running: Option<bool>,
    /// `updateVolumesStrategy`: what KubeVirt does when the source of a volume changes.
    #[serde(deserialize_with = "null_as_default")]
    pub update_volumes_strategy: String,
    /// `template`, from which KubeVirt makes the VMI.
    #[serde(deserialize_with = "null_as_default")]
    pub template: WireTemplate,
}

/// What KubeVirt does with a VM that does not run (kubevirt.io/api, `VirtualMachineRunStrategy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum RunStrategy {
    /// `Always`: starts it again, however it ended.
    Always,
    /// `RerunOnFailure`: starts it again if it failed.
    RerunOnFailure,
    /// `Halted`: keeps it stopped.
    Halted,
    /// `Manual`, `Once` and any later one: leaves it as it is until a client changes it.
    #[default]
    Other,
}

/// `spec.template` of a VM.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireTemplate {
    /// The `spec` of the VMI.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: WireVmiSpec,
}

/// `status` of a VM.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireVmStatus {
    /// `printableStatus`, for people.
    #[serde(deserialize_with = "null_as_default")]
    pub printable_status: String,
    /// `conditions`.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<WireCondition>,
    /// `volumeRequests`: hotplug calls that KubeVirt accepted and has not carried out (gate `HotplugVolumes`).
    #[serde(deserialize_with = "null_as_default")]
    pub volume_requests: Vec<WireVolumeRequest>,
}

/// An item of `volumeRequests`. One of the two fields is set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireVolumeRequest {
    /// `addVolumeOptions`.
    pub add_volume_options: Option<WireAddVolume>,
    /// `removeVolumeOptions`.
    pub remove_volume_options: Option<WireRemoveVolume>,
}

/// `addVolumeOptions`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireAddVolume {
    /// `name` of the volume inside the VM.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// `volumeSource`: what the volume is made of. It has no name of its own.
    #[serde(deserialize_with = "null_as_default")]
    pub volume_source: WireVolume,
}

/// `removeVolumeOptions`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireRemoveVolume {
    /// `name` of the volume inside the VM.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
}

/// The fields of a `VirtualMachineInstance`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireVmi {
    /// `metadata`.
    #[serde(deserialize_with = "null_as_default")]
    pub metadata: Metadata,
    /// `spec`.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: WireVmiSpec,
    /// `status`.
    #[serde(deserialize_with = "null_as_default")]
    pub status: WireVmiStatus,
}

/// `spec` of a VMI, and of a VM's template.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireVmiSpec {
    /// `hostname` of the guest system. Where it is missing, KubeVirt uses the VMI's name.
    pub hostname: Option<String>,
    /// `domain`.
    #[serde(deserialize_with = "null_as_default")]
    pub domain: WireDomain,
    /// `networks`.
    #[serde(deserialize_with = "null_as_default")]
    pub networks: Vec<WireNetwork>,
    /// `volumes`.
    #[serde(deserialize_with = "null_as_default")]
    pub volumes: Vec<WireVolume>,
}

/// `domain`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireDomain {
    /// `firmware`.
    pub firmware: Option<WireFirmware>,
    /// `devices`.
    #[serde(deserialize_with = "null_as_default")]
    pub devices: WireDevices,
}

/// `devices`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireDevices {
    /// `interfaces`.
    #[serde(deserialize_with = "null_as_default")]
    pub interfaces: Vec<WireBinding>,
}

/// An item of `devices.interfaces`: how an interface is bound to its network.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireBinding {
    /// `name`, which the network of this interface has too.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// `masquerade`: the address is the launcher pod's, which forwards to the VM.
    pub masquerade: Option<IgnoredAny>,
}

/// `firmware`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireFirmware {
    /// `uuid`: the guest system reads it as SMBIOS system UUID.
    #[serde(deserialize_with = "null_as_default")]
    pub uuid: String,
}

/// An item of `networks`. KubeVirt admits one source only.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireNetwork {
    /// `name`, which the interface of this network has too.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// `pod`: the infra cluster's pod network.
    pub pod: Option<IgnoredAny>,
    /// `multus`.
    pub multus: Option<WireMultus>,
}

/// `multus`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireMultus {
    /// `networkName`: a `NetworkAttachmentDefinition`, as `namespace/name` or `name`.
    #[serde(deserialize_with = "null_as_default")]
    pub network_name: String,
}

/// An item of `volumes`. KubeVirt admits one source only.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireVolume {
    /// `name` inside the VM.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// `dataVolume`.
    pub data_volume: Option<WireVolumeSource>,
    /// `persistentVolumeClaim`.
    pub persistent_volume_claim: Option<WireVolumeSource>,
}

/// The object behind a volume.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireVolumeSource {
    /// `name` of a `DataVolume`.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// `claimName`.
    #[serde(deserialize_with = "null_as_default")]
    pub claim_name: String,
    /// `hotpluggable`: whether it can be unplugged.
    #[serde(deserialize_with = "null_as_default")]
    pub hotpluggable: bool,
}

/// `status` of a VMI.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireVmiStatus {
    /// `phase`.
    #[serde(deserialize_with = "null_as_default")]
    pub phase: Phase,
    /// `nodeName`: the infra Node on which it runs. During a live migration this is the source.
    pub node_name: Option<String>,
    /// `interfaces`.
    #[serde(deserialize_with = "null_as_default")]
    pub interfaces: Vec<WireInterface>,
    /// `conditions`.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<WireCondition>,
    /// `activePods`: the infra Node of each pod that the VMI owns, by the pod's UID, also of a pod that has completed.
    /// virt-controller writes it whenever it changes.
    #[serde(deserialize_with = "null_as_default")]
    pub active_pods: BTreeMap<String, String>,
    /// `volumeStatus`.
    #[serde(deserialize_with = "null_as_default")]
    pub volume_status: Vec<WireVolumeStatus>,
    /// `migratedVolumes`: the volumes that KubeVirt copies to other claims; empty once that has ended.
    #[serde(deserialize_with = "null_as_default")]
    pub migrated_volumes: Vec<WireMigratedVolume>,
}

/// An item of `migratedVolumes`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireMigratedVolume {
    /// `volumeName`: its name inside the VM.
    #[serde(deserialize_with = "null_as_default")]
    pub volume_name: String,
}

/// Phase of a VMI (kubevirt.io/api, `VirtualMachineInstancePhase`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Phase {
    /// Not running yet: `Pending`, `Scheduling`, `Scheduled`, or no phase at all.
    #[default]
    Starting,
    /// `Running`.
    Running,
    /// `Succeeded`: the guest system shut down, by itself or on request. As with `Failed`, this does not prove that the
    /// VMI's pods are gone, and its spec and status keep their volumes.
    Succeeded,
    /// `Failed`.
    Failed,
    /// `Unknown`, or any other phase, as KubeVirt writes it.
    Unknown(String),
}

/// An item of `interfaces`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireInterface {
    /// `name` in the VM's spec. Empty for an interface that only the guest agent reports.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// `ipAddress`: the primary address.
    #[serde(deserialize_with = "null_as_default")]
    pub ip_address: String,
    /// `ipAddresses`. On old instances the primary one is not among them.
    #[serde(deserialize_with = "null_as_default")]
    pub ip_addresses: Vec<String>,
}

/// An item of `conditions`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WireCondition {
    /// `type`.
    #[serde(rename = "type", deserialize_with = "null_as_default")]
    pub kind: String,
    /// `status`: `True`, `False` or `Unknown`.
    #[serde(deserialize_with = "null_as_default")]
    pub status: String,
    /// `reason`, in CamelCase.
    #[serde(deserialize_with = "null_as_default")]
    pub reason: String,
    /// `message`, for people.
    #[serde(deserialize_with = "null_as_default")]
    pub message: String,
}

/// An item of `volumeStatus`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireVolumeStatus {
    /// `name` inside the VM.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// `phase` of the volume.
    #[serde(deserialize_with = "null_as_default")]
    pub phase: String,
    /// `reason`, in CamelCase.
    #[serde(deserialize_with = "null_as_default")]
    pub reason: String,
    /// `message`, for people.
    #[serde(deserialize_with = "null_as_default")]
    pub message: String,
    /// `target`: the device as libvirt counts it; empty while there is none.
    #[serde(deserialize_with = "null_as_default")]
    pub target: String,
    /// `hotplugVolume`: set if the volume was hotplugged.
    pub hotplug_volume: Option<IgnoredAny>,
    /// `persistentVolumeClaimInfo`, with the name of the claim.
    pub persistent_volume_claim_info: Option<WireVolumeSource>,
}

impl WireVm {
    /// The kind.
    pub const KIND: &str = "VirtualMachine";
    /// Name of the kind's resource.
    pub const PLURAL: &str = "virtualmachines";
}

impl WireVmi {
    /// The kind.
    pub const KIND: &str = "VirtualMachineInstance";
    /// Name of the kind's resource.
    pub const PLURAL: &str = "virtualmachineinstances";
    /// The finalizer that virt-controller removes from a VMI that has ended, once no pod is left that the VMI owns; its
    /// present and its older name (kubevirt.io/api, `VirtualMachineInstanceFinalizer`).
    const PODS_FINALIZERS: [&str; 2] =
        ["kubevirt.io/foregroundDeleteVirtualMachine", "foregroundDeleteVirtualMachine"];

    /// Whether the VMI has ended and virt-controller has recorded that its pods are gone. The phase alone proves
    /// nothing: a launcher pod that runs or hangs on a lost Node, or has completed and is not deleted yet, is still in
    /// `activePods` and keeps the finalizer.
    pub fn pods_are_gone(&self) -> bool {
        let has = |finalizer: &String| Self::PODS_FINALIZERS.contains(&finalizer.as_str());
        matches!(self.status.phase, Phase::Succeeded | Phase::Failed)
            && self.status.active_pods.is_empty()
            && !self.metadata.finalizers.iter().any(has)
    }
}

impl WireVmSpec {
    /// The run strategy, or the one that `running` stands for.
    pub fn strategy(&self) -> RunStrategy {
        self.run_strategy.unwrap_or(match self.running {
            Some(true) => RunStrategy::Always,
            Some(false) => RunStrategy::Halted,
            None => RunStrategy::Other,
        })
    }
}

impl From<String> for RunStrategy {
    fn from(text: String) -> Self {
        match text.as_str() {
            "Always" => Self::Always,
            "RerunOnFailure" => Self::RerunOnFailure,
            "Halted" => Self::Halted,
            _ => Self::Other,
        }
    }
}

impl From<String> for Phase {
    fn from(text: String) -> Self {
        match text.as_str() {
            "" | "Pending" | "Scheduling" | "Scheduled" => Self::Starting,
            "Running" => Self::Running,
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            _ => Self::Unknown(text),
        }
    }
}

#[cfg(test)]
mod tests;
