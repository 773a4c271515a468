//! The infra nodes: what kubelet, the registrar of infra storage, KubeVirt's node-labeller and virt-handler's heartbeat write on them.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Node, storage::v1::CSINode};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{cluster::storage_classes::PROVISIONER, simulator::queue::conflict};

/// virt-handler's heartbeat comes once a minute or less often; virt-controller gives up a node after five.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(30);

/// The labels that a node gets besides its hostname. Without `schedulable`, a machine type and a CPU model no launcher
/// pod is scheduled.
const OWNED_LABELS: [(&str, &str); 8] = [
    ("kubernetes.io/os", "linux"),
    ("kubernetes.io/arch", "amd64"),
    ("kubevirt.io/schedulable", "true"),
    ("kubevirt.io/ksm-enabled", "false"),
    ("cpu-model.node.kubevirt.io/Penryn", "true"),
    ("host-model-cpu.node.kubevirt.io/Penryn", "true"),
    ("cpu-model-migration.node.kubevirt.io/Penryn", "true"),
    ("machine-type.node.kubevirt.io/q35", "true"),
];

/// Creates a node, or brings one up to date.
pub(super) async fn write(client: &Client, name: &str, address: IpAddr) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node =
        serde_json::from_value(json!({"metadata": {"name": name}})).context("a node with a name")?;
    match nodes.create(&PostParams::default(), &node).await {
        Err(error) if !conflict(&error) => return Err(error).with_context(|| format!("create node {name}")),
        _ => {}
    }
    register_storage(client, name).await?;
    let params = PatchParams::default();
    nodes
        .patch(name, &params, &Patch::Merge(metadata(name)))
        .await
        .with_context(|| format!("label node {name}"))?;
    let status = Patch::Merge(status(address));
    nodes
        .patch_status(name, &params, &status)
        .await
        .with_context(|| format!("write status of node {name}"))?;
    Ok(())
}

/// Says that infra storage is there, as kubelet does for a plugin that registers: without topology and without a limit.
async fn register_storage(client: &Client, name: &str) -> Result<()> {
    let nodes: Api<CSINode> = Api::all(client.clone());
    let driver = json!({"name": PROVISIONER, "nodeID": name, "topologyKeys": null});
    let node: CSINode =
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"drivers": [driver]}}))
            .context("a CSINode with a driver")?;
    match nodes.create(&PostParams::default(), &node).await {
        Err(error) if !conflict(&error) => Err(error).with_context(|| format!("create CSINode {name}")),
        _ => Ok(()),
    }
}

/// Keeps the nodes alive.
pub(super) async fn beat(client: Client, nodes: Vec<String>, address: IpAddr) {
    let mut turn = tokio::time::interval(HEARTBEAT_PERIOD);
    loop {
        turn.tick().await;
        for node in &nodes {
            if let Err(error) = write(&client, node, address).await {
                tracing::warn!(node, "{error:#}; trying again with the next heartbeat");
            }
        }
    }
}

fn metadata(name: &str) -> Value {
    let mut labels: serde_json::Map<String, Value> =
        OWNED_LABELS.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
    labels.insert("kubernetes.io/hostname".to_owned(), name.into());
    json!({
        "metadata": {"labels": labels, "annotations": {"kubevirt.io/heartbeat": now()}},
        // A new node is tainted as not ready; nothing else in the bench removes that taint.
        "spec": {"taints": null},
    })
}

fn status(address: IpAddr) -> Value {
    let capacity = json!({
        "cpu": "64", "memory": "512Gi", "pods": "500", "ephemeral-storage": "500Gi",
        "devices.kubevirt.io/kvm": "1k", "devices.kubevirt.io/tun": "1k", "devices.kubevirt.io/vhost-net": "1k",
    });
    json!({"status": {
        "capacity": capacity, "allocatable": capacity,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the bench posts ready status",
            "lastHeartbeatTime": now(),
        }],
        "addresses": [{"type": "InternalIP", "address": address}],
    }})
}

/// Now, to the second, as Kubernetes writes times.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
