//! The manifests in `deploy/` fit the program: they grant the rights that the code uses and no more, and no credential
//! goes where it should not.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

fn documents(path: &str) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn document(path: &str, kind: &str) -> Value {
    let found = documents(path).into_iter().find(|document| document["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} in {path}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn grants(role: &Value, group: &str, resource: &str, verb: &str) -> bool {
    let has = |rule: &Value, key: &str, wanted: &str| list(&rule[key]).iter().any(|value| value == wanted);
    list(&role["rules"]).iter().any(|rule| {
        has(rule, "apiGroups", group) && has(rule, "resources", resource) && has(rule, "verbs", verb)
    })
}

#[test]
fn the_infra_role_grants_each_right_that_the_driver_uses() {
    let role = document("controller-infra/base/rbac.yaml", "Role");
    for right in &infra::REQUIRED_RIGHTS {
        // Every authenticated user may ask about their own rights (ClusterRole system:basic-user).
        if right.group == "authorization.k8s.io" {
            continue;
        }
        let granted = grants(&role, right.group, right.resource, right.verb);
        assert!(granted, "{} {} ({})", right.verb, right.resource, right.purpose);
    }
}

#[test]
fn nothing_on_infra_is_watched_or_granted_outside_the_namespace() {
    for document in documents("controller-infra/base/rbac.yaml") {
        let kind = document["kind"].as_str().expect("a kind");
        assert!(["ServiceAccount", "Role", "RoleBinding"].contains(&kind), "{kind}");
        for rule in list(&document["rules"]) {
            for verb in list(&rule["verbs"]) {
                assert!(
                    ["get", "list", "create", "delete", "update", "patch"].iter().any(|known| verb == known)
                );
                assert!(
                    !(verb == "list" && rule["apiGroups"][0] == "cdi.kubevirt.io"),
                    "volumes are never listed"
                );
            }
        }
    }
}

#[test]
fn the_node_role_may_read_nodes_and_nothing_else() {
    let role = document("tenant/base/rbac-node.yaml", "ClusterRole");
    let wanted = serde_json::json!([{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get"] }]);
    assert_eq!(role["rules"], wanted);
}

#[test]
fn no_container_holds_the_credentials_of_both_clusters() {
    let deployment = document("controller-infra/base/deployment.yaml", "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    for container in list(&pod["containers"]) {
        let mounts =
            |volume: &str| list(&container["volumeMounts"]).iter().any(|mount| mount["name"] == volume);
        let is_driver = container["name"] == "csi-driver";
        assert_eq!(mounts("infra-token"), is_driver, "{}", container["name"]);
        assert_eq!(mounts("tenantcluster"), !is_driver, "{}", container["name"]);
    }
}

#[test]
fn the_driver_is_started_by_its_entry_point() {
    for (path, kind) in
        [("controller-infra/base/deployment.yaml", "Deployment"), ("tenant/base/daemonset.yaml", "DaemonSet")]
    {
        let workload = document(path, kind);
        let containers = list(&workload["spec"]["template"]["spec"]["containers"]);
        let driver =
            containers.iter().find(|container| container["name"] == "csi-driver").expect("the driver");
        assert_eq!(driver["image"], "kubevirt-csi-driver");
        assert!(driver.get("command").is_none(), "{path}: args only, as every installer has it");
    }
}
