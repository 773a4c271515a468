//! KubeVirt's `VirtualMachine` and `VirtualMachineInstance`, reduced to the fields that show where a volume is.

mod projection;

use std::collections::BTreeMap;

use kubevirt::{ObjectName, Phase, RunStrategy};
use serde::Deserialize;

/// The part of a VM that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "kubevirt::WireVm")]
pub struct VirtualMachine {
    /// Name of the VM and of its VMI.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// `spec.runStrategy`, or the strategy that `spec.running` stands for.
    pub run_strategy: RunStrategy,
    /// `status.printableStatus`, for people.
    pub printable_status: String,
    /// What KubeVirt reports to be wrong with it, in KubeVirt's words; empty if nothing.
    pub complaint: String,
    /// `spec.updateVolumesStrategy` is `Migration`.
    pub moves_volumes: bool,
    /// `spec.template.spec.volumes`, each with its disk.
    pub volumes: Vec<Volume>,
    /// `status.volumeRequests`: hotplug calls accepted and not yet carried out (gate `HotplugVolumes`).
    pub requests: Vec<VolumeRequest>,
}

/// A volume of a VM or VMI spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Name inside the VM.
    pub name: String,
    /// What it is made of.
    pub source: VolumeSource,
    /// Whether it can be unplugged.
    pub hotpluggable: bool,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// A `DataVolume` by name (its claim has the same name).
    DataVolume(String),
    /// A claim by name.
    Claim(String),
    /// Anything else.
    Other,
}

impl Volume {
    /// Whether this entry uses the infra volume `volume`, under whatever name.
    pub fn uses(&self, volume: &str) -> bool {
        self.name == volume || self.source.is(volume)
    }
}

impl VolumeSource {
    fn is(&self, volume: &str) -> bool {
        match self {
            Self::DataVolume(name) | Self::Claim(name) => name == volume,
            Self::Other => false,
        }
    }
}

/// One entry of `status.volumeRequests`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeRequest {
    /// The volume is about to be added to the VM's spec.
    Add {
        /// Name inside the VM.
        name: String,
        /// What it is made of.
        source: VolumeSource,
    },
    /// The volume is about to be removed.
    Remove {
        /// Name inside the VM.
        name: String,
    },
}

impl VolumeRequest {
    /// Whether the request is about the infra volume `volume`.
    pub fn uses(&self, volume: &str) -> bool {
        match self {
            Self::Add { name, source } => name == volume || source.is(volume),
            Self::Remove { name } => name == volume,
        }
    }
}

impl VirtualMachine {
    /// Whether spec or requests name the volume.
    pub fn uses(&self, volume: &str) -> bool {
        self.volumes.iter().any(|v| v.uses(volume)) || self.requests.iter().any(|r| r.uses(volume))
    }
}

/// The part of a VMI that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "kubevirt::WireVmi")]
pub struct VirtualMachineInstance {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Name of the VM that owns it.
    pub owner: Option<ObjectName>,
    /// `status.phase`.
    pub phase: Phase,
    /// It has ended, and virt-controller has recorded that its pods are gone: nothing writes to its volumes any more,
    /// although spec and status keep them.
    pub pods_are_gone: bool,
    /// What KubeVirt reports to be wrong with it, in KubeVirt's words; empty if nothing.
    pub complaint: String,
    /// `spec.volumes`.
    pub volumes: Vec<Volume>,
    /// `status.volumeStatus`.
    pub status: Vec<VolumeStatus>,
    /// `status.migratedVolumes`: the names of the volumes that KubeVirt is copying to other claims.
    pub migrating: Vec<String>,
}

impl VirtualMachineInstance {
    /// Whether spec or status name the volume.
    pub fn uses(&self, volume: &str) -> bool {
        self.volumes.iter().any(|v| v.uses(volume)) || self.status.iter().any(|s| s.uses(volume))
    }

    /// Whether spec or status name the volume and something may still write to it.
    pub fn holds(&self, volume: &str) -> bool {
        !self.pods_are_gone && self.uses(volume)
    }
}

/// One entry of `status.volumeStatus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Name inside the VM.
    pub name: String,
    /// How far the hotplug is.
    pub phase: VolumePhase,
    /// CamelCase reason.
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// The device as libvirt counts it; empty while there is none. The guest's kernel may name it otherwise.
    pub target: String,
    /// Whether it was hotplugged.
    pub hotplug: bool,
    /// Claim behind it.
    pub claim: Option<String>,
}

impl VolumeStatus {
    /// Whether this entry is about the infra volume `volume`.
    pub fn uses(&self, volume: &str) -> bool {
        self.name == volume || self.claim.as_deref() == Some(volume)
    }
}

/// Phases of a hotplugged volume (kubevirt.io/api v1.9). More may come: an unknown one means neither attached nor gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VolumePhase {
    /// Waiting: for its claim, its attachment pod, or anything before.
    #[default]
    Pending,
    /// The claim is bound.
    Bound,
    /// On the VM's node.
    AttachedToNode,
    /// In the VM's pod.
    MountedToPod,
    /// A disk that the guest's kernel sees.
    Ready,
    /// Out of the VM's pod.
    UnMountedFromPod,
    /// Leaving the node.
    Detaching,
    /// A phase that this program does not know.
    Unknown(String),
}

impl VolumePhase {
    /// As KubeVirt writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "Pending",
            Self::Bound => "Bound",
            Self::AttachedToNode => "AttachedToNode",
            Self::MountedToPod => "MountedToPod",
            Self::Ready => "Ready",
            Self::UnMountedFromPod => "UnMountedFromPod",
            Self::Detaching => "Detaching",
            Self::Unknown(phase) => phase,
        }
    }
}

impl From<String> for VolumePhase {
    fn from(text: String) -> Self {
        match text.as_str() {
            "" | "Pending" => Self::Pending,
            "Bound" => Self::Bound,
            "AttachedToNode" => Self::AttachedToNode,
            "MountedToPod" => Self::MountedToPod,
            "Ready" => Self::Ready,
            "UnMountedFromPod" => Self::UnMountedFromPod,
            "Detaching" => Self::Detaching,
            _ => Self::Unknown(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_vm_is_projected_to_its_volumes_and_requests() {
        let vm: VirtualMachine = serde_json::from_value(json!({
            "metadata": {"name": "vm1", "uid": "u", "managedFields": [{"manager": "x"}]},
            "spec": {"runStrategy": "Always", "template": {"spec": {
                "volumes": [
                    {"name": "root", "containerDisk": {"image": "x"}},
                    {"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}},
                    {"name": "other", "persistentVolumeClaim": {"claimName": "pvc-2"}},
                ]}}},
            "status": {"printableStatus": "Running", "volumeRequests": [
                {"addVolumeOptions": {"name": "pvc-3", "volumeSource": {"dataVolume": {"name": "pvc-3"}}}},
                {"removeVolumeOptions": {"name": "pvc-1"}},
            ]},
        }))
        .unwrap();
        assert_eq!(vm.run_strategy, RunStrategy::Always);
        assert!(vm.volumes[1].hotpluggable && !vm.volumes[2].hotpluggable);
        assert_eq!(vm.volumes[0].source, VolumeSource::Other);
        for volume in ["pvc-1", "pvc-2", "pvc-3"] {
            assert!(vm.uses(volume), "{volume}");
        }
        assert!(!vm.uses("pvc-4"));
        assert_eq!(vm.requests[1], VolumeRequest::Remove { name: "pvc-1".into() });
    }

    #[test]
    fn a_vmi_keeps_phases_it_does_not_know() {
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "metadata": {"name": "vm1", "ownerReferences": [{"kind": "VirtualMachine", "name": "vm1", "controller": true}]},
            "spec": {"volumes": null},
            "status": {"phase": "Running", "volumeStatus": [
                {"name": "pvc-1", "phase": "Ready", "target": "sda", "hotplugVolume": {"attachPodName": "p"}},
                {"name": "x", "phase": "HotplugVolumeFailed", "target": "", "reason": "R", "message": "m",
                 "persistentVolumeClaimInfo": {"claimName": "pvc-2"}},
            ]},
        }))
        .unwrap();
        assert_eq!(vmi.phase, Phase::Running);
        assert_eq!(vmi.owner.as_ref().map(ObjectName::as_str), Some("vm1"));
        assert!(vmi.status[0].hotplug);
        assert_eq!(vmi.status[1].phase, VolumePhase::Unknown("HotplugVolumeFailed".into()));
        assert!(vmi.uses("pvc-1") && vmi.uses("pvc-2") && !vmi.uses("pvc-3"));
    }

    #[test]
    fn what_kubevirt_complains_of_is_kept_in_its_words() {
        let refused = "Error creating attachment pod pods \"hp-volume-x\" is forbidden: exceeded quota: q";
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "False", "reason": "GuestNotRunning", "message": "of no interest here"},
            {"type": "Synchronized", "status": "False", "reason": "FailedCreate", "message": refused},
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"},
        ]}}))
        .unwrap();
        assert_eq!(vmi.complaint, format!("FailedCreate: {refused}; Unschedulable: 0/1 nodes"));
        let vm: VirtualMachine = serde_json::from_value(json!({"status": {"conditions": [
            {"type": "Failure", "status": "True", "reason": "FailedCreate", "message": "no"},
            {"type": "Ready", "status": "False", "reason": "x", "message": "y"},
        ]}}))
        .unwrap();
        assert_eq!(vm.complaint, "FailedCreate: no");
        let fine: VirtualMachineInstance = serde_json::from_value(json!({"status": {"conditions": [
            {"type": "Synchronized", "status": "True", "reason": "x", "message": "y"},
            {"type": "Synchronized", "status": "False", "reason": "", "message": ""},
        ]}}))
        .unwrap();
        assert_eq!(fine.complaint, "");
    }

    #[test]
    fn a_vmi_whose_pods_are_gone_holds_nothing() {
        let vmi = |finalizers: &[&str]| -> VirtualMachineInstance {
            serde_json::from_value(json!({
                "metadata": {"name": "vm1", "finalizers": finalizers},
                "spec": {"volumes": [{"name": "pvc-1"}]},
                "status": {"phase": "Succeeded", "volumeStatus": [{"name": "pvc-1", "phase": "Ready"}]},
            }))
            .unwrap()
        };
        let (gone, left) = (vmi(&[]), vmi(&["foregroundDeleteVirtualMachine"]));
        assert!(gone.uses("pvc-1") && !gone.holds("pvc-1"));
        assert!(left.uses("pvc-1") && left.holds("pvc-1"));
    }

    #[test]
    fn the_old_running_field_counts_where_there_is_no_strategy() {
        let strategy =
            |spec| serde_json::from_value::<VirtualMachine>(json!({ "spec": spec })).unwrap().run_strategy;
        assert_eq!(strategy(json!({"running": true})), RunStrategy::Always);
        assert_eq!(strategy(json!({"running": false})), RunStrategy::Halted);
        assert_eq!(strategy(json!({"runStrategy": "Halted"})), RunStrategy::Halted);
        assert_eq!(strategy(json!({"runStrategy": "Surprise"})), RunStrategy::Other);
    }

    #[test]
    fn what_is_missing_or_null_is_empty() {
        for value in [json!({}), json!({"metadata": null, "spec": null, "status": null})] {
            let vm: VirtualMachine = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(vm, VirtualMachine::default(), "{value}");
            let vmi: VirtualMachineInstance = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(vmi, VirtualMachineInstance::default(), "{value}");
        }
        let vmi = json!({"spec": {"volumes": [{}]}, "status": {"phase": "Surprise", "volumeStatus": [{"phase": null}]}});
        let vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
        assert_eq!(vmi.phase, Phase::Unknown("Surprise".into()));
        assert_eq!(vmi.volumes[0].source, VolumeSource::Other);
        assert_eq!(vmi.status, [VolumeStatus::default()]);
    }
}
