//! A Node of the guest, as its kubelet would register it.

use anyhow::{Context, Result};
use bench::scenario::{Deadline, until};
use k8s_openapi::api::core::v1::{Event, Node};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::fixture::Fixture;

/// Kubelet's taint (`--cloud-provider=external`).
pub const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
/// The address that kubelet reports.
pub const NODE_IP: &str = "192.0.2.7";

/// A Node as kubelet registers it.
pub struct GuestNode {
    /// The guest's Nodes.
    pub nodes: Api<Node>,
    events: Api<Event>,
    /// Its name.
    pub name: String,
}

impl GuestNode {
    /// Registers one that waits for a cloud provider.
    pub async fn register(
        fixture: &Fixture,
        name: &str,
        provider_id: &str,
        uuid: Option<&str>,
    ) -> Result<Self> {
        let nodes: Api<Node> = Api::all(fixture.guest.clone());
        let mut object = json!({
            "metadata": {"name": name, "annotations": {"alpha.kubernetes.io/provided-node-ip": NODE_IP}},
            "spec": {"taints": [{"key": UNINITIALIZED, "value": "true", "effect": "NoSchedule"}]},
            "status": {
                "addresses": [{"type": "Hostname", "address": name}],
                "conditions": [condition("False")],
                "nodeInfo": {
                    "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux",
                    "osImage": "", "systemUUID": uuid.unwrap_or_default(),
                },
            },
        });
        if !provider_id.is_empty() {
            object["spec"]["providerID"] = json!(provider_id);
        }
        // Kubelet creates a Node with its first status.
        nodes.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        let events = Api::namespaced(fixture.guest.clone(), "default");
        Ok(Self { nodes, events, name: name.to_owned() })
    }

    /// As it is now.
    pub async fn get(&self) -> Result<Option<Node>> {
        Ok(self.nodes.get_opt(&self.name).await?)
    }

    /// Sets the Ready condition, as kubelet does, or kube-controller-manager when kubelet is silent.
    pub async fn ready(&self, status: &str) -> Result<()> {
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition(status)]}}));
        self.nodes.patch_status(&self.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Changes it.
    pub async fn patch(&self, body: &Value) -> Result<()> {
        self.nodes.patch(&self.name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    /// Waits until the Node is as `holds` wants; `what` completes "expected Node x …".
    pub async fn until(&self, what: &str, holds: impl Fn(&Node) -> bool) -> Result<Node> {
        until(&format!("Node {} {what}", self.name), Deadline::Reaction, async || {
            let node = self.get().await?.with_context(|| format!("Node {} is gone", self.name))?;
            Ok(if holds(&node) {
                Ok(node)
            } else {
                Err(format!("{:?} {:?}", node.spec, node.status.and_then(|it| it.addresses)))
            })
        })
        .await
    }

    /// Waits until an event of the Node has this reason.
    pub async fn until_event(&self, reason: &str) -> Result<()> {
        let of_node = format!("involvedObject.kind=Node,involvedObject.name={},reason={reason}", self.name);
        until(&format!("event {reason} of {}", self.name), Deadline::Reaction, async || {
            let list = self.events.list(&ListParams::default().fields(&of_node)).await?;
            Ok(if list.items.is_empty() { Err("no event".to_owned()) } else { Ok(()) })
        })
        .await
    }

    /// Deletes it.
    pub async fn delete(&self) -> Result<()> {
        self.nodes.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}

fn condition(status: &str) -> Value {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    json!({"type": "Ready", "status": status, "reason": "Bench", "message": "said by the test",
        "lastHeartbeatTime": now, "lastTransitionTime": now})
}

/// Whether it has this taint.
pub fn has_taint(node: &Node, key: &str) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == key))
}
