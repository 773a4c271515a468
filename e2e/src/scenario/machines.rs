//! Virtual machines as Cluster API's provider for KubeVirt makes them.

use anyhow::Result;
use kube::{Client, api::PostParams};
use serde_json::{Value, json};

use super::{
    Deadline, HCP_NAMESPACE,
    infra_objects::{virtual_machine_instances, virtual_machines},
    until,
};
use crate::vm::saved_state::WORKER_MEMORY_MIB;

/// Creates a VirtualMachine in the HCP namespace and waits until its instance is Running; `image`, the containerDisk,
/// decides what runs in it.
pub async fn start_machine(infra: &Client, name: &str, image: &str) -> Result<()> {
    start_labelled_machine(infra, HCP_NAMESPACE, name, image, &json!({})).await
}

/// As [`start_machine`], in any namespace, with labels of its instance and its pod.
pub async fn start_labelled_machine(
    infra: &Client,
    namespace: &str,
    name: &str,
    image: &str,
    labels: &Value,
) -> Result<()> {
    let object = serde_json::from_value(virtual_machine(namespace, name, image, labels))?;
    virtual_machines(infra, namespace).create(&PostParams::default(), &object).await?;
    let instances = virtual_machine_instances(infra, namespace);
    until(&format!("virtual machine {name}"), Deadline::MachineStart, async || {
        let Some(instance) = instances.get_opt(name).await? else {
            return Ok(Err("no instance yet".to_owned()));
        };
        let phase = instance.data["status"]["phase"].as_str().unwrap_or("without a phase").to_owned();
        Ok(if phase == "Running" { Ok(()) } else { Err(phase) })
    })
    .await
}

/// A VirtualMachine as Cluster API's provider for KubeVirt makes them; `image` decides what runs in it.
fn virtual_machine(namespace: &str, name: &str, image: &str, labels: &Value) -> Value {
    let mut labels = labels.clone();
    labels["kubevirt.io/vm"] = json!(name);
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "runStrategy": "Always",
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "domain": {
                        "resources": {"requests": {"memory": format!("{WORKER_MEMORY_MIB}Mi")}},
                        "devices": {
                            "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                            "interfaces": [{"name": "default", "bridge": {}}],
                        },
                    },
                    "networks": [{"name": "default", "pod": {}}],
                    "volumes": [{"name": "root", "containerDisk": {"image": image}}],
                },
            },
        },
    })
}
