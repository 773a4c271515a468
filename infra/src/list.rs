//! A list as the API answers it.

use kubevirt::null_as_default;
use serde::Deserialize;

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
