//! The calls that plug a volume into a running VM and unplug it.

use cluster::{Error, WhenPaused};
use kube::api::PostParams;
use kubevirt::ObjectName;
use serde_json::{Value, json};

use crate::{
    data_volume::DataVolume,
    guest_guard::Owned,
    infra::Infra,
    reader::{Resource, VM_SUBRESOURCES, VMI_SUBRESOURCES, accepting_all},
};

/// A disk to plug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotplugDisk {
    /// Serial that the guest sees.
    pub serial: String,
    /// `scsi` or `virtio`.
    pub bus: &'static str,
}

impl Infra {
    /// Asks KubeVirt to plug a volume of ours into a VM. An accepted call is not an attached disk. The call is never
    /// repeated here.
    pub async fn add_volume(
        &self,
        vm: &ObjectName,
        volume: &Owned<DataVolume>,
        disk: &HotplugDisk,
    ) -> Result<(), Error> {
        let name = &volume.metadata.name;
        let options = json!({
            "name": name,
            "disk": {"name": name, "serial": disk.serial, "disk": {"bus": disk.bus}},
            "volumeSource": {"dataVolume": {"name": name}},
        });
        self.hotplug(VM_SUBRESOURCES, "addvolume", vm, &options).await
    }

    /// Asks KubeVirt to unplug a volume. `volume` is its name inside the VM: if it is the name of its `DataVolume`,
    /// KubeVirt 1.9 accepts the call and does nothing. The call is never repeated here.
    pub async fn remove_volume(&self, vm: &ObjectName, volume: &ObjectName) -> Result<(), Error> {
        self.hotplug(VM_SUBRESOURCES, "removevolume", vm, &json!({"name": volume.as_str()})).await
    }

    /// Asks KubeVirt to unplug a volume from a VMI whose VM does not have it. KubeVirt with the gate
    /// `DeclarativeHotplugVolumes` answers 400 for the VMI of a VM, and unplugs such a volume by itself.
    pub async fn remove_volume_from_vmi(&self, vmi: &ObjectName, volume: &ObjectName) -> Result<(), Error> {
        self.hotplug(VMI_SUBRESOURCES, "removevolume", vmi, &json!({"name": volume.as_str()})).await
    }

    async fn hotplug(
        &self,
        of: Resource,
        subresource: &str,
        vm: &ObjectName,
        options: &Value,
    ) -> Result<(), Error> {
        let reader = &self.shared.reader;
        let request = reader.requests(of).replace_subresource(
            subresource,
            vm.as_str(),
            &PostParams::default(),
            options.to_string().into_bytes(),
        );
        reader.server.exchange(accepting_all(request), WhenPaused::Fail).await.map(drop)
    }
}
