//! JSON patches (RFC 6902), by which an object changes only where it still is as it was read.

use serde::Serialize;

/// One JSON patch operation (RFC 6902).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum PatchOp {
    /// The whole patch fails unless `path` has this value. The API server takes a test for `null` as a test for absence
    /// (KubeVirt's own patches rely on it too).
    Test {
        /// JSON pointer.
        path: String,
        /// Expected value.
        value: serde_json::Value,
    },
    /// Sets `path`.
    Add {
        /// JSON pointer.
        path: String,
        /// New value.
        value: serde_json::Value,
    },
    /// Removes `path`.
    Remove {
        /// JSON pointer.
        path: String,
    },
}

impl PatchOp {
    /// A test for a value.
    pub fn test(path: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        Self::Test { path: path.into(), value: value.into() }
    }

    /// A test for absence.
    pub fn test_absent(path: impl Into<String>) -> Self {
        Self::Test { path: path.into(), value: serde_json::Value::Null }
    }

    /// An addition or replacement.
    pub fn add(path: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        Self::Add { path: path.into(), value: value.into() }
    }

    /// A removal.
    pub fn remove(path: impl Into<String>) -> Self {
        Self::Remove { path: path.into() }
    }
}

/// JSON pointer of an annotation (RFC 6901 escapes).
pub fn annotation_path(key: &str) -> String {
    format!("/metadata/annotations/{}", escape(key))
}

/// JSON pointer of a label (RFC 6901 escapes).
pub fn label_path(key: &str) -> String {
    format!("/metadata/labels/{}", escape(key))
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_operations_are_rfc_6902() {
        let ops = [
            PatchOp::test_absent(annotation_path("csi.kubevirt.io/holder")),
            PatchOp::add(annotation_path("a~b"), "v"),
            PatchOp::remove("/x"),
        ];
        assert_eq!(
            serde_json::to_value(ops).unwrap(),
            serde_json::json!([
                {"op": "test", "path": "/metadata/annotations/csi.kubevirt.io~1holder", "value": null},
                {"op": "add", "path": "/metadata/annotations/a~0b", "value": "v"},
                {"op": "remove", "path": "/x"},
            ])
        );
    }
}
