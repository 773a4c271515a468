//! The guest (tenant) cluster as our programs use it. [`Tenant`] is a type of its own, so that it can't be taken for
//! the infra cluster's; each call has its own deadline and asks for no more than the field it needs.

mod credentials;
mod error;
mod guest_node;

use std::time::Duration;

use kube::Api;

pub use credentials::Credentials;
pub use error::TenantError;
pub use guest_node::GuestNode;
use guest_node::PartialNode;

/// The longest one call may take: an API server that needs longer for one GET is not serving. The caller, kubelet,
/// gives a whole CSI call two minutes (its `csiTimeout`).
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The guest cluster's API.
#[derive(Debug)]
pub struct Tenant {
    credentials: Credentials,
}

impl Tenant {
    /// A guest cluster reached with `credentials`.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials }
    }

    /// One GET of a Node, of which only providerID and annotations are kept.
    ///
    /// # Errors
    /// [`TenantError::NoSuchNode`] when the API server says so; every other error means that nothing is known.
    pub async fn node(&self, name: &str) -> Result<GuestNode, TenantError> {
        let client = self.credentials.client().await;
        let nodes: Api<PartialNode> = Api::all(client);
        match tokio::time::timeout(CALL_TIMEOUT, nodes.get_opt(name)).await {
            Ok(Ok(Some(node))) => Ok(node.into()),
            Ok(Ok(None)) => Err(TenantError::NoSuchNode { name: name.to_owned() }),
            Ok(Err(source)) => {
                Err(TenantError::Call { what: format!("node {name}"), source: Box::new(source) })
            }
            Err(_) => Err(TenantError::TimedOut { what: format!("node {name}"), after: CALL_TIMEOUT }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response, StatusCode};
    use kube::client::{Body, Client};
    use rstest::rstest;
    use serde_json::{Value, json};

    fn answering(status: StatusCode, body: Value) -> Tenant {
        let service = tower::service_fn(move |request: Request<Body>| {
            assert_eq!((request.method().as_str(), request.uri().path()), ("GET", "/api/v1/nodes/worker-1"));
            let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
            async move { response }
        });
        Tenant::new(Client::new(service, "default").into())
    }

    fn failure(status: StatusCode, reason: &str) -> (StatusCode, Value) {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "message": format!("{reason} of the test"), "reason": reason, "code": status.as_u16(),
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
        let node = answering(StatusCode::OK, node).node("worker-1").await.expect("is read");
        assert_eq!(node.provider_id.as_deref(), Some("kubevirt://vm-1"));
        assert_eq!(node.annotations["cluster.x-k8s.io/cluster-namespace"], "hcp");
    }

    #[tokio::test]
    async fn a_fresh_node_has_neither() {
        let node =
            json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": "worker-1" }, "spec": {} });
        let node = answering(StatusCode::OK, node).node("worker-1").await.expect("is read");
        assert_eq!(node, GuestNode::default());
    }

    #[tokio::test]
    async fn only_a_proved_absence_is_no_such_node() {
        let (status, body) = failure(StatusCode::NOT_FOUND, "NotFound");
        let error = answering(status, body).node("worker-1").await.expect_err("fails");
        assert!(matches!(error, TenantError::NoSuchNode { .. }), "{error:?}");
    }

    #[rstest]
    #[case(StatusCode::FORBIDDEN, "Forbidden")]
    #[case(StatusCode::UNAUTHORIZED, "Unauthorized")]
    #[case(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")]
    #[tokio::test]
    async fn a_failed_observation_keeps_the_servers_words(#[case] status: StatusCode, #[case] reason: &str) {
        let (status, body) = failure(status, reason);
        let error = answering(status, body).node("worker-1").await.expect_err("fails");
        let TenantError::Call { source, .. } = error else { panic!("{error:?}") };
        assert!(source.to_string().contains(reason), "{source}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends() {
        let silent = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, tower::BoxError>>()
        });
        let tenant = Tenant::new(Client::new(silent, "default").into());
        let error = tenant.node("worker-1").await.expect_err("ends");
        assert!(matches!(error, TenantError::TimedOut { after: CALL_TIMEOUT, .. }), "{error:?}");
    }
}
