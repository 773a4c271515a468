//! The infra `PersistentVolumeClaim` behind a volume: the part that we read.

use std::collections::BTreeMap;

use kubevirt::{Metadata, ObjectName, null_as_default};
use serde::Deserialize;

use crate::{
    data_volume::Condition,
    guest_guard::Guarded,
    json_patch::{PatchOp, annotation_path},
    quantity::Quantity,
};

/// `status.phase` of a claim that has its volume.
const BOUND: &str = "Bound";
/// `status.phase` of a claim whose volume is gone.
const LOST: &str = "Lost";
/// `spec.volumeMode` of a block device.
const BLOCK: &str = "Block";
/// Kind of the owner of a claim that CDI made for a `DataVolume`.
const DATA_VOLUME: &str = "DataVolume";
/// The resource of a claim whose quantity is its size.
const STORAGE: &str = "storage";
/// API group of the sources from which CDI fills a claim through a second one.
const POPULATORS: &str = "cdi.kubevirt.io";
/// The name of that second claim is this and the UID of the first (CDI, `PVCPrimeName`).
const SECOND_CLAIM: &str = "prime-";

/// The part of a claim that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Claim {
    /// Metadata.
    pub metadata: Metadata,
    /// Desired state.
    pub spec: ClaimSpec,
    /// Observed state.
    pub status: ClaimStatus,
}

/// The part of a claim's spec that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSpec {
    /// Access modes of the infra volume.
    #[serde(deserialize_with = "null_as_default")]
    pub access_modes: Vec<String>,
    /// Infra storage class, once the default is filled in.
    pub storage_class_name: Option<String>,
    /// `Block`, or `Filesystem` (also where it is absent).
    pub volume_mode: String,
    /// What is requested.
    #[serde(deserialize_with = "null_as_default")]
    pub resources: ClaimResources,
    /// What fills the volume.
    pub data_source_ref: Option<DataSourceRef>,
}

/// What fills the volume of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataSourceRef {
    /// API group of the object that is named.
    #[serde(deserialize_with = "null_as_default")]
    pub api_group: String,
}

/// The requests of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimResources {
    /// By resource; a claim has one, `storage`.
    #[serde(deserialize_with = "null_as_default")]
    pub requests: BTreeMap<String, Quantity>,
}

/// The part of a claim's status that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimStatus {
    /// `Pending`, `Bound` or `Lost`.
    pub phase: String,
    /// The size that the volume has, by resource.
    #[serde(deserialize_with = "null_as_default")]
    pub capacity: BTreeMap<String, Quantity>,
    /// The size to which the volume is being expanded, or was at last, by resource. Kubernetes before 1.32 does not
    /// write it by default.
    #[serde(deserialize_with = "null_as_default")]
    pub allocated_resources: BTreeMap<String, Quantity>,
    /// How far the expansion is, by resource: `NodeResizePending` and others. Absent when none is under way.
    #[serde(deserialize_with = "null_as_default")]
    pub allocated_resource_statuses: BTreeMap<String, String>,
    /// `Resizing`, `FileSystemResizePending`, `ControllerResizeError` and others.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

impl Claim {
    /// Whether the claim is being deleted.
    pub fn deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// The patch that sets an annotation, unless the claim has changed since it was read.
    pub fn annotating(&self, key: &str, value: &str) -> Vec<PatchOp> {
        let unchanged = PatchOp::test("/metadata/resourceVersion", self.metadata.resource_version.as_str());
        // A patch can't add to a parent that is absent.
        let set = if self.metadata.annotations.is_empty() {
            PatchOp::add("/metadata/annotations", serde_json::json!({ key: value }))
        } else {
            PatchOp::add(annotation_path(key), value)
        };
        vec![unchanged, set]
    }

    /// Whether the infra cluster deletes it once its `DataVolume` is gone. CDI makes the `DataVolume` its owner; the reference is
    /// gone where only the `DataVolume` was deleted (`--cascade=orphan`, or CDI's `dataVolumeTTLSeconds`).
    pub fn goes_with_data_volume(&self) -> bool {
        self.metadata.owner_references.iter().any(|owner| owner.kind == DATA_VOLUME)
    }

    /// Whether the disk is the claim's block device. Else it is a file on the claim's filesystem, and smaller than the
    /// claim.
    pub fn is_block(&self) -> bool {
        self.spec.volume_mode == BLOCK
    }

    /// Whether it has its volume.
    pub fn is_bound(&self) -> bool {
        self.status.phase == BOUND
    }

    /// Whether its volume is gone.
    pub fn is_lost(&self) -> bool {
        self.status.phase == LOST
    }

    /// The claim of the same size through which CDI fills this one, if it does; it exists while it is being filled.
    pub fn second_claim(&self) -> Option<ObjectName> {
        let by_cdi = self.spec.data_source_ref.as_ref().is_some_and(|source| source.api_group == POPULATORS);
        by_cdi.then(|| ObjectName::parse(&format!("{SECOND_CLAIM}{}", self.metadata.uid))).flatten()
    }

    /// Requested size in bytes; `None` when absent or not a quantity.
    pub fn requested(&self) -> Option<u64> {
        self.request().and_then(Quantity::bytes)
    }

    /// The requested size, as written.
    pub fn request(&self) -> Option<&Quantity> {
        self.spec.resources.requests.get(STORAGE)
    }

    /// The size of the volume in bytes; `None` before the claim is bound.
    pub fn capacity(&self) -> Option<u64> {
        self.status.capacity.get(STORAGE).and_then(Quantity::bytes)
    }

    /// The size in bytes to which the volume is being expanded, or was at last.
    pub fn allocated(&self) -> Option<u64> {
        self.status.allocated_resources.get(STORAGE).and_then(Quantity::bytes)
    }

    /// How far the expansion is; empty when none is under way.
    pub fn resize_status(&self) -> &str {
        self.status.allocated_resource_statuses.get(STORAGE).map_or("", String::as_str)
    }

    /// The condition of this type, if it is true.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.kind == kind && condition.status == "True")
    }
}

impl Guarded for Claim {
    fn name(&self) -> &str {
        &self.metadata.name
    }
    fn labels(&self) -> &BTreeMap<String, String> {
        &self.metadata.labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_copy_needs_of_a_claim_is_read() {
        let claim: Claim = serde_json::from_value(json!({
            "spec": {"storageClassName": "fast", "volumeMode": "Block", "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Bound"}}))
        .unwrap();
        assert!(claim.is_bound() && claim.is_block());
        assert_eq!(
            (claim.requested(), claim.spec.storage_class_name.as_deref()),
            (Some(1 << 30), Some("fast"))
        );
        for empty in [
            json!({}),
            json!({"spec": {"resources": null}}),
            json!({"spec": {"resources": {"requests": null}}}),
        ] {
            let claim: Claim = serde_json::from_value(empty).unwrap();
            assert!(!claim.is_bound() && !claim.is_block() && claim.requested().is_none());
        }
    }

    #[test]
    fn a_claim_that_cdi_fills_has_a_second_one() {
        let second = |spec: serde_json::Value| {
            let claim: Claim = serde_json::from_value(
                json!({"metadata": {"uid": "5d30"}, "spec": spec, "status": {"phase": "Lost"}}),
            )
            .unwrap();
            assert!(claim.is_lost() && !claim.is_bound());
            claim.second_claim().map(|name| name.to_string())
        };
        let source = |group: serde_json::Value| json!({"dataSourceRef": {"apiGroup": group, "kind": "x", "name": "y"}});
        assert_eq!(second(source("cdi.kubevirt.io".into())).as_deref(), Some("prime-5d30"));
        assert_eq!(second(source("snapshot.storage.k8s.io".into())), None);
        assert_eq!(second(source(serde_json::Value::Null)), None, "another claim");
        assert_eq!(second(json!({"dataSourceRef": null})), None);
    }

    #[test]
    fn what_an_api_server_writes_of_an_expansion_is_read() {
        let claim: Claim = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "pvc-1"},
            "spec": {"volumeMode": "Block", "resources": {"requests": {"storage": "2Gi"}}},
            "status": {
                "phase": "Bound", "capacity": {"storage": "1Gi"},
                "allocatedResources": {"storage": "2147483648"},
                "allocatedResourceStatuses": {"storage": "NodeResizePending"},
                "conditions": [
                    {"type": "Resizing", "status": "False"},
                    {"type": "FileSystemResizePending", "status": "True", "message": "waiting", "lastProbeTime": null},
                ],
            },
        }))
        .unwrap();
        assert!(claim.is_block());
        assert_eq!(claim.request().map(Quantity::as_written), Some(&"2Gi".into()));
        assert_eq!(claim.request().and_then(Quantity::bytes), Some(2 << 30));
        assert_eq!((claim.capacity(), claim.allocated()), (Some(1 << 30), Some(2 << 30)));
        assert_eq!(claim.resize_status(), "NodeResizePending");
        assert!(claim.condition("Resizing").is_none());
        assert_eq!(claim.condition("FileSystemResizePending").map(|it| it.message.as_str()), Some("waiting"));
    }

    #[test]
    fn what_is_absent_or_null_is_empty() {
        for status in [serde_json::json!({}), serde_json::json!({"capacity": null, "conditions": null})] {
            let claim = serde_json::json!({"spec": {"resources": null}, "status": status});
            let claim: Claim = serde_json::from_value(claim).unwrap();
            assert!(!claim.is_block());
            assert_eq!((claim.request(), claim.capacity(), claim.allocated()), (None, None, None));
            assert_eq!(claim.resize_status(), "");
        }
    }
}
