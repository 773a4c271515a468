//! The infra cluster's storage as its users see it: two classes of one provisioner, and what CDI is told of them.
//!
//! The provisioner itself is `simulator`'s.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    ApiServer, FIELD_MANAGER,
    wait::{self, Seen},
};

/// The provisioner's (CSI driver's) name in the infra cluster.
pub const PROVISIONER: &str = "storage.bench.local";

/// Binds at once; the default class.
pub const BLOCK_IMMEDIATE: &str = "block-immediate";

/// Binds when a pod that uses the claim is scheduled.
pub const BLOCK_WAIT_FOR_FIRST_CONSUMER: &str = "block-wffc";

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
    let immediate = class(BLOCK_IMMEDIATE, "Immediate", true);
    let waiting = class(BLOCK_WAIT_FOR_FIRST_CONSUMER, "WaitForFirstConsumer", false);
    infra.apply(&[driver, immediate, waiting]).await.context("create the infra storage classes")
}

fn class(name: &str, binding: &str, default: bool) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": name,
            "annotations": {"storageclass.kubernetes.io/is-default-class": default.to_string()},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": true,
        "volumeBindingMode": binding,
    })
}

/// Fills in the `StorageProfile` that cdi-controller makes for each class: it knows nothing of this provisioner, and a
/// `DataVolume` without access modes would stay pending (`ErrClaimNotValid`). Best first, as CDI chooses.
pub(super) async fn describe_to_cdi(infra: &ApiServer) -> Result<()> {
    let resource = ApiResource {
        group: "cdi.kubevirt.io".to_owned(),
        version: "v1beta1".to_owned(),
        api_version: "cdi.kubevirt.io/v1beta1".to_owned(),
        kind: "StorageProfile".to_owned(),
        plural: "storageprofiles".to_owned(),
    };
    let profiles: Api<DynamicObject> = Api::all_with(infra.client.clone(), &resource);
    let properties = json!({"spec": {"claimPropertySets": [
        {"accessModes": ["ReadWriteMany"], "volumeMode": "Block"},
        {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block"},
        {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"},
    ]}});
    for class in [BLOCK_IMMEDIATE, BLOCK_WAIT_FOR_FIRST_CONSUMER] {
        let what = format!("cdi-controller to make the StorageProfile {class}");
        wait::object(&profiles, class, &what, PROFILE_DEADLINE, |profile| match profile {
            Some(_) => Seen::Done(()),
            None => Seen::NotYet("it does not exist".to_owned()),
        })
        .await?;
        profiles
            .patch(
                class,
                &PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() },
                &Patch::Merge(&properties),
            )
            .await
            .with_context(|| format!("fill in the StorageProfile {class}"))?;
    }
    Ok(())
}
