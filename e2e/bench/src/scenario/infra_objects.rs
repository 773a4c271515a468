//! What a scenario reads in infra: KubeVirt's and CDI's objects, read as plain JSON because the bench must see every
//! field and none of the product's own types.

use anyhow::Result;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;

/// VirtualMachines, VirtualMachineInstances or DataVolumes of one namespace.
pub fn virtual_machines(client: &Client, namespace: &str) -> Api<DynamicObject> {
    dynamic(client, namespace, "kubevirt.io", "v1", "VirtualMachine", "virtualmachines")
}

/// See [`virtual_machines`].
pub fn virtual_machine_instances(client: &Client, namespace: &str) -> Api<DynamicObject> {
    dynamic(client, namespace, "kubevirt.io", "v1", "VirtualMachineInstance", "virtualmachineinstances")
}

/// See [`virtual_machines`].
pub fn virtual_machine_instance_migrations(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let (kind, plural) = ("VirtualMachineInstanceMigration", "virtualmachineinstancemigrations");
    dynamic(client, namespace, "kubevirt.io", "v1", kind, plural)
}

/// See [`virtual_machines`].
pub fn data_volumes(client: &Client, namespace: &str) -> Api<DynamicObject> {
    dynamic(client, namespace, "cdi.kubevirt.io", "v1beta1", "DataVolume", "datavolumes")
}

/// A hotplugged volume as the VMI's status reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotpluggedVolume {
    /// The virtual machine instance.
    pub vmi: String,
    /// `status.volumeStatus[].phase`.
    pub phase: String,
    /// `status.volumeStatus[].target`: what libvirt calls the disk; the guest may call it otherwise.
    pub target: String,
    /// The disk's serial in the VMI's spec.
    pub serial: String,
}

/// Where `volume` appears in the status of any VMI of the namespace.
pub async fn hotplugged(client: &Client, namespace: &str, volume: &str) -> Result<Vec<HotpluggedVolume>> {
    let all = virtual_machine_instances(client, namespace).list(&ListParams::default()).await?;
    Ok(all.items.iter().filter_map(|vmi| status_of(vmi, volume)).collect())
}

fn status_of(vmi: &DynamicObject, volume: &str) -> Option<HotpluggedVolume> {
    let named = |list: &Value| -> Option<Value> {
        list.as_array()?.iter().find(|entry| entry["name"] == volume).cloned()
    };
    let status = named(&vmi.data["status"]["volumeStatus"])?;
    let disk = named(&vmi.data["spec"]["domain"]["devices"]["disks"]).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some(HotpluggedVolume {
        vmi: vmi.metadata.name.clone().unwrap_or_default(),
        phase: text(&status["phase"]),
        target: text(&status["target"]),
        serial: text(&disk["serial"]),
    })
}

fn dynamic(
    client: &Client,
    namespace: &str,
    group: &str,
    version: &str,
    kind: &str,
    plural: &str,
) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(group, version, kind);
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk_with_plural(&kind, plural))
}
