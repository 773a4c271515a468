//! Metadata of API objects without the fields that no code reads.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, Time};
use serde::{Deserialize, Deserializer};

/// Our name in `managedFields`: the upstream cloud provider's, which is the name of its program. The entry that
/// upstream left on an object is therefore ours from the first change on, and what it wrote and no Service needs any
/// more goes away.
pub const FIELD_MANAGER: &str = "kubevirt-cloud-controller-manager";

/// The metadata that is read. `managedFields`, which is the larger part of many objects, is never kept.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Lean {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

/// The name under which the last of the `entries` was made that `counts`, in `managedFields`.
pub(crate) fn last_writer(
    entries: &[ManagedFieldsEntry],
    counts: impl Fn(&ManagedFieldsEntry) -> bool,
) -> Option<String> {
    let last =
        entries.iter().filter(|entry| counts(entry)).max_by_key(|entry| entry.time.as_ref().map(|it| it.0));
    last?.manager.clone()
}

/// Reads metadata and drops the fields that no code reads.
pub(crate) fn lean_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let lean = Lean::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: lean.name,
        uid: lean.uid,
        resource_version: lean.resource_version,
        labels: lean.labels,
        annotations: lean.annotations,
        creation_timestamp: lean.creation_timestamp,
        deletion_timestamp: lean.deletion_timestamp,
        ..ObjectMeta::default()
    })
}
