//! What the guest's users read about a load balancer: conditions of the Service, and the cloud provider framework's events about Nodes.

use anyhow::{Context, Result, ensure};
use bench::scenario::{Deadline, until};
use bench::simulator::{fault_plan::Hold, infra_load_balancer::Fault};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{ALONE, CLUSTER, Place, merge, mirror_name},
};

tests! {
    Services:
        conditions_tell_its_state;
    Exclusive:
        no_node_is_told;
}

const PROVISIONED: &str = "kubevirt.io/LoadBalancerProvisioned";
const SERVING: &str = "kubevirt.io/LoadBalancerServing";
/// A condition of another controller.
const FOREIGN: &str = "example.org/Checked";
/// Nodes with it take no traffic of load balancers.
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Pending, overdue, provisioned, gone: each with its time of change; another's condition stays as it is.
async fn conditions_tell_its_state(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let node = TestNode::new(&fixture).await?;
    let late = place.faults.inject(Fault::Hold { hold: Hold::Forever, service: None });
    let patient = json!({"creationPollTimeout": 15});
    let _provider = place.provider_with("a", CLUSTER, &[ALONE], patient).await?;
    place.create("web", json!({})).await?;
    place.condition("web", PROVISIONED, ("False", "Pending")).await?;
    place.condition("web", SERVING, ("False", "NotProvisioned")).await?;
    let since = changed(&place, PROVISIONED).await?;
    let foreign = json!({"status": {"conditions": [{"type": FOREIGN, "status": "True", "reason": "Fine",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let parameters = PatchParams::default();
    place.guests.patch_status("web", &parameters, &Patch::Strategic(foreign)).await?;
    place.condition("web", PROVISIONED, ("False", "NoAddress")).await?;
    ensure!(
        changed(&place, PROVISIONED).await? == since,
        "expected the condition's time to stay while its status stays, saw another time"
    );
    drop(late);
    place.condition("web", PROVISIONED, ("True", "Provisioned")).await?;
    place.condition("web", SERVING, ("True", "Serving")).await?;
    ensure!(
        changed(&place, PROVISIONED).await? != since,
        "expected another time of the condition with its status, saw the same"
    );

    // An unchanged condition is not written again.
    let version = place.guests.get("web").await?.metadata.resource_version;
    merge(&place.mirrors, &mirror(&place).await?, json!({"metadata": {"annotations": {"by": "infra"}}}))
        .await?;
    place.create("second", json!({})).await?;
    place.condition("second", PROVISIONED, ("True", "Provisioned")).await?;
    ensure!(
        place.guests.get("web").await?.metadata.resource_version == version,
        "expected the Service unchanged, saw it written again"
    );

    merge(&place.guests, "web", json!({"spec": {"type": "ClusterIP"}})).await?;
    until("only the other's condition", Deadline::Reaction, async || {
        let web = serde_json::to_value(place.guests.get("web").await?)?;
        let kinds: Vec<_> = web["status"]["conditions"].as_array().into_iter().flatten().collect();
        let kinds: Vec<_> = kinds.into_iter().map(|condition| condition["type"].clone()).collect();
        let is_done = kinds == [json!(FOREIGN)] && web["metadata"].get("finalizers").is_none();
        Ok(if is_done { Ok(()) } else { Err(format!("{kinds:?}")) })
    })
    .await?;
    node.remove().await
}

/// All Nodes excluded, one by label, one by the autoscaler's taint: reported at once, and again when one comes back.
async fn no_node_is_told(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let node = TestNode::new(&fixture).await?;
    let _provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    place.create("web", json!({})).await?;
    place.condition("web", SERVING, ("True", "Serving")).await?;
    let taints = json!([{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}]);
    node.patch(json!({"spec": {"taints": taints}})).await?;
    exclude_others(&fixture, &node.name, json!("")).await?;
    place.condition("web", SERVING, ("False", "NoNodes")).await?;
    place.condition("web", PROVISIONED, ("True", "Provisioned")).await?;
    place.has_event("web", "UnAvailableLoadBalancer", "no available nodes").await?;
    place.create("late", json!({})).await?;
    place.condition("late", SERVING, ("False", "NoNodes")).await?;
    place.has_event("late", "UnAvailableLoadBalancer", "no available nodes").await?;

    node.patch(json!({"spec": {"taints": null}, "metadata": {"labels": {EXCLUDE: "false"}}})).await?;
    place.condition("web", SERVING, ("True", "Serving")).await?;
    place.has_event("web", "UpdatedLoadBalancer", "new hosts").await?;
    node.patch(json!({"metadata": {"labels": {EXCLUDE: "true"}}})).await?;
    place.condition("web", SERVING, ("False", "NoNodes")).await?;
    exclude_others(&fixture, &node.name, Value::Null).await?;
    node.remove().await
}

/// When a condition of the Service changed last.
async fn changed(place: &Place, kind: &str) -> Result<Value> {
    let web = serde_json::to_value(place.guests.get("web").await?)?;
    let conditions = web["status"]["conditions"].as_array().context("no conditions")?;
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == kind)
        .context("expected the condition, saw none")?;
    Ok(found["lastTransitionTime"].clone())
}

async fn mirror(place: &Place) -> Result<String> {
    Ok(mirror_name(&place.guests.get("web").await?))
}

/// A Node without a kubelet.
struct TestNode {
    api: Api<Node>,
    name: String,
}

impl TestNode {
    async fn new(fixture: &Fixture) -> Result<Self> {
        let (api, name) = (Api::<Node>::all(fixture.guest.clone()), format!("node-of-{}", fixture.word));
        // Of another provider, so that no controller deletes it for having no VM.
        let node = json!({"metadata": {"name": name}, "spec": {"providerID": format!("other://{name}")}});
        api.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        Ok(Self { api, name })
    }

    async fn patch(&self, patch: Value) -> Result<()> {
        self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn remove(self) -> Result<()> {
        self.api.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// Gives all Nodes of the bench but `but` the label that excludes them, or removes it.
async fn exclude_others(fixture: &Fixture, but: &str, value: Value) -> Result<()> {
    let nodes: Api<Node> = Api::all(fixture.guest.clone());
    let patch = Patch::Merge(json!({"metadata": {"labels": {EXCLUDE: value}}}));
    for node in nodes.list(&ListParams::default()).await? {
        let name = node.metadata.name.unwrap_or_default();
        if name != but {
            nodes.patch(&name, &PatchParams::default(), &patch).await?;
        }
    }
    Ok(())
}
