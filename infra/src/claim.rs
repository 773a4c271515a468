//! The infra `PersistentVolumeClaim` behind a volume: the part that we read.

use std::collections::BTreeMap;

use kubevirt::{Metadata, null_as_default};
use serde::Deserialize;

use crate::guest_guard::Guarded;

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
}

impl Guarded for Claim {
    fn name(&self) -> &str {
        &self.metadata.name
    }
    fn labels(&self) -> &BTreeMap<String, String> {
        &self.metadata.labels
    }
}
