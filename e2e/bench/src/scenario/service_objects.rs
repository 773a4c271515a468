//! The objects that a user of the guest cluster makes: a load balancer, and pods that answer behind it.

use k8s_openapi::api::core::v1::{Pod, Service};
use serde_json::{Value, json};

use super::guest_objects::from_literal;
use crate::artifact::ANSWERER;

/// The load balancer's port.
pub const PORT: u16 = 80;

/// The port of the program in the pods, over HTTP and over UDP.
const TARGET_PORT: u16 = 8080;

/// The label by which a Service finds its pods.
const APP: &str = "app";

/// A LoadBalancer Service before the pods whose app has its name, over HTTP.
///
/// # Panics
/// Never: the literal has the type's shape, which a unit test shows.
pub fn load_balancer(name: &str) -> Service {
    from_literal(json!({
        "metadata": {"name": name},
        "spec": {
            "type": "LoadBalancer",
            "selector": {APP: name},
            "ports": [{"name": "http", "port": PORT, "targetPort": TARGET_PORT}],
        },
    }))
}

/// A pod that answers as one of `app`, on a worker or wherever the scheduler puts it.
///
/// # Panics
/// Never: the literal has the type's shape, which a unit test shows.
pub fn answering_pod(name: &str, app: &str, node: Option<&str>) -> Pod {
    let mut spec = answering_pod_spec();
    spec["nodeSelector"] = node.map(|node| json!({"kubernetes.io/hostname": node})).into();
    from_literal(json!({"metadata": {"name": name, "labels": {APP: app}}, "spec": spec}))
}

/// The spec of an [`answering_pod`].
pub fn answering_pod_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": false,
        "containers": [{
            "name": "answerer",
            "image": ANSWERER,
            "imagePullPolicy": "Never",
            "readinessProbe": {"tcpSocket": {"port": TARGET_PORT}, "periodSeconds": 1, "timeoutSeconds": 5},
        }],
    })
}

/// Whether a pod is Ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_have_their_types_shape() {
        assert_eq!(load_balancer("web").metadata.name.as_deref(), Some("web"));
        let pod = answering_pod("web-1", "web", Some("worker-1"));
        let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
        assert_eq!(selector.get("kubernetes.io/hostname").map(String::as_str), Some("worker-1"));
        assert!(!is_ready(&pod));
    }
}
