//! A list as the API answers it, and what was read of it.

use cluster::{Readable, Unreadable};
use kubevirt::null_as_default;
use serde::Deserialize;

/// A list answer; `metadata.continue` names the next page.
#[derive(Deserialize)]
#[serde(bound(deserialize = "T: for<'a> Deserialize<'a>"))]
pub(crate) struct List<T> {
    #[serde(default)]
    pub metadata: ListMetadata,
    #[serde(default = "Vec::new", deserialize_with = "null_as_default")]
    pub items: Vec<Readable<T>>,
}

#[derive(Default, Deserialize)]
pub(crate) struct ListMetadata {
    #[serde(rename = "continue", default)]
    pub next: String,
}

/// The objects of all pages.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    pub items: Vec<T>,
    /// Those that can't be read. They were reported. Each has a name.
    pub unread: Vec<Unreadable>,
}
