//! What the virt-handler simulator reads of a `VirtualMachineInstance`. A view only: writes go to the whole object, so
//! that nothing unknown here is lost (`status.rs`).

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{
    ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde::Deserialize;

/// API resource `virtualmachineinstances.kubevirt.io/v1`.
pub(super) fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("kubevirt.io", "v1", "VirtualMachineInstance"))
}

/// A `VirtualMachineInstance` as far as virt-handler and whoever boots its machine need it.
#[derive(Clone, Debug, Default)]
pub struct Vmi {
    /// Its namespace.
    pub namespace: String,
    /// Its name, which is its VM's.
    pub name: String,
    /// Its UID: another object of the same name is another machine.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// `spec`.
    pub spec: Spec,
    /// `status`.
    pub status: Status,
}

/// `spec` in part.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// `spec.domain`.
    pub domain: DomainSpec,
    /// `spec.volumes`, fixed and hotplugged.
    pub volumes: Vec<Volume>,
    /// `spec.networks`; the first is the pod network.
    pub networks: Vec<Named>,
}

/// `spec.domain` in part.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DomainSpec {
    /// `spec.domain.devices`.
    pub devices: Devices,
}

/// `spec.domain.devices` in part.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Devices {
    /// One per volume that the guest sees as a disk.
    pub disks: Vec<Disk>,
}

/// An object of which only the name matters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    /// Its name.
    pub name: String,
}

/// `spec.domain.devices.disks[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// The volume's name.
    pub name: String,
    /// The serial that the guest sees; empty for none.
    pub serial: String,
    /// As a disk on a bus.
    pub disk: Option<Target>,
    /// As a LUN on a bus.
    pub lun: Option<Target>,
}

/// The bus of a disk or LUN.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Target {
    /// `virtio`, `scsi`, `sata` or `usb`.
    pub bus: String,
}

/// `spec.volumes[]`: a name and one source.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    /// Its name, which its disk and its status share.
    pub name: String,
    /// A `DataVolume`; its PVC has the same name.
    pub data_volume: Option<Named>,
    /// A PVC.
    pub persistent_volume_claim: Option<Claim>,
    /// A disk inside a container image.
    pub container_disk: Option<ContainerDisk>,
}

/// `persistentVolumeClaim` of a volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Claim {
    /// The PVC's name.
    pub claim_name: String,
}

/// `containerDisk` of a volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerDisk {
    /// The image that holds the disk.
    pub image: String,
}

/// `status` in part.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    /// `Scheduled` and `Running` are virt-handler's to act on.
    pub phase: String,
    /// The infra node whose virt-handler owns the VMI.
    pub node_name: String,
    /// `status.volumeStatus`: one per volume, plus those that are being detached.
    #[serde(rename = "volumeStatus")]
    pub volumes: Vec<VolumeStatus>,
    /// `status.migrationState`: of the last live migration, or of the one under way.
    pub migration_state: Option<MigrationState>,
}

/// `status.migrationState` in part.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MigrationState {
    /// Where the machine is.
    pub source_node: String,
    /// Where it goes.
    pub target_node: String,
    /// The launcher pod there.
    pub target_pod: String,
    /// Where the target listens; empty until it does.
    pub target_node_address: String,
    /// When the source began.
    pub start_timestamp: Option<String>,
    /// When the target had the machine, running.
    pub target_node_domain_ready_timestamp: Option<String>,
    /// When the machine had moved.
    pub end_timestamp: Option<String>,
    /// Whether it is over.
    pub completed: bool,
    /// Whether it failed.
    pub failed: bool,
}

/// `status.volumeStatus[]` in part.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeStatus {
    /// The volume's name.
    pub name: String,
    /// The device name in the domain; empty while the guest does not have the disk.
    pub target: String,
    /// `Pending`, `Bound`, `AttachedToNode`, `MountedToPod`, `Ready`, `Detaching`, `UnMountedFromPod`.
    pub phase: String,
    /// Set for hotplugged volumes.
    pub hotplug_volume: Option<HotplugVolume>,
    /// What virt-controller knows of the PVC.
    pub persistent_volume_claim_info: Option<ClaimInfo>,
}

/// `hotplugVolume` of a volume's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HotplugVolume {
    /// Set by virt-controller once the attachment pod's container is ready.
    #[serde(rename = "attachPodUID")]
    pub attach_pod_uid: String,
}

/// `persistentVolumeClaimInfo` of a volume's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimInfo {
    /// The PVC's access modes.
    pub access_modes: Vec<String>,
    /// `Block` or `Filesystem`; absent means the latter.
    pub volume_mode: Option<String>,
    /// The PVC's `status.capacity`.
    pub capacity: BTreeMap<String, Quantity>,
    /// The PVC's `spec.resources.requests`.
    pub requests: BTreeMap<String, Quantity>,
    /// The share of a volume that CDI leaves to its filesystem, a decimal from 0 to 1; 0 of a block volume.
    pub filesystem_overhead: Option<String>,
}

impl Vmi {
    /// Reads an object.
    ///
    /// # Errors
    /// When a known field has another shape than KubeVirt's.
    pub fn read(object: &DynamicObject) -> Result<Self> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            spec: Spec,
            status: Status,
        }
        let body: Body = serde_json::from_value(object.data.clone())
            .with_context(|| format!("read VirtualMachineInstance {}", object.name_any()))?;
        Ok(Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            labels: object.labels().clone(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            spec: body.spec,
            status: body.status,
        })
    }

    /// `<namespace>/<name>`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether its life is over (`Succeeded` or `Failed`).
    pub fn is_final(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// The image of its first containerDisk, without tag and digest: what the machine is booted from.
    pub fn container_disk_image(&self) -> Option<&str> {
        let image = &self.spec.volumes.iter().find_map(|volume| volume.container_disk.as_ref())?.image;
        Some(super::super::infra_pods::image_name(image))
    }

    /// The disk of a volume, if the guest is to see one.
    pub fn disk(&self, volume: &str) -> Option<&Disk> {
        self.spec.domain.devices.disks.iter().find(|disk| disk.name == volume)
    }

    /// The volume of that name in `spec`.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.spec.volumes.iter().find(|volume| volume.name == name)
    }
}

impl Disk {
    /// Its bus, whether disk or LUN.
    pub fn bus(&self) -> &str {
        self.disk.as_ref().or(self.lun.as_ref()).map_or("", |target| &target.bus)
    }
}

impl Volume {
    /// The PVC behind it.
    pub fn claim(&self) -> Option<&str> {
        let data_volume = self.data_volume.as_ref().map(|dv| dv.name.as_str());
        data_volume.or_else(|| self.persistent_volume_claim.as_ref().map(|pvc| pvc.claim_name.as_str()))
    }
}
