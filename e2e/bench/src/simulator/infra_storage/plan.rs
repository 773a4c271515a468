//! Decides what the infra storage does with a PVC or PV. Pure: no client, no file.
//!
//! Rules of `sig-storage-lib-external-provisioner`: `shouldProvision`, `provisionClaimOperation`, `shouldDelete`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::{
    api::{
        core::v1::{
            CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim,
            PersistentVolumeSpec,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{ResourceExt, api::ObjectMeta};

use crate::cluster::storage_classes::PROVISIONER;

/// The volume mode of a device.
pub(in crate::simulator) const BLOCK: &str = "Block";
/// Set by kube-controller-manager on a PVC that an external provisioner has to serve.
const PROVISIONER_ANNOTATION: &str = "volume.kubernetes.io/storage-provisioner";
/// Set by kube-scheduler on a `WaitForFirstConsumer` PVC once a pod that uses it has a node.
const SELECTED_NODE_ANNOTATION: &str = "volume.kubernetes.io/selected-node";
/// Written on every PV that a provisioner has made.
const PROVISIONED_BY_ANNOTATION: &str = "pv.kubernetes.io/provisioned-by";
/// The API group whose data sources CDI serves with populators: it binds the PV of a PVC of its own to the claim.
const CDI_GROUP: &str = "cdi.kubevirt.io";
/// The filesystem that external-provisioner names when the class does not (`--default-fstype=ext4`).
const DEFAULT_FS_TYPE: &str = "ext4";

/// Whether this PVC is ours to provision, leaving aside its class' binding mode.
pub(super) fn is_ours(pvc: &PersistentVolumeClaim) -> bool {
    let status = pvc.status.as_ref().and_then(|status| status.phase.as_deref());
    let spec = pvc.spec.as_ref();
    let source = spec.and_then(|spec| spec.data_source_ref.as_ref());
    pvc.metadata.deletion_timestamp.is_none()
        && status == Some("Pending")
        && spec.is_some_and(|spec| spec.volume_name.as_deref().unwrap_or_default().is_empty())
        && annotation(pvc, PROVISIONER_ANNOTATION) == Some(PROVISIONER)
        && source.is_none_or(|source| source.api_group.as_deref() != Some(CDI_GROUP))
}

/// Whether provisioning may begin: at once, or when a first consumer has been given a node.
pub(super) fn may_begin(pvc: &PersistentVolumeClaim, class: &StorageClass) -> bool {
    let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    !waits || annotation(pvc, SELECTED_NODE_ANNOTATION).is_some_and(|node| !node.is_empty())
}

/// The name of the PV of a PVC, external-provisioner's default.
pub(super) fn pv_name(pvc: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", pvc.uid().unwrap_or_default())
}

/// The volume mode that a PVC asks for; absent means `Filesystem`.
pub(super) fn volume_mode(pvc: &PersistentVolumeClaim) -> Option<&str> {
    pvc.spec.as_ref()?.volume_mode.as_deref()
}

/// How much a PVC asks for, in bytes.
///
/// # Errors
/// When the request is absent or no quantity.
pub(super) fn requested(pvc: &PersistentVolumeClaim) -> Result<u64> {
    let requests = pvc.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let quantity =
        requests.and_then(|requests| requests.get("storage")).context("the PVC requests no storage")?;
    bytes(quantity)
}

/// A quantity in bytes, rounded up.
///
/// # Errors
/// When it is no quantity, or is negative.
pub(in crate::simulator) fn bytes(quantity: &Quantity) -> Result<u64> {
    const SUFFIXES: [(&str, u64); 11] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("", 1),
    ];
    let text = quantity.0.as_str();
    let (number, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .with_context(|| format!("{text} is no quantity"))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = u32::try_from(fraction.len()).ok().and_then(|digits| 10_u128.checked_pow(digits));
    let digits: u128 =
        format!("{whole}{fraction}").parse().with_context(|| format!("{text} is no quantity"))?;
    let scaled = scale.and_then(|scale| Some((digits.checked_mul(u128::from(unit))?).div_ceil(scale)));
    scaled.and_then(|bytes| u64::try_from(bytes).ok()).with_context(|| format!("{text} is too large"))
}

/// Bytes as Kubernetes writes a binary quantity: in the largest unit that leaves no fraction.
fn quantity(bytes: u64) -> Quantity {
    let exact = ["Pi", "Ti", "Gi", "Mi", "Ki"].iter().zip([50, 40, 30, 20, 10]);
    let mut fitting = exact.filter(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    Quantity(
        fitting.next().map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift)),
    )
}

/// The PV that serves `pvc`: its size, its modes, its class' reclaim policy, bound to it by name and UID.
pub(super) fn persistent_volume(
    pvc: &PersistentVolumeClaim,
    class: &StorageClass,
) -> Result<PersistentVolume> {
    let spec = pvc.spec.as_ref().context("the PVC has no spec")?;
    let size = quantity(requested(pvc)?);
    let block = volume_mode(pvc) == Some(BLOCK);
    let parameters = class.parameters.as_ref();
    let fs_type = parameters
        .and_then(|all| all.get("csi.storage.k8s.io/fstype"))
        .map_or(DEFAULT_FS_TYPE, String::as_str);
    let name = pv_name(pvc);
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(BTreeMap::from([(
                PROVISIONED_BY_ANNOTATION.to_owned(),
                PROVISIONER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes.clone(),
            capacity: Some(BTreeMap::from([("storage".to_owned(), size)])),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: pvc.namespace(),
                name: Some(pvc.name_any()),
                uid: pvc.uid(),
                resource_version: pvc.resource_version(),
                ..ObjectReference::default()
            }),
            csi: Some(CSIPersistentVolumeSource {
                driver: PROVISIONER.to_owned(),
                fs_type: (!block).then(|| fs_type.to_owned()),
                volume_handle: name,
                ..CSIPersistentVolumeSource::default()
            }),
            mount_options: class.mount_options.clone(),
            persistent_volume_reclaim_policy: Some(
                class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned()),
            ),
            storage_class_name: Some(class.name_any()),
            volume_mode: spec.volume_mode.clone(),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

/// Whether a PV is ours and has served its time.
pub(super) fn is_to_be_deleted(pv: &PersistentVolume) -> bool {
    let spec = pv.spec.as_ref();
    made_here(pv)
        && pv.metadata.deletion_timestamp.is_none()
        && pv.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Released")
        && spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Delete")
}

/// The bytes that the PVs of `class` hold already, without the PV of that name.
pub(super) fn used(pvs: &[PersistentVolume], class: &str, without: &str) -> u64 {
    let sizes = pvs.iter().filter(|pv| made_here(pv) && pv.name_any() != without).filter_map(|pv| {
        let spec = pv.spec.as_ref()?;
        let size = spec.capacity.as_ref()?.get("storage")?;
        (spec.storage_class_name.as_deref() == Some(class)).then(|| bytes(size).ok())?
    });
    sizes.sum()
}

fn made_here(pv: &PersistentVolume) -> bool {
    let csi = pv.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    csi.is_some_and(|csi| csi.driver == PROVISIONER)
}

fn annotation<'a>(pvc: &'a PersistentVolumeClaim, key: &str) -> Option<&'a str> {
    pvc.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pvc(change: &Value) -> PersistentVolumeClaim {
        let mut object = json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "u-1", "annotations": {
                "volume.kubernetes.io/storage-provisioner": "storage.bench.local"}},
            "spec": {"accessModes": ["ReadWriteMany"], "volumeMode": "Block", "storageClassName": "fast",
                "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Pending"},
        });
        json_patch(&mut object, change);
        serde_json::from_value(object).expect("a PVC")
    }

    /// JSON merge patch (RFC 7386).
    fn json_patch(object: &mut Value, change: &Value) {
        let (Some(object), Some(change)) = (object.as_object_mut(), change.as_object()) else { return };
        for (key, value) in change {
            match object.get_mut(key) {
                Some(present) if present.is_object() && value.is_object() => json_patch(present, value),
                _ => {
                    object.insert(key.clone(), value.clone());
                }
            }
        }
    }

    fn class(mode: &str) -> StorageClass {
        serde_json::from_value(json!({
            "metadata": {"name": "fast"}, "provisioner": PROVISIONER, "volumeBindingMode": mode, "reclaimPolicy": "Delete",
        }))
        .expect("a class")
    }

    #[test]
    fn only_pending_unbound_claims_of_this_provisioner_without_populator_are_ours() {
        assert!(is_ours(&pvc(&json!({}))));
        let others = [
            json!({"status": {"phase": "Bound"}}),
            json!({"status": {"phase": "Lost"}}),
            json!({"spec": {"volumeName": "pv"}}),
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            json!({"metadata": {"annotations": {"volume.kubernetes.io/storage-provisioner": "other"}}}),
            json!({"spec": {"dataSourceRef": {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": "x"}}}),
        ];
        for other in others {
            assert!(!is_ours(&pvc(&other)), "{other}");
        }
    }

    #[test]
    fn a_first_consumer_is_waited_for() {
        let selected = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n"}}});
        assert!(may_begin(&pvc(&json!({})), &class("Immediate")));
        assert!(!may_begin(&pvc(&json!({})), &class("WaitForFirstConsumer")));
        assert!(may_begin(&pvc(&selected), &class("WaitForFirstConsumer")));
    }

    #[test]
    fn the_volume_is_what_the_claim_asks_for() {
        let pv = persistent_volume(&pvc(&json!({})), &class("Immediate")).expect("a PV");
        assert_eq!(pv.name_any(), "pvc-u-1");
        let spec = pv.spec.expect("a spec");
        assert_eq!(spec.volume_mode.as_deref(), Some("Block"));
        assert_eq!(spec.capacity.expect("a capacity")["storage"].0, "1Gi");
        let claim = spec.claim_ref.expect("a claim");
        assert_eq!((claim.name.as_deref(), claim.uid.as_deref()), (Some("c"), Some("u-1")));
        assert_eq!(spec.csi.expect("csi").fs_type, None);
        let filesystem =
            persistent_volume(&pvc(&json!({"spec": {"volumeMode": "Filesystem"}})), &class("Immediate"));
        let csi = filesystem.expect("a PV").spec.and_then(|spec| spec.csi).expect("csi");
        assert_eq!(csi.fs_type.as_deref(), Some("ext4"));
    }

    #[test]
    fn quantities_in_bytes() {
        let of = |text: &str| bytes(&Quantity(text.into())).ok();
        assert_eq!(of("1138166334"), Some(1_138_166_334));
        assert_eq!(of("1Gi"), Some(1 << 30));
        assert_eq!(of("1.5Mi"), Some(3 << 19));
        assert_eq!(of("0.1k"), Some(100));
        assert_eq!(of("0.0001k"), Some(1), "rounded up");
        assert_eq!(of("2G"), Some(2_000_000_000));
        for text in ["0", "1Gi", "1536Mi", "1138166334", "3Ti"] {
            assert_eq!(quantity(of(text).expect("a quantity")).0, text);
        }
        for wrong in ["", "-1", "1e3x", "Gi", "99999999999P"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_released_volumes_that_were_made_here_are_deleted() {
        let mut pv = persistent_volume(&pvc(&json!({})), &class("Immediate")).expect("a PV");
        assert!(!is_to_be_deleted(&pv), "it has no phase yet");
        pv.status = serde_json::from_value(json!({"phase": "Released"})).expect("a status");
        assert!(is_to_be_deleted(&pv));
        assert_eq!(used(std::slice::from_ref(&pv), "fast", ""), 1 << 30);
        assert_eq!(used(std::slice::from_ref(&pv), "fast", "pvc-u-1"), 0);
        assert_eq!(used(std::slice::from_ref(&pv), "slow", ""), 0);
        let spec = pv.spec.as_mut().expect("a spec");
        spec.persistent_volume_reclaim_policy = Some("Retain".into());
        assert!(!is_to_be_deleted(&pv));
    }
}
