//! The sidecars of the infra storage, real and unpatched, and the definitions of snapshots. The plugin that they call is
//! `simulator::infra_storage`.
//!
//! Each has the service account and the rights that its project documents. None elects a leader: each is alone.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::ApiServer;
use crate::{
    artifact::Programs,
    supervise::{ProcessSpec, Supervisor},
};

/// The namespace that the projects' manifests give most of their accounts.
const NAMESPACE: &str = "default";

/// snapshot-controller's namespace in its project's manifests.
const CONTROLLER_NAMESPACE: &str = "kube-system";

/// How long a call may take: a fault may hold it up, and a call that ends early is an event that a storage which is only slow
/// would not cause.
const CALL_TIMEOUT: Duration = Duration::from_mins(10);

/// The longest pause after failures, so that work goes on soon after a test takes its fault away. The default is 5 minutes.
const LONGEST_RETRY: Duration = Duration::from_secs(4);

/// Calls per second of a sidecar to the API server. The default of 5 would be the narrowest place of the whole bench.
const API_CALLS: u32 = 100;

/// A program and what is special about it.
struct Sidecar {
    program: &'static str,
    namespace: &'static str,
    /// Whether it calls the plugin.
    calls: bool,
    args: &'static [&'static str],
}

const SIDECARS: [Sidecar; 4] = [
    Sidecar {
        program: "csi-provisioner",
        namespace: NAMESPACE,
        calls: true,
        args: &["--default-fstype=ext4", "--extra-create-metadata=true", "--immediate-topology=false"],
    },
    // Infra volumes grow while a machine has them.
    Sidecar {
        program: "csi-resizer",
        namespace: NAMESPACE,
        calls: true,
        args: &["--handle-volume-inuse-error=false"],
    },
    Sidecar { program: "csi-snapshotter", namespace: NAMESPACE, calls: true, args: &[] },
    Sidecar { program: "snapshot-controller", namespace: CONTROLLER_NAMESPACE, calls: false, args: &[] },
];

/// Creates the kinds of snapshots and waits until they are served.
pub(super) async fn define_snapshots(programs: &Programs, cluster: &ApiServer) -> Result<()> {
    let folder = programs.path("snapshot-definitions")?;
    let mut definitions = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        definitions.extend(manifest(&entry?.path())?);
    }
    // Beside them lies a kustomization.
    definitions.retain(|object| object["kind"] == "CustomResourceDefinition");
    cluster.apply(&definitions).await.context("define snapshots")?;
    cluster.established(&definitions).await
}

/// Starts the sidecars of the plugin at `socket`, which serves already.
pub(super) async fn start(
    supervisor: &Supervisor,
    programs: &Programs,
    infra: &ApiServer,
    socket: &Path,
) -> Result<()> {
    let mut rights = Vec::new();
    for sidecar in &SIDECARS {
        rights.extend(documented_rights(programs, sidecar.program, sidecar.namespace)?);
    }
    infra.apply(&rights).await.context("create the accounts of infra storage's sidecars")?;
    for sidecar in &SIDECARS {
        let account = infra.write_service_account(sidecar.namespace, sidecar.program).await?;
        supervisor.start(&ProcessSpec {
            name: format!("infra-{}", sidecar.program),
            program: programs.path(sidecar.program)?.to_owned(),
            args: arguments(sidecar, &account, socket),
            ..ProcessSpec::default()
        })?;
    }
    Ok(())
}

/// The account of a program and the rights that its project documents.
pub(super) fn documented_rights(programs: &Programs, program: &str, namespace: &str) -> Result<Vec<Value>> {
    let objects = manifest(programs.path(&format!("{program}-rights"))?)?;
    let mut objects: Vec<Value> = objects.into_iter().map(|object| in_namespace(object, namespace)).collect();
    // Neighbours of one kind are applied in parallel, and an account comes before what refers to it.
    objects.sort_by_key(|object| object["kind"] != "ServiceAccount");
    Ok(objects)
}

/// The argument that keeps the pauses after failures short.
pub(super) fn retry_limit() -> String {
    format!("--retry-interval-max={}s", LONGEST_RETRY.as_secs())
}

fn arguments(sidecar: &Sidecar, kubeconfig: &Path, socket: &Path) -> Vec<String> {
    let mut args = vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        retry_limit(),
        format!("--kube-api-qps={API_CALLS}"),
        format!("--kube-api-burst={}", 2 * API_CALLS),
        "--v=2".to_owned(),
    ];
    if sidecar.calls {
        args.push(format!("--csi-address={}", socket.display()));
        args.push(format!("--timeout={}s", CALL_TIMEOUT.as_secs()));
    }
    args.extend(sidecar.args.iter().map(|&arg| arg.to_owned()));
    args
}

/// A manifest leaves out the namespace that `kubectl` would be told.
fn in_namespace(mut object: Value, namespace: &str) -> Value {
    let everywhere = ["ClusterRole", "ClusterRoleBinding"];
    let is_namespaced = !everywhere.iter().any(|kind| object["kind"] == *kind);
    if is_namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        if subject["namespace"].is_null() {
            subject["namespace"] = json!(namespace);
        }
    }
    object
}

fn manifest(path: &Path) -> Result<Vec<Value>> {
    let doing = || format!("read {}", path.display());
    let text = std::fs::read_to_string(path).with_context(doing)?;
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&text).with_context(doing)?;
    objects.retain(|object| !object.is_null());
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_without_a_namespace_gets_one() {
        let account = json!({"kind": "ServiceAccount", "metadata": {"name": "a"}});
        let wanted = json!({"kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "x"}});
        assert_eq!(in_namespace(account, "x"), wanted, "and nothing else");
        let placed = json!({"kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "y"}});
        assert_eq!(in_namespace(placed, "x")["metadata"]["namespace"], "y");
        let binding = json!({"kind": "ClusterRoleBinding", "metadata": {"name": "b"},
            "subjects": [{"name": "a"}, {"name": "b", "namespace": "y"}]});
        let binding = in_namespace(binding, "x");
        assert!(binding["metadata"]["namespace"].is_null());
        let subjects: Vec<_> =
            binding["subjects"].as_array().into_iter().flatten().map(|s| &s["namespace"]).collect();
        assert_eq!(subjects, ["x", "y"]);
    }
}
