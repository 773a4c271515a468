//! What a VM and its VMI show of one volume.

use infra::{RunStrategy, VirtualMachine, VirtualMachineInstance, Volume, VolumeRequest, VolumeSource};

use super::{Request, SpecEntry, VmView, VmiView};

impl VmiView {
    /// What `vmi` shows of `volume`.
    pub(crate) fn of(vmi: &VirtualMachineInstance, volume: &str) -> Self {
        Self {
            deleting: vmi.deleting,
            phase: vmi.phase.clone(),
            pods_are_gone: vmi.pods_are_gone,
            complaint: vmi.complaint.clone(),
            in_spec: vmi.volumes.iter().any(|v| v.uses(volume)),
            hotplugged: vmi.volumes.iter().any(|v| is_hotplugged(v, volume)),
            claim: vmi.volumes.iter().find(|v| v.name == volume).and_then(claim_of),
            migrating: vmi.migrating.iter().any(|name| name == volume),
            status: vmi.status.iter().find(|s| s.uses(volume)).cloned(),
        }
    }
}

impl VmView {
    /// What `vm` shows of `volume`.
    pub(crate) fn of(vm: &VirtualMachine, volume: &str) -> Self {
        let spec = match vm.volumes.iter().find(|v| v.uses(volume)) {
            None => SpecEntry::Absent,
            Some(v) if is_hotplugged(v, volume) => SpecEntry::Hotplugged,
            Some(Volume {
                name,
                source: VolumeSource::DataVolume(claim) | VolumeSource::Claim(claim),
                hotpluggable: true,
            }) if name == volume => SpecEntry::Moved { claim: claim.clone() },
            Some(v) => SpecEntry::Fixed { name: v.name.clone() },
        };
        let request = vm.requests.iter().find(|r| r.uses(volume)).map(|request| match request {
            VolumeRequest::Add { .. } => Request::Add,
            VolumeRequest::Remove { .. } => Request::Remove,
        });
        Self {
            deleting: vm.deleting,
            automatic: matches!(vm.run_strategy, RunStrategy::Always | RunStrategy::RerunOnFailure),
            status: vm.printable_status.clone(),
            complaint: vm.complaint.clone(),
            moves_volumes: vm.moves_volumes,
            spec,
            request,
        }
    }
}

/// Plugged in under its own name, as this driver and kubevirt/csi-driver do it.
fn is_hotplugged(entry: &Volume, volume: &str) -> bool {
    let names_it =
        matches!(&entry.source, VolumeSource::DataVolume(name) | VolumeSource::Claim(name) if name == volume);
    entry.hotpluggable && entry.name == volume && names_it
}

/// The claim that an entry is made of; a `DataVolume`'s has its name.
fn claim_of(entry: &Volume) -> Option<String> {
    match &entry.source {
        VolumeSource::DataVolume(claim) | VolumeSource::Claim(claim) => Some(claim.clone()),
        VolumeSource::Other => None,
    }
}
