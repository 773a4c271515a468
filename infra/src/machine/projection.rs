//! Reduces VM and VMI, as KubeVirt writes them, to the types of `machine`.

use kubevirt::{ObjectName, WireCondition, WireVm, WireVmi, WireVolume, WireVolumeStatus};

use super::{VirtualMachine, VirtualMachineInstance, Volume, VolumeRequest, VolumeSource, VolumeStatus};

/// What a volume is made of, and whether it can be unplugged.
fn source(volume: &WireVolume) -> (VolumeSource, bool) {
    match (&volume.data_volume, &volume.persistent_volume_claim) {
        (Some(source), _) => (VolumeSource::DataVolume(source.name.clone()), source.hotpluggable),
        (None, Some(source)) => (VolumeSource::Claim(source.claim_name.clone()), source.hotpluggable),
        (None, None) => (VolumeSource::Other, false),
    }
}

/// The value of `updateVolumesStrategy` with which KubeVirt copies a volume whose source changes.
const MIGRATION: &str = "Migration";
/// The conditions that state a fault, and the status in which they do. virt-controller writes there what it could not do
/// before the VMI runs (create its pod), virt-handler what it could not do since (plug the disk in: libvirt's words). Why a
/// running VMI gets no attachment pod stands in events only.
const VM_FAULTS: [(&str, &str); 1] = [("Failure", "True")];
const VMI_FAULTS: [(&str, &str); 2] = [("Synchronized", "False"), ("PodScheduled", "False")];

/// Reason and message of each condition that states a fault, each text once.
fn complaint(conditions: &[WireCondition], faults: &[(&str, &str)]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for condition in conditions {
        let is_fault = faults.contains(&(condition.kind.as_str(), condition.status.as_str()));
        let words = [condition.reason.as_str(), condition.message.as_str()];
        let text = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(": ");
        if is_fault && !text.is_empty() && !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts.join("; ")
}

impl From<WireVolume> for Volume {
    fn from(wire: WireVolume) -> Self {
        let (source, hotpluggable) = source(&wire);
        Self { name: wire.name, source, hotpluggable }
    }
}

impl From<WireVm> for VirtualMachine {
    fn from(wire: WireVm) -> Self {
        let requests = wire.status.volume_requests.into_iter().flat_map(|request| {
            let add = request
                .add_volume_options
                .map(|add| VolumeRequest::Add { source: source(&add.volume_source).0, name: add.name });
            let remove =
                request.remove_volume_options.map(|remove| VolumeRequest::Remove { name: remove.name });
            [add, remove].into_iter().flatten()
        });
        Self {
            name: wire.metadata.name,
            uid: wire.metadata.uid,
            labels: wire.metadata.labels,
            deleting: wire.metadata.deletion_timestamp.is_some(),
            run_strategy: wire.spec.strategy(),
            printable_status: wire.status.printable_status,
            complaint: complaint(&wire.status.conditions, &VM_FAULTS),
            moves_volumes: wire.spec.update_volumes_strategy == MIGRATION,
            volumes: wire.spec.template.spec.volumes.into_iter().map(Into::into).collect(),
            requests: requests.collect(),
        }
    }
}

impl From<WireVmi> for VirtualMachineInstance {
    fn from(wire: WireVmi) -> Self {
        let pods_are_gone = wire.pods_are_gone();
        let owner = wire.metadata.owner_references.iter().find(|o| o.kind == WireVm::KIND);
        Self {
            pods_are_gone,
            complaint: complaint(&wire.status.conditions, &VMI_FAULTS),
            owner: owner.and_then(|o| ObjectName::parse(&o.name)),
            name: wire.metadata.name,
            uid: wire.metadata.uid,
            labels: wire.metadata.labels,
            deleting: wire.metadata.deletion_timestamp.is_some(),
            phase: wire.status.phase,
            volumes: wire.spec.volumes.into_iter().map(Into::into).collect(),
            status: wire.status.volume_status.into_iter().map(Into::into).collect(),
            migrating: wire.status.migrated_volumes.into_iter().map(|volume| volume.volume_name).collect(),
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
