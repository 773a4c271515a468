//! What kubelet does with a claim whose volume has grown, once a pod uses it: `NodeExpandVolume`, and the end of the claim's
//! expansion in its status (kubelet's `MarkFSResizeFinished`).

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::{Controller, controller::Action, reflector::ObjectRef, watcher},
};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::simulated;
use crate::simulator::{infra_storage, quantity::bytes, queue};

/// csi-resizer's state of a claim that is for kubelet to go on with, and the older condition that says the same.
const PENDING: &str = "NodeResizePending";
const PENDING_CONDITION: &str = "FileSystemResizePending";
/// The conditions that end with the expansion (kubelet's `resizeConditions`, and the condition that an expansion began).
const RESIZE_CONDITIONS: [&str; 4] =
    [PENDING_CONDITION, "Resizing", "ControllerResizeError", "NodeResizeError"];

struct Expansions {
    client: Client,
    volumes: PathBuf,
}

/// Expands claims until the handle is dropped.
pub(super) fn run(client: Client, volumes: PathBuf) -> AbortOnDropHandle<()> {
    let claims: Api<PersistentVolumeClaim> = Api::all(client.clone());
    let pods: Api<Pod> = Api::all(client.clone());
    let controller = Controller::new(claims, watcher::Config::default()).watches(
        pods,
        watcher::Config::default(),
        |pod: Pod| {
            let namespace = pod.namespace().unwrap_or_default();
            let claims = simulated::claims(&pod).map(|name| ObjectRef::new(name).within(&namespace));
            claims.collect::<Vec<_>>()
        },
    );
    queue::run("infra-expansion", controller, Arc::new(Expansions { client, volumes }), reconcile)
}

async fn reconcile(claim: Arc<PersistentVolumeClaim>, context: Arc<Expansions>) -> Result<Action> {
    if is_pending(&claim) && context.is_used(&claim).await? {
        context.expand(&claim).await?;
    }
    Ok(Action::await_change())
}

impl Expansions {
    async fn is_used(&self, claim: &PersistentVolumeClaim) -> Result<bool> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        let pods = pods.list(&ListParams::default()).await?;
        Ok(pods.items.iter().any(|pod| uses(pod, &claim.name_any())))
    }

    async fn expand(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let spec = volumes.get(&name).await?.spec.unwrap_or_default();
        let size = spec.capacity.and_then(|mut capacity| capacity.remove("storage"));
        let size = size.with_context(|| format!("PV {name} has no capacity"))?;
        let mode = spec.volume_mode.as_deref();
        infra_storage::expand_on_node(&self.volumes, &name, mode, bytes(&size)?).await?;
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        let patch = Patch::Merge(finished(claim, &size.0));
        claims.patch_status(&claim.name_any(), &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

fn is_pending(claim: &PersistentVolumeClaim) -> bool {
    let Some(status) = &claim.status else { return false };
    let resources = status.allocated_resource_statuses.as_ref();
    let conditions = status.conditions.as_deref().unwrap_or_default();
    resources.and_then(|resources| resources.get("storage")).is_some_and(|state| state == PENDING)
        || conditions.iter().any(|condition| condition.type_ == PENDING_CONDITION)
}

/// Whether kubelet has the claim's volume for this pod, or is about to.
fn uses(pod: &Pod, claim: &str) -> bool {
    let lives = matches!(simulated::phase(pod), "Pending" | "Running");
    lives && !simulated::node_of(pod).is_empty() && simulated::claims(pod).any(|name| name == claim)
}

/// The status of a claim whose expansion has ended, as a merge patch.
fn finished(claim: &PersistentVolumeClaim, size: &str) -> Value {
    let conditions =
        claim.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let kept: Vec<_> = conditions
        .iter()
        .filter(|condition| !RESIZE_CONDITIONS.contains(&condition.type_.as_str()))
        .collect();
    json!({
        "metadata": {"resourceVersion": claim.resource_version(), "uid": claim.uid()},
        "status": {
            "capacity": {"storage": size},
            "conditions": if kept.is_empty() { Value::Null } else { json!(kept) },
            "allocatedResourceStatuses": {"storage": null},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(status: &Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "uid": "u"}, "status": status}))
            .expect("a claim")
    }

    #[test]
    fn only_what_the_resizer_leaves_to_kubelet_is_pending() {
        assert!(is_pending(&claim(&json!({"allocatedResourceStatuses": {"storage": "NodeResizePending"}}))));
        let condition = json!([{"type": "FileSystemResizePending", "status": "True"}]);
        assert!(is_pending(&claim(&json!({"conditions": condition}))));
        for other in ["ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInProgress"] {
            assert!(
                !is_pending(&claim(&json!({"allocatedResourceStatuses": {"storage": other}}))),
                "{other}"
            );
        }
        assert!(!is_pending(&claim(&json!({}))));
    }

    #[test]
    fn an_expansion_leaves_other_conditions_alone() {
        let claim = claim(&json!({"conditions": [
            {"type": "FileSystemResizePending", "status": "True"}, {"type": "ModifyingVolume", "status": "True"}]}));
        let patch = finished(&claim, "2Gi");
        assert_eq!(patch["status"]["capacity"]["storage"], "2Gi");
        let kept = patch["status"]["conditions"].as_array().expect("conditions");
        assert_eq!((kept.len(), &kept[0]["type"]), (1, &json!("ModifyingVolume")));
        assert!(patch["status"]["allocatedResourceStatuses"]["storage"].is_null());
    }

    #[test]
    fn a_pod_uses_its_claims_from_its_node_on_until_its_end() {
        let pod = |node: Value, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p"}, "status": {"phase": phase},
                "spec": {"nodeName": node, "containers": [], "volumes": [
                    {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
            }))
            .expect("a pod")
        };
        assert!(uses(&pod(json!("n"), "Running"), "c") && uses(&pod(json!("n"), "Pending"), "c"));
        assert!(!uses(&pod(json!(null), "Pending"), "c") && !uses(&pod(json!("n"), "Succeeded"), "c"));
        assert!(!uses(&pod(json!("n"), "Running"), "other"));
    }
}
