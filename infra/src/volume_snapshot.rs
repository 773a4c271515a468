//! The infra `VolumeSnapshot` (snapshot.storage.k8s.io/v1): the part that we read, and the exact object that we create.

use std::collections::BTreeMap;

use kubevirt::{Metadata, ObjectName, null_as_default};
use serde::Deserialize;

use crate::{guest_guard::Guarded, quantity::parse_quantity};

/// API version of the objects that we create.
pub(crate) const API_VERSION: &str = "snapshot.storage.k8s.io/v1";

/// The part of a `VolumeSnapshot` that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Wire")]
pub struct VolumeSnapshot {
    /// Metadata.
    pub metadata: Metadata,
    /// The claim that it was taken of; `None` for one made from an existing snapshot of the storage system.
    pub claim: Option<String>,
    /// `status.readyToUse`: the storage system has the whole snapshot.
    pub is_ready: bool,
    /// `status.restoreSize` in bytes: the smallest claim that the infra storage restores it to.
    pub restore_size: Option<u64>,
    /// `status.creationTime`: the moment that the data is of (RFC 3339).
    pub taken_at: Option<String>,
    /// `status.boundVolumeSnapshotContentName` is set: the storage system has been asked for it.
    pub has_content: bool,
    /// `status.error.message`. The infra cluster's snapshot controller tries again all the same, and removes it then.
    pub error: Option<String>,
}

impl VolumeSnapshot {
    /// Whether it is being deleted.
    pub fn deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
}

impl Guarded for VolumeSnapshot {
    fn name(&self) -> &str {
        &self.metadata.name
    }
    fn labels(&self) -> &BTreeMap<String, String> {
        &self.metadata.labels
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire {
    metadata: Metadata,
    #[serde(deserialize_with = "null_as_default")]
    spec: WireSpec,
    #[serde(deserialize_with = "null_as_default")]
    status: WireStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireSpec {
    #[serde(deserialize_with = "null_as_default")]
    source: WireSource,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireSource {
    persistent_volume_claim_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireStatus {
    ready_to_use: Option<bool>,
    restore_size: Option<serde_json::Value>,
    creation_time: Option<String>,
    bound_volume_snapshot_content_name: Option<String>,
    error: Option<WireError>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireError {
    message: Option<String>,
}

impl From<Wire> for VolumeSnapshot {
    fn from(wire: Wire) -> Self {
        let Wire { metadata, spec, status } = wire;
        let restore_size = status.restore_size.and_then(|size| match size {
            serde_json::Value::String(text) => parse_quantity(&text),
            serde_json::Value::Number(number) => number.as_u64(),
            _ => None,
        });
        Self {
            metadata,
            claim: spec.source.persistent_volume_claim_name,
            is_ready: status.ready_to_use.unwrap_or_default(),
            restore_size,
            taken_at: status.creation_time,
            has_content: status.bound_volume_snapshot_content_name.is_some(),
            error: status.error.map(|error| error.message.unwrap_or_else(|| "no message".to_owned())),
        }
    }
}

/// A `VolumeSnapshot` to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolumeSnapshot {
    /// Object name; of a guest's snapshot also the CSI snapshot id.
    pub name: ObjectName,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The claim to take it of.
    pub claim: ObjectName,
    /// Infra snapshot class; `None` = the infra cluster's default for the claim's driver.
    pub class: Option<String>,
}

impl NewVolumeSnapshot {
    /// The object as the API receives it.
    pub(crate) fn body(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<u8> {
        let mut spec = serde_json::json!({"source": {"persistentVolumeClaimName": self.claim.as_str()}});
        if let Some(class) = &self.class {
            spec["volumeSnapshotClassName"] = class.as_str().into();
        }
        serde_json::json!({
            "apiVersion": API_VERSION,
            "kind": "VolumeSnapshot",
            "metadata": {"name": self.name.as_str(), "namespace": namespace, "labels": labels, "annotations": self.annotations},
            "spec": spec,
        })
        .to_string()
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> VolumeSnapshot {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_created_is_the_object_of_the_reference_and_reads_back() {
        let labels = BTreeMap::from([("csi-driver/cluster".to_owned(), "tenant".to_owned())]);
        let name = |text| ObjectName::parse(text).unwrap();
        let annotations = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let mut new =
            NewVolumeSnapshot { name: name("snapshot-1"), annotations, claim: name("pvc-1"), class: None };
        let body: serde_json::Value = serde_json::from_slice(&new.body("infra", &labels)).unwrap();
        assert_eq!(
            body,
            json!({
                "apiVersion": "snapshot.storage.k8s.io/v1",
                "kind": "VolumeSnapshot",
                "metadata": {
                    "name": "snapshot-1", "namespace": "infra",
                    "labels": {"csi-driver/cluster": "tenant"}, "annotations": {"a": "1"},
                },
                "spec": {"source": {"persistentVolumeClaimName": "pvc-1"}},
            })
        );
        let made = read(body);
        assert_eq!((made.claim.as_deref(), made.is_ready, made.restore_size), (Some("pvc-1"), false, None));
        new.class = Some("fast".into());
        let body: serde_json::Value = serde_json::from_slice(&new.body("infra", &labels)).unwrap();
        assert_eq!(body["spec"]["volumeSnapshotClassName"], "fast");
    }

    #[test]
    fn a_status_is_read() {
        let ready = read(
            json!({"metadata": {"name": "snapshot-1", "creationTimestamp": "2026-11-29T10:00:00Z"},
            "spec": {"source": {"volumeSnapshotContentName": "c"}},
            "status": {"readyToUse": true, "restoreSize": "1Gi", "creationTime": "2026-11-29T10:00:01Z", "error": null}}),
        );
        assert!(ready.is_ready && ready.claim.is_none() && ready.error.is_none());
        assert_eq!(ready.restore_size, Some(1 << 30));
        assert_eq!(ready.taken_at.as_deref(), Some("2026-11-29T10:00:01Z"));
        assert_eq!(ready.metadata.creation_timestamp.as_deref(), Some("2026-11-29T10:00:00Z"));
        let failed = read(
            json!({"status": {"readyToUse": false, "restoreSize": 5, "error": {"message": "no space"}}}),
        );
        assert_eq!((failed.error.as_deref(), failed.restore_size), (Some("no space"), Some(5)));
        assert_eq!(read(json!({"status": {"error": {}}})).error.as_deref(), Some("no message"));
        for empty in [json!({}), json!({"spec": null, "status": null}), json!({"spec": {"source": null}})] {
            assert_eq!(read(empty), VolumeSnapshot::default());
        }
    }
}
