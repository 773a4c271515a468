//! Reduces VM and VMI, as KubeVirt writes them, to the types of `machine`.

use kubevirt::{ObjectName, WireVm, WireVmi, WireVolume, WireVolumeStatus};

use super::{VirtualMachine, VirtualMachineInstance, Volume, VolumeRequest, VolumeSource, VolumeStatus};

/// What a volume is made of, and whether it can be unplugged.
fn source(volume: &WireVolume) -> (VolumeSource, bool) {
    match (&volume.data_volume, &volume.persistent_volume_claim) {
        (Some(source), _) => (VolumeSource::DataVolume(source.name.clone()), source.hotpluggable),
        (None, Some(source)) => (VolumeSource::Claim(source.claim_name.clone()), source.hotpluggable),
        (None, None) => (VolumeSource::Other, false),
    }
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
            volumes: wire.spec.template.spec.volumes.into_iter().map(Into::into).collect(),
            requests: requests.collect(),
        }
    }
}

impl From<WireVmi> for VirtualMachineInstance {
    fn from(wire: WireVmi) -> Self {
        let owner = wire.metadata.owner_references.iter().find(|o| o.kind == WireVm::KIND);
        Self {
            owner: owner.and_then(|o| ObjectName::parse(&o.name)),
            name: wire.metadata.name,
            uid: wire.metadata.uid,
            labels: wire.metadata.labels,
            deleting: wire.metadata.deletion_timestamp.is_some(),
            phase: wire.status.phase,
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
