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
    for right in infra::REQUIRED_RIGHTS.iter().chain([&infra::UNPLUG_FROM_VMI]) {
        // Every authenticated user may ask about their own rights (ClusterRole system:basic-user).
        if right.group == "authorization.k8s.io" {
            continue;
        }
        let granted = grants(&role, right.group, right.resource, right.verb);
        assert!(granted, "{} {} ({})", right.verb, right.resource, right.purpose);
    }
}

#[test]
fn the_optional_roles_grant_the_right_that_they_are_for_and_no_other() {
    for (folder, right) in [
        ("delete-claims", infra::DELETE_CLAIMS),
        ("read-events", infra::LIST_EVENTS),
        ("watch-instances", infra::WATCH_INSTANCES),
    ] {
        let role = document(&format!("controller-infra/{folder}/role.yaml"), "Role");
        let only = serde_json::json!([
            {"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]}
        ]);
        assert_eq!(role["rules"], only, "{folder}");
        let base = document("controller-infra/base/rbac.yaml", "Role");
        assert!(!grants(&base, right.group, right.resource, right.verb), "{folder}: it is optional");
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

/// The controller's Deployments: the file, and the volumes with the credentials of the infra and of the guest cluster.
const CONTROLLERS: [(&str, &str, &str); 2] = [
    ("controller-infra/base/deployment.yaml", "infra-token", "tenantcluster"),
    ("controller-tenant/base/deployment.yaml", "infracluster", "guest-token"),
];

#[test]
fn no_container_holds_the_credentials_of_both_clusters() {
    for (path, of_infra, of_guest) in CONTROLLERS {
        let deployment = document(path, "Deployment");
        let snapshotter =
            document(&path.replace("base/deployment", "snapshots/csi-snapshotter"), "Deployment");
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false, "{path}");
        for of in [of_infra, of_guest] {
            assert!(list(&pod["volumes"]).iter().any(|volume| volume["name"] == of), "{path}: {of}");
        }
        let added = &snapshotter["spec"]["template"]["spec"]["containers"];
        for container in list(&pod["containers"]).iter().chain(list(added)) {
            let mounts =
                |volume: &str| list(&container["volumeMounts"]).iter().any(|mount| mount["name"] == volume);
            let is_driver = container["name"] == "csi-driver";
            assert_eq!(mounts(of_infra), is_driver, "{path}: {}", container["name"]);
            assert_eq!(mounts(of_guest), !is_driver, "{path}: {}", container["name"]);
        }
    }
}

#[test]
fn the_controller_in_the_guest_differs_in_its_credentials_only() {
    let containers = |path: &str| {
        let deployment = document(path, "Deployment");
        let mut containers = deployment["spec"]["template"]["spec"]["containers"].clone();
        for container in containers.as_array_mut().expect("containers") {
            container["volumeMounts"].take();
            let args = container["args"].as_array_mut().expect("arguments");
            args.retain(|arg| !arg.as_str().is_some_and(|arg| arg.contains("kubeconfig=")));
        }
        containers
    };
    let [(infra, ..), (tenant, ..)] = CONTROLLERS;
    assert_eq!(containers(infra), containers(tenant));
    let snapshotters =
        CONTROLLERS.map(|(path, ..)| path.replace("base/deployment", "snapshots/csi-snapshotter"));
    assert_eq!(containers(&snapshotters[0]), containers(&snapshotters[1]));
    let (config, other) =
        ("controller-infra/base/driver-config.yaml", "controller-tenant/base/driver-config.yaml");
    assert_eq!(document(config, "ConfigMap")["data"], document(other, "ConfigMap")["data"]);
}

#[test]
fn the_controller_in_the_guest_finds_what_others_make_for_it() {
    let deployment = document(CONTROLLERS[1].0, "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let containers = list(&pod["containers"]);
    let driver = containers.iter().find(|one| one["name"] == "csi-driver").expect("the driver");
    let mount = list(&driver["volumeMounts"]).iter().find(|mount| mount["name"] == "infracluster");
    let path = mount.expect("the credentials")["mountPath"].as_str().expect("a path");
    // kubevirt/csi-driver's Secret and key.
    let flag = format!("--infra-cluster-kubeconfig={path}/kubeconfig");
    assert!(list(&driver["args"]).iter().any(|arg| *arg == flag), "{flag}");
    let volume = list(&pod["volumes"]).iter().find(|volume| volume["name"] == "infracluster");
    assert_eq!(volume.expect("the volume")["secret"]["secretName"], "infra-cluster-credentials");
    let account = document("tenant/base/rbac-controller.yaml", "ServiceAccount");
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(deployment["metadata"]["namespace"], account["metadata"]["namespace"]);
    let base = document("controller-tenant/infra/kustomization.yaml", "Kustomization");
    let kept = ["ServiceAccount", "Role", "RoleBinding"];
    let removed: Vec<Value> = patches(&base).iter().map(|patch| patch["kind"].clone()).collect();
    for path in ["deployment.yaml", "disruption-budget.yaml", "driver-config.yaml", "rbac.yaml"] {
        for document in documents(&format!("controller-infra/base/{path}")) {
            let kind = document["kind"].as_str().expect("a kind");
            let is_removed = removed.iter().any(|removed| removed == kind);
            assert_eq!(is_removed, !kept.contains(&kind), "{kind}");
        }
    }
}

#[test]
fn on_a_worker_only_the_driver_holds_credentials() {
    let daemonset = document("tenant/base/daemonset.yaml", "DaemonSet");
    let pod = &daemonset["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let volumes = list(&pod["volumes"]).iter().filter(|volume| volume.get("projected").is_some());
    let names: Vec<&Value> = volumes.map(|volume| &volume["name"]).collect();
    assert_eq!(names, ["token"]);
    for container in list(&pod["containers"]) {
        let mount = list(&container["volumeMounts"]).iter().find(|mount| mount["name"] == "token");
        assert_eq!(mount.is_some(), container["name"] == "csi-driver", "{}", container["name"]);
        if let Some(mount) = mount {
            assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
        }
    }
}

#[test]
fn the_driver_sees_the_workers_processes_only_with_its_component() {
    let daemonset = document("tenant/base/daemonset.yaml", "DaemonSet");
    let pod = &daemonset["spec"]["template"]["spec"];
    for namespace in ["hostPID", "hostNetwork", "hostIPC"] {
        assert!(pod.get(namespace).is_none(), "{namespace}");
    }
    let component = document("tenant/host-pid/kustomization.yaml", "Component");
    let patches = patches(&component);
    assert_eq!(patches.len(), 1);
    for key in ["apiVersion", "kind"] {
        assert_eq!(patches[0][key], daemonset[key]);
    }
    for key in ["name", "namespace"] {
        assert_eq!(patches[0]["metadata"][key], daemonset["metadata"][key]);
    }
    assert_eq!(patches[0]["spec"], serde_json::json!({"template": {"spec": {"hostPID": true}}}));
}

#[test]
fn the_driver_is_started_by_its_entry_point() {
    let controllers = CONTROLLERS.map(|(path, ..)| (path, "Deployment"));
    for (path, kind) in controllers.into_iter().chain([("tenant/base/daemonset.yaml", "DaemonSet")]) {
        let workload = document(path, kind);
        let containers = list(&workload["spec"]["template"]["spec"]["containers"]);
        let driver =
            containers.iter().find(|container| container["name"] == "csi-driver").expect("the driver");
        assert_eq!(driver["image"], "kubevirt-csi-driver");
        assert!(driver.get("command").is_none(), "{path}: args only, as every installer has it");
    }
}

/// All texts in a document.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(fields) => fields.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// The patches of a kustomization, parsed.
fn patches(kustomization: &Value) -> Vec<Value> {
    let patches = list(&kustomization["patches"]).iter().filter_map(|patch| patch["patch"].as_str());
    patches.map(|text| serde_saphyr::from_str(text).expect("a patch is YAML")).collect()
}

#[test]
fn the_storage_class_takes_no_decision_that_can_not_be_changed() {
    let class = document("tenant/base/storageclass.yaml", "StorageClass");
    assert!(class["metadata"].get("annotations").is_none(), "the guest may have a default class");
    assert!(class["parameters"].get("infraStorageClassName").is_none(), "its name is the overlay's");
}

#[test]
fn another_kubelet_root_replaces_each_place_of_the_default_one() {
    const DEFAULT: &str = "/var/lib/kubelet";
    const PLACEHOLDER: &str = "KUBELET_ROOT";
    let component = document("tenant/kubelet-root/kustomization.yaml", "Component");
    let patches = patches(&component);
    let mut replaced: Vec<String> = patches
        .iter()
        .flat_map(texts)
        .filter(|text| text.starts_with(PLACEHOLDER))
        .map(|text| text.replace(PLACEHOLDER, DEFAULT))
        .collect();
    let daemonset = document("tenant/base/daemonset.yaml", "DaemonSet");
    let mut places: Vec<&str> = texts(&daemonset).into_iter().filter(|text| text.contains(DEFAULT)).collect();
    replaced.sort();
    places.sort_unstable();
    assert_eq!(replaced, places);
    let targets = list(&component["replacements"]).iter().flat_map(|one| list(&one["targets"]));
    let fields: usize = targets.map(|target| list(&target["fieldPaths"]).len()).sum();
    assert_eq!(fields, places.len(), "each placeholder is replaced");
}

#[test]
fn on_openshift_no_pod_of_the_infra_half_names_a_user() {
    let component = document("controller-infra/openshift/kustomization.yaml", "Component");
    let patches = patches(&component);
    let removed = &patches[0]["spec"]["template"]["spec"]["securityContext"];
    let deployment = document("controller-infra/base/deployment.yaml", "Deployment");
    let context = &deployment["spec"]["template"]["spec"]["securityContext"];
    for id in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert!(context[id].is_number(), "the images of the CSI driver name no user: {id}");
        assert!(removed.get(id).is_some_and(Value::is_null), "{id}");
    }
    for (path, kind) in [("base/deployment.yaml", "Deployment"), ("cleanup/job.yaml", "Job")] {
        let pod = document(&format!("cloud-controller-manager/infra/{path}"), kind);
        let context = &pod["spec"]["template"]["spec"]["securityContext"];
        assert_eq!(context["runAsNonRoot"], true, "{path}");
        assert!(context.get("runAsUser").is_none(), "{path}: the image names it");
    }
}

#[test]
fn the_probe_of_the_registrar_reaches_its_endpoint() {
    let daemonset = document("tenant/base/daemonset.yaml", "DaemonSet");
    let containers = list(&daemonset["spec"]["template"]["spec"]["containers"]);
    let registrar = containers.iter().find(|one| one["name"] == "csi-node-driver-registrar");
    let registrar = registrar.expect("the registrar");
    let probe = &registrar["livenessProbe"]["httpGet"];
    assert_eq!(probe["path"], "/healthz");
    let port = list(&registrar["ports"]).iter().find(|port| port["name"] == probe["port"]);
    let flag = format!("--http-endpoint=:{}", port.expect("the port of the probe")["containerPort"]);
    assert!(list(&registrar["args"]).iter().any(|argument| *argument == flag), "{flag}");
}

#[test]
fn each_disruption_budget_is_of_its_deployment_and_stops_no_drain() {
    for folder in ["controller-infra/base", "cloud-controller-manager/infra/base"] {
        let budget = document(&format!("{folder}/disruption-budget.yaml"), "PodDisruptionBudget");
        let deployment = document(&format!("{folder}/deployment.yaml"), "Deployment");
        assert_eq!(budget["spec"]["selector"], deployment["spec"]["selector"], "{folder}");
        assert_eq!(budget["spec"]["maxUnavailable"], 1, "{folder}");
    }
    // In the guest the DaemonSet's pods have the labels of the Deployment's selector: the budget selects by one more.
    let budget = document("controller-tenant/base/disruption-budget.yaml", "PodDisruptionBudget");
    let pods = document("controller-tenant/base/deployment.yaml", "Deployment");
    let daemonset = document("tenant/base/daemonset.yaml", "DaemonSet");
    let selected = budget["spec"]["selector"]["matchLabels"].as_object().expect("labels");
    let has = |workload: &Value| {
        let labels = &workload["spec"]["template"]["metadata"]["labels"];
        selected.iter().all(|(label, value)| labels[label] == *value)
    };
    assert!(has(&pods) && !has(&daemonset), "{selected:?}");
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
}

#[test]
fn deployment_and_cleanup_take_the_cluster_name_from_the_same_key() {
    let config = document("cloud-controller-manager/infra/base/cloud-config.yaml", "ConfigMap");
    for (path, kind) in [("base/deployment.yaml", "Deployment"), ("cleanup/job.yaml", "Job")] {
        let workload = document(&format!("cloud-controller-manager/infra/{path}"), kind);
        let container = &workload["spec"]["template"]["spec"]["containers"][0];
        assert!(
            list(&container["args"]).iter().any(|one| *one == "--cluster-name=$(CLUSTER_NAME)"),
            "{path}"
        );
        let variable = list(&container["env"]).iter().find(|one| one["name"] == "CLUSTER_NAME");
        let source = &variable.expect("the variable")["valueFrom"]["configMapKeyRef"];
        assert_eq!(source["name"], config["metadata"]["name"], "{path}");
        let key = source["key"].as_str().expect("a key");
        assert!(config["data"][key].is_string(), "{path}: the ConfigMap has no {key}");
    }
}

/// A user runs Kubernetes' tests with these files as they are, after an installation from `deploy/`.
#[test]
fn the_definitions_for_kubernetes_tests_name_our_driver_and_our_classes() {
    let storage = document("tenant/base/storageclass.yaml", "StorageClass");
    let snapshots = document("tenant/snapshots/volumesnapshotclass.yaml", "VolumeSnapshotClass");
    let driver = document("tenant/base/csidriver.yaml", "CSIDriver");
    for file in ["testdriver.yaml", "testdriver-shared-block.yaml"] {
        let definition = &documents(&format!("conformance/{file}"))[0];
        assert_eq!(definition["DriverInfo"]["Name"], driver["metadata"]["name"], "{file}");
        assert_eq!(
            definition["StorageClass"]["FromExistingClassName"], storage["metadata"]["name"],
            "{file}"
        );
        if let Some(class) = definition["SnapshotClass"].get("FromExistingClassName") {
            assert_eq!(*class, snapshots["metadata"]["name"], "{file}");
        }
    }
    let definition = &documents("conformance/testdriver.yaml")[0];
    let capabilities = &definition["DriverInfo"]["Capabilities"];
    assert_eq!(capabilities["controllerExpansion"], storage["allowVolumeExpansion"]);
    assert_eq!(capabilities["RWX"], false, "it would ask for filesystems that many nodes write");
}
