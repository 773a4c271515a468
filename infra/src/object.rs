//! What every object has: a checked name, and the part of its metadata that we read. `managedFields` are never kept.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer};

/// Longest DNS-1123 subdomain (Kubernetes object names).
const MAX_SUBDOMAIN: usize = 253;
/// Longest DNS-1123 label (Kubernetes volume names inside a VM).
const MAX_LABEL: usize = 63;

/// The name of an object, proven to be a DNS-1123 subdomain: it can be a part of a URL as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(String);

impl ObjectName {
    /// `None` when no Kubernetes object can have this name.
    pub fn parse(name: &str) -> Option<Self> {
        let legal = !name.is_empty() && name.len() <= MAX_SUBDOMAIN && name.split('.').all(is_label_like);
        legal.then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `name` is a DNS-1123 label: 1 to 63 of `[a-z0-9-]`, not starting or ending with `-`.
pub fn is_dns_label(name: &str) -> bool {
    name.len() <= MAX_LABEL && is_label_like(name)
}

fn is_label_like(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('-')
        && !part.ends_with('-')
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The part of `ObjectMeta` that we read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Object name.
    pub name: String,
    /// Object UID.
    pub uid: String,
    /// Version for optimistic concurrency.
    pub resource_version: String,
    /// Labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
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
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Whether it is the managing controller.
    pub controller: bool,
}

/// A list answer; `metadata.continue` names the next page.
#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub(crate) struct List<T> {
    #[serde(default)]
    pub metadata: ListMetadata,
    #[serde(default = "Vec::new", deserialize_with = "null_as_default")]
    pub items: Vec<T>,
}

#[derive(Default, Deserialize)]
pub(crate) struct ListMetadata {
    #[serde(rename = "continue", default)]
    pub next: String,
}

/// Go writes a nil map or slice as `null`; both mean empty.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("pvc-1", true)]
    #[case("a.b-c.d", true)]
    #[case("", false)]
    #[case("../secrets", false)]
    #[case("a/b", false)]
    #[case("UPPER", false)]
    #[case("-a", false)]
    #[case("a..b", false)]
    #[case("a?watch=1", false)]
    fn only_a_dns_name_becomes_a_part_of_a_url(#[case] name: &str, #[case] legal: bool) {
        assert_eq!(ObjectName::parse(name).is_some(), legal);
    }

    #[test]
    fn a_label_has_no_dots_and_at_most_63_characters() {
        assert!(is_dns_label(&"a".repeat(63)));
        assert!(!is_dns_label(&"a".repeat(64)));
        assert!(!is_dns_label("a.b"));
    }

    #[test]
    fn nulls_of_go_are_empty() {
        let metadata: Metadata = serde_json::from_str(
            r#"{"name":"x","labels":null,"ownerReferences":null,"managedFields":[{"a":1}]}"#,
        )
        .unwrap();
        assert_eq!(metadata.name, "x");
        assert!(metadata.labels.is_empty() && metadata.owner_references.is_empty());
    }
}
