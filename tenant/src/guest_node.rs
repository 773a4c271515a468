//! A Node, as far as our programs read it. The API server sends all of it (images and conditions are most of its
//! bytes); deserialising into this type drops the rest at once.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;

/// What a guest Node says about the VM behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestNode {
    /// `spec.providerID`, written by the cloud provider or by kubelet's `--provider-id`.
    pub provider_id: Option<String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// Read only: writing it back would lose every field it does not know.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Node")]
pub(crate) struct PartialNode {
    metadata: ObjectMeta,
    spec: Option<PartialNodeSpec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PartialNodeSpec {
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
}

impl From<PartialNode> for GuestNode {
    fn from(node: PartialNode) -> Self {
        Self {
            provider_id: node.spec.unwrap_or_default().provider_id.filter(|id| !id.is_empty()),
            annotations: node.metadata.annotations.unwrap_or_default(),
        }
    }
}
