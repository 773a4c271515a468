//! Every write to a Node of the guest. Each carries the version that it was planned on, so that it fails if the Node
//! has changed since; and each names only the fields that it changes, so that no other is lost.

use k8s_openapi::api::core::v1::Taint;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};

use crate::{
    call::{CallError, call},
    guest::nodes::{GuestNode, NodeAddress, WireNode},
    nodes::init::NodeChange,
    wire::metadata::FIELD_MANAGER,
};

/// Writes Nodes.
#[derive(Clone)]
pub(crate) struct NodeWrites {
    nodes: Api<WireNode>,
}

impl NodeWrites {
    pub(crate) fn new(guest: Client) -> Self {
        Self { nodes: Api::all(guest) }
    }

    /// Writes the whole `status.addresses` and returns the Node's new version. This is not a strategic merge, which
    /// would merge by the type of an address, and a Node can have two addresses of one type.
    pub(crate) async fn addresses(
        &self,
        node: &GuestNode,
        addresses: &[NodeAddress],
    ) -> Result<String, CallError> {
        let list: Vec<Value> =
            addresses.iter().map(|it| json!({"type": it.kind, "address": it.address})).collect();
        let patch = Patch::Merge(versioned(node, json!({"status": {"addresses": list}})));
        let name = &node.claims.name;
        let what = || format!("patch status of node {name}");
        let written = call(what, self.nodes.patch_status(name, &params(), &patch)).await?;
        Ok(GuestNode::from(&written).resource_version)
    }

    /// Writes labels, providerID and taints in one call.
    pub(crate) async fn metadata(&self, node: &GuestNode, metadata: &NodeChange) -> Result<(), CallError> {
        let mut body = json!({"metadata": {"labels": metadata.labels}, "spec": {}});
        if let Some(provider_id) = &metadata.provider_id {
            body["spec"]["providerID"] = json!(provider_id);
        }
        if let Some(taints) = &metadata.taints {
            body["spec"]["taints"] = json!(taints);
        }
        self.patch(node, body).await
    }

    /// Writes the whole `spec.taints`.
    pub(crate) async fn taints(&self, node: &GuestNode, taints: &[Taint]) -> Result<(), CallError> {
        self.patch(node, json!({"spec": {"taints": taints}})).await
    }

    /// Deletes exactly this version of the Node: if it has changed, by a report of kubelet for example, it stays.
    pub(crate) async fn delete(&self, node: &GuestNode) -> Result<(), CallError> {
        let preconditions = Preconditions {
            uid: Some(node.uid.clone()),
            resource_version: Some(node.resource_version.clone()),
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let name = &node.claims.name;
        call(|| format!("delete node {name}"), self.nodes.delete(name, &params)).await.map(drop)
    }

    async fn patch(&self, node: &GuestNode, body: Value) -> Result<(), CallError> {
        let name = &node.claims.name;
        let patch = Patch::Merge(versioned(node, body));
        call(|| format!("patch node {name}"), self.nodes.patch(name, &params(), &patch)).await.map(drop)
    }
}

/// Adds version and UID: the API server refuses the patch if the object has another version, or is another object of
/// that name.
fn versioned(node: &GuestNode, mut body: Value) -> Value {
    body["metadata"]["resourceVersion"] = json!(node.resource_version);
    body["metadata"]["uid"] = json!(node.uid);
    body
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}
