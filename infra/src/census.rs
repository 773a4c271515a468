//! All VMs and VMIs of the namespace at one time, to find out which VMs have a volume.

use std::collections::BTreeMap;

use cluster::Unreadable;
use kubevirt::{ObjectName, VmGuest};

use crate::machine::{VirtualMachine, VirtualMachineInstance};

/// Everything in the namespace that can have a volume. The VMIs were listed before the VMs: a VM's spec names a volume
/// before its VMI does, so the lists also show an addition that happens between them.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// All VMs.
    pub vms: Vec<VirtualMachine>,
    /// All VMIs.
    pub vmis: Vec<VirtualMachineInstance>,
    /// VMs and VMIs that can't be read. Each may have every volume whose name stands in it.
    pub unread: Vec<Unreadable>,
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

    /// Whether the VM of this name, or its VMI, can't be read, so that nothing is known of it.
    pub fn is_unread(&self, name: &ObjectName) -> bool {
        self.unread.iter().any(|odd| odd.name() == name.as_str())
    }

    /// Whether the labels of the VM of this name, or of its VMI, say that it is not `guest`'s. What can't be read says nothing.
    pub fn is_of_another(&self, name: &ObjectName, guest: &VmGuest) -> bool {
        let none = BTreeMap::new();
        let vm = self.vm(name).map_or(&none, |vm| &vm.labels);
        let vmi = self.vmi(name).map_or(&none, |vmi| &vmi.labels);
        !self.is_unread(name) && guest.check(vm, vmi).is_err()
    }

    /// The names of VMs that name the volume in spec, requests, or their VMI's spec or status; sorted, each once. A VMI
    /// that has ended still counts until KubeVirt drops the entry or the object, or has recorded that its pods are gone. One
    /// that can't be read counts if the volume's name stands anywhere in it.
    pub fn holders(&self, volume: &ObjectName) -> Vec<ObjectName> {
        let volume = volume.as_str();
        let machines = self.vms.iter().filter(|vm| vm.uses(volume)).map(|vm| vm.name.as_str());
        let instances = self.vmis.iter().filter(|vmi| vmi.holds(volume)).map(|vmi| vmi.name.as_str());
        let unread = self.unread.iter().filter(|odd| odd.mentions(volume)).map(Unreadable::name);
        let mut names: Vec<_> =
            machines.chain(instances).chain(unread).filter_map(ObjectName::parse).collect();
        names.sort();
        names.dedup();
        names
    }
}
