//! The infra cluster's storage as its users see it: the classes of one provisioner, and their `StorageProfiles` for CDI.
//!
//! The provisioner itself is `simulator::infra_storage` under real sidecars (`infra_storage`).

use std::time::Duration;

use anyhow::{Context, Result};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    ApiServer, FIELD_MANAGER,
    wait::{self, Poll},
};

/// The provisioner's (CSI driver's) name in the infra cluster.
pub const PROVISIONER: &str = "storage.bench.local";

/// The parameter in which a class tells its own name: CSI does not.
pub const CLASS_PARAMETER: &str = "class";

/// The parameter that says whether a node has work to do after an expansion: `true` or `false`.
pub const NODE_EXPANSION_PARAMETER: &str = "nodeExpansion";

/// The class of the snapshots, and the default one.
pub const SNAPSHOT_CLASS: &str = "snapshots";

/// Binds at once; the default class.
pub const BLOCK_IMMEDIATE: &str = "block-immediate";

/// What a class of infra storage offers, and when it binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfraClass {
    /// The StorageClass's name.
    pub name: &'static str,
    /// `Immediate`, or `WaitForFirstConsumer`: when a pod that uses the claim is scheduled.
    pub binding: &'static str,
    /// The pairs of access mode and volume mode that its volumes may have; best first, as CDI chooses.
    pub modes: &'static [(&'static str, &'static str)],
    /// How CDI clones its volumes: `snapshot`, or `csi-clone`.
    pub clone: &'static str,
    /// Whether and where its volumes grow.
    pub expansion: Expansion,
}

/// Whether and where volumes of a class grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expansion {
    /// They don't.
    Refused,
    /// In the storage, and a filesystem on a node too.
    Usual,
    /// In the storage and on a node, block devices too.
    OnNode,
    /// In the storage alone, filesystems too.
    InStorage,
}

/// What a storage that can do everything offers.
const ALL_MODES: &[(&str, &str)] =
    &[("ReadWriteMany", "Block"), ("ReadWriteOnce", "Block"), ("ReadWriteOnce", "Filesystem")];
const BLOCK_RWO: &[(&str, &str)] = &[("ReadWriteOnce", "Block")];
const FILESYSTEM_RWX: &[(&str, &str)] = &[("ReadWriteMany", "Filesystem")];
const FILESYSTEM_RWO: &[(&str, &str)] = &[("ReadWriteOnce", "Filesystem")];

/// The classes: each kind of volume that infra storage may offer, bound at once and bound late.
pub const CLASSES: [InfraClass; 8] = [
    class(BLOCK_IMMEDIATE, "Immediate", ALL_MODES),
    class("block-wffc", "WaitForFirstConsumer", ALL_MODES),
    class("block-rwo", "Immediate", BLOCK_RWO),
    class("block-rwo-wffc", "WaitForFirstConsumer", BLOCK_RWO),
    class("filesystem-rwx", "Immediate", FILESYSTEM_RWX),
    class("filesystem-rwx-wffc", "WaitForFirstConsumer", FILESYSTEM_RWX),
    class("filesystem-rwo", "Immediate", FILESYSTEM_RWO),
    class("filesystem-rwo-wffc", "WaitForFirstConsumer", FILESYSTEM_RWO),
];

/// The classes that differ in how their volumes grow, and in how CDI clones them; and one that a test may put under a quota.
pub const FURTHER_CLASSES: [InfraClass; 5] = [
    InfraClass { expansion: Expansion::Refused, ..class("block-rwo-fixed", "Immediate", BLOCK_RWO) },
    InfraClass { expansion: Expansion::OnNode, ..class("block-rwo-node-expansion", "Immediate", BLOCK_RWO) },
    InfraClass {
        expansion: Expansion::InStorage,
        ..class("filesystem-rwo-storage-expansion", "Immediate", FILESYSTEM_RWO)
    },
    InfraClass { clone: "csi-clone", ..class("block-rwo-csi-clone", "Immediate", BLOCK_RWO) },
    class("block-rwo-limited", "Immediate", BLOCK_RWO),
];

/// How long cdi-controller may take to make a class's profile after it leads.
const PROFILE_DEADLINE: Duration = Duration::from_mins(1);

/// Creates the classes and their `CSIDriver`, whose presence makes CDI use volume populators.
pub(super) async fn install(infra: &ApiServer) -> Result<()> {
    let driver = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": PROVISIONER},
        // The infra nodes are simulated: nothing would attach.
        "spec": {"attachRequired": false},
    });
    let objects: Vec<Value> = [driver].into_iter().chain(all().map(storage_class)).collect();
    infra.apply(&objects).await.context("create the infra storage classes")
}

/// Creates the class of the snapshots, whose kind is defined already.
pub(super) async fn install_snapshot_class(infra: &ApiServer) -> Result<()> {
    let class = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotClass",
        "metadata": {
            "name": SNAPSHOT_CLASS,
            "annotations": {"snapshot.storage.kubernetes.io/is-default-class": "true"},
        },
        "driver": PROVISIONER,
        "deletionPolicy": "Delete",
    });
    infra.apply(&[class]).await.context("create the infra snapshot class")
}

fn all() -> impl Iterator<Item = &'static InfraClass> {
    CLASSES.iter().chain(&FURTHER_CLASSES)
}

const fn class(
    name: &'static str,
    binding: &'static str,
    modes: &'static [(&'static str, &'static str)],
) -> InfraClass {
    InfraClass { name, binding, modes, clone: "snapshot", expansion: Expansion::Usual }
}

fn storage_class(class: &InfraClass) -> Value {
    let default = class.name == BLOCK_IMMEDIATE;
    let mut parameters = json!({CLASS_PARAMETER: class.name});
    let on_node = match class.expansion {
        Expansion::OnNode => Some("true"),
        Expansion::InStorage => Some("false"),
        Expansion::Usual | Expansion::Refused => None,
    };
    if let Some(on_node) = on_node {
        parameters[NODE_EXPANSION_PARAMETER] = json!(on_node);
    }
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": class.name,
            "annotations": {"storageclass.kubernetes.io/is-default-class": default.to_string()},
        },
        "provisioner": PROVISIONER,
        "parameters": parameters,
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": class.expansion != Expansion::Refused,
        "volumeBindingMode": class.binding,
    })
}

/// The spec of the `StorageProfile` by which CDI knows a class.
fn profile(class: &InfraClass) -> Value {
    let sets: Vec<Value> = class
        .modes
        .iter()
        .map(|(access, volume)| json!({"accessModes": [access], "volumeMode": volume}))
        .collect();
    json!({"spec": {
        "claimPropertySets": sets, "cloneStrategy": class.clone, "snapshotClass": SNAPSHOT_CLASS,
    }})
}

/// Fills in the `StorageProfile` that cdi-controller makes for each class: it knows nothing of this provisioner, and a
/// `DataVolume` without access modes would stay pending (`ErrClaimNotValid`).
pub(super) async fn describe_to_cdi(infra: &ApiServer) -> Result<()> {
    let resource = ApiResource {
        group: "cdi.kubevirt.io".to_owned(),
        version: "v1beta1".to_owned(),
        api_version: "cdi.kubevirt.io/v1beta1".to_owned(),
        kind: "StorageProfile".to_owned(),
        plural: "storageprofiles".to_owned(),
    };
    let profiles: Api<DynamicObject> = Api::all_with(infra.client.clone(), &resource);
    for class in all() {
        let name = class.name;
        let what = format!("cdi-controller to make the StorageProfile {name}");
        wait::object(&profiles, name, &what, PROFILE_DEADLINE, |profile| match profile {
            Some(_) => Poll::Ready(()),
            None => Poll::NotYet("it does not exist".to_owned()),
        })
        .await?;
        profiles
            .patch(
                name,
                &PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() },
                &Patch::Merge(&profile(class)),
            )
            .await
            .with_context(|| format!("fill in the StorageProfile {name}"))?;
    }
    Ok(())
}
