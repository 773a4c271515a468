//! The chain from a guest's claim to a mount in a pod: each link's name, as seen in the clusters and in the guest.

use std::fmt;

use crate::report::Table;

/// Every name that one volume has on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// PersistentVolumeClaim in the guest, `<namespace>/<name>`.
    pub guest_claim: String,
    /// PersistentVolume in the guest.
    pub guest_volume: String,
    /// DataVolume in the infra namespace; it is also the CSI volume id and the name of the hotplugged volume.
    pub data_volume: String,
    /// PersistentVolumeClaim that CDI made for it.
    pub infra_claim: String,
    /// PersistentVolume in infra that the claim is bound to.
    pub infra_volume: String,
    /// VirtualMachine that has the disk.
    pub virtual_machine: String,
    /// The disk's serial, by which the guest knows it: the DataVolume's UID.
    pub serial: String,
    /// The device in the guest.
    pub device: String,
    /// Filesystem and mount point inside the pod.
    pub mount: String,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["link", "where", "name"]);
        for (link, place, name) in [
            ("PersistentVolumeClaim", "guest", &self.guest_claim),
            ("PersistentVolume", "guest", &self.guest_volume),
            ("DataVolume", "infra", &self.data_volume),
            ("PersistentVolumeClaim", "infra", &self.infra_claim),
            ("PersistentVolume", "infra", &self.infra_volume),
            ("hotplugged disk", "infra, virtual machine", &self.virtual_machine),
            ("serial", "virtual machine", &self.serial),
            ("device", "guest, worker", &self.device),
            ("mount", "guest, pod", &self.mount),
        ] {
            table.row([link, place, name]);
        }
        write!(f, "{table}")
    }
}
