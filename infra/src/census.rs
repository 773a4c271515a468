//! All VMs and VMIs of the namespace at one time, to find out which VMs have a volume.

use kubevirt::ObjectName;

use crate::machine::{VirtualMachine, VirtualMachineInstance};

/// Everything in the namespace that can have a volume. The VMIs were listed before the VMs: a VM's spec names a volume
/// before its VMI does, so the lists also show an addition that happens between them.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// All VMs.
    pub vms: Vec<VirtualMachine>,
    /// All VMIs.
    pub vmis: Vec<VirtualMachineInstance>,
}

impl Census {
    /// The VM of this name.
    pub fn vm(&self, name: &ObjectName) -> Option<&VirtualMachine> {
        self.vms.iter().find(|vm| vm.name == name.as_str())
    }

    /// The VMI of this name.
    pub fn vmi(&self, name: &ObjectName) -> Option<&VirtualMachineInstance> {
        self.vmis.iter().find(|vmi| vmi.name == name.as_str())
    }

    /// The names of VMs that name the volume in spec, requests, or their VMI's spec or status; sorted, each once. A VMI
    /// that has ended still counts until KubeVirt drops the entry or the object, or has recorded that its pods are gone.
    pub fn holders(&self, volume: &ObjectName) -> Vec<ObjectName> {
        let volume = volume.as_str();
        let machines = self.vms.iter().filter(|vm| vm.uses(volume)).map(|vm| vm.name.as_str());
        let instances = self.vmis.iter().filter(|vmi| vmi.holds(volume)).map(|vmi| vmi.name.as_str());
        let mut names: Vec<_> = machines.chain(instances).filter_map(ObjectName::parse).collect();
        names.sort();
        names.dedup();
        names
    }
}
