//! How the node role learns which VM it runs in: one GET of its own Node in the guest cluster.

use std::{collections::BTreeMap, error::Error, path::PathBuf};

use anyhow::Context;
use cluster::{ApiServer, CredentialsError, Source, Unmetered};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Resource, api::ObjectMeta};
use node::{NodeIdentitySource, NodeObject};
use serde::Deserialize;

/// This worker's Node object, read through the guest cluster's API.
#[derive(Debug)]
pub struct OwnNode {
    guest: ApiServer,
    name: String,
}

/// The part of a Node that we read; the rest (images and conditions are most of its bytes) is dropped while the Node is
/// parsed. It is never written: that would lose every field that this type does not have.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Node")]
struct PartialNode {
    metadata: ObjectMeta,
    spec: Option<PartialSpec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PartialSpec {
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
}

impl OwnNode {
    /// The Node `name` of the guest cluster that `kubeconfig` names; `None` = the pod's own cluster. Makes no call.
    pub async fn open(kubeconfig: Option<PathBuf>, name: String) -> Result<Self, CredentialsError> {
        let (setting, address) = ("--tenant-cluster-kubeconfig", String::new());
        let source = Source { cluster: "guest", setting, kubeconfig, address };
        Ok(Self { guest: ApiServer::open(source, Unmetered).await?, name })
    }
}

impl NodeIdentitySource for OwnNode {
    async fn node(&self) -> Result<NodeObject, Box<dyn Error + Send + Sync>> {
        let Self { guest, name } = self;
        let found = cluster::get(&Api::<PartialNode>::all(guest.client()), name).await;
        let found = found.with_context(|| format!("the guest cluster's node {name:?} can't be read"))?;
        let node = found.with_context(|| {
            format!(
                "the guest cluster has no node {name:?}; check --node-name, it must be the name of the Node object"
            )
        })?;
        Ok(NodeObject {
            provider_id: node.spec.unwrap_or_default().provider_id.filter(|id| !id.is_empty()),
            annotations: node.metadata.annotations.unwrap_or_else(BTreeMap::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response, StatusCode};
    use kube::client::{Body, Client};
    use rstest::rstest;
    use serde_json::{Value, json};

    async fn node_of(status: StatusCode, body: Value) -> Result<NodeObject, String> {
        let service = tower::service_fn(move |request: Request<Body>| {
            assert_eq!((request.method().as_str(), request.uri().path()), ("GET", "/api/v1/nodes/worker-1"));
            let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
            async move { response }
        });
        let guest = ApiServer::over(Client::new(service, "default"), Unmetered);
        let node = OwnNode { guest, name: "worker-1".to_owned() }.node().await;
        node.map_err(|error| cluster::chain(&*error))
    }

    fn failure(status: StatusCode, reason: &str) -> (StatusCode, Value) {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status.as_u16(),
            "message": format!("{reason} of the test"), "reason": reason,
            "details": { "kind": "nodes", "name": "worker-1" },
        });
        (status, body)
    }

    #[tokio::test]
    async fn keeps_the_provider_id_and_the_annotations_of_a_node() {
        let node = json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": { "name": "worker-1", "annotations": { "cluster.x-k8s.io/cluster-namespace": "hcp" } },
            "spec": { "providerID": "kubevirt://vm-1", "taints": [] },
            "status": { "images": [{ "sizeBytes": 1 }] },
        });
        let node = node_of(StatusCode::OK, node).await.expect("is read");
        assert_eq!(node.provider_id.as_deref(), Some("kubevirt://vm-1"));
        assert_eq!(node.annotations["cluster.x-k8s.io/cluster-namespace"], "hcp");
    }

    #[tokio::test]
    async fn a_fresh_node_has_neither() {
        let node =
            json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": "worker-1" }, "spec": {} });
        assert_eq!(node_of(StatusCode::OK, node).await, Ok(NodeObject::default()));
    }

    #[tokio::test]
    async fn only_a_proved_absence_is_no_such_node() {
        let (status, body) = failure(StatusCode::NOT_FOUND, "NotFound");
        let error = node_of(status, body).await.expect_err("fails");
        assert!(error.contains("has no node \"worker-1\"") && error.contains("--node-name"), "{error}");
        let page = node_of(StatusCode::NOT_FOUND, json!("404 page not found")).await.expect_err("fails");
        assert!(!page.contains("has no node") && page.contains("404 page not found"), "{page}");
    }

    #[rstest]
    #[case(StatusCode::FORBIDDEN, "Forbidden")]
    #[case(StatusCode::UNAUTHORIZED, "Unauthorized")]
    #[case(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")]
    #[tokio::test]
    async fn a_failed_observation_keeps_the_servers_words(#[case] status: StatusCode, #[case] reason: &str) {
        let (status, body) = failure(status, reason);
        let error = node_of(status, body).await.expect_err("fails");
        assert!(error.contains("worker-1") && error.contains(reason), "{error}");
    }

    #[tokio::test]
    async fn debug_output_holds_no_token() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("value");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
             users: [{name: u, user: {token: s3cr3t}}]\n\
             contexts: [{name: c, context: {cluster: c, user: u}}]\n";
        tokio::fs::write(&path, text).await.expect("writes");
        let node = OwnNode::open(Some(path), "worker-1".to_owned()).await.expect("loads");
        assert!(!format!("{node:?}").contains("s3cr3t"));
    }
}
