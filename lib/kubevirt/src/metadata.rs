//! The part of an object's metadata that is read, and how Go writes an empty value. `managedFields`, the larger part of
//! many objects, are never kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// The part of `ObjectMeta` that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Object name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// Namespace.
    #[serde(deserialize_with = "null_as_default")]
    pub namespace: String,
    /// Object UID.
    #[serde(deserialize_with = "null_as_default")]
    pub uid: String,
    /// Version for optimistic concurrency.
    #[serde(deserialize_with = "null_as_default")]
    pub resource_version: String,
    /// Labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
    /// Finalizers.
    #[serde(deserialize_with = "null_as_default")]
    pub finalizers: Vec<String>,
    /// When the object was made (RFC 3339).
    pub creation_timestamp: Option<String>,
    /// Set once the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// Owners.
    #[serde(deserialize_with = "null_as_default")]
    pub owner_references: Vec<OwnerReference>,
}

/// The part of an owner reference that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Kind of the owner.
    #[serde(deserialize_with = "null_as_default")]
    pub kind: String,
    /// Name of the owner.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// Whether it is the managing controller.
    #[serde(deserialize_with = "null_as_default")]
    pub controller: bool,
}

/// Go writes a nil map or slice as `null`; both mean empty. A `null` anywhere else means what a missing field means.
pub fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_of_go_are_empty() {
        let metadata: Metadata = serde_json::from_str(
            r#"{"name":"x","labels":null,"ownerReferences":null,"managedFields":[{"a":1}]}"#,
        )
        .unwrap();
        assert_eq!(metadata.name, "x");
        assert!(metadata.labels.is_empty() && metadata.owner_references.is_empty());
    }

    #[test]
    fn a_null_is_as_a_missing_field() {
        let nulls =
            r#"{"name":null,"uid":null,"resourceVersion":null,"annotations":null,"deletionTimestamp":null}"#;
        assert_eq!(serde_json::from_str::<Metadata>(nulls).unwrap(), Metadata::default());
        let owner = serde_json::from_str::<OwnerReference>(r#"{"kind":null,"name":null,"controller":null}"#);
        assert_eq!(owner.unwrap(), OwnerReference::default());
    }
}
