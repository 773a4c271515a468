//! The infra `PersistentVolumeClaim` behind a volume: the part that we read.

use std::collections::BTreeMap;

use kubevirt::{Metadata, null_as_default};
use serde::Deserialize;

use crate::{guest_guard::Guarded, quantity::parse_quantity};

/// `status.phase` of a claim that has its volume.
const BOUND: &str = "Bound";
/// `spec.volumeMode` of a block device.
const BLOCK: &str = "Block";

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
    /// Requested resources.
    #[serde(deserialize_with = "null_as_default")]
    pub resources: ClaimResources,
}

/// The part of a claim's resources that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimResources {
    /// Quantities by resource, as they are written.
    #[serde(deserialize_with = "null_as_default")]
    pub requests: BTreeMap<String, String>,
}

/// The part of a claim's status that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimStatus {
    /// `Pending`, `Bound` or `Lost`.
    pub phase: String,
}

impl Claim {
    /// Whether the claim is being deleted.
    pub fn deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether it has its volume.
    pub fn is_bound(&self) -> bool {
        self.status.phase == BOUND
    }

    /// Whether the disk is the claim's block device. Else it is a file on the claim's filesystem, and smaller than the
    /// claim.
    pub fn is_block(&self) -> bool {
        self.spec.volume_mode == BLOCK
    }

    /// Requested size in bytes; `None` when absent or not a quantity.
    pub fn requested(&self) -> Option<u64> {
        self.spec.resources.requests.get("storage").and_then(|text| parse_quantity(text))
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
}
