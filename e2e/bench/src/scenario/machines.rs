//! Virtual machines as Cluster API's provider for KubeVirt makes them.

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    Deadline, HCP_NAMESPACE,
    infra_objects::{virtual_machine_instances, virtual_machines},
    until,
};
use crate::vm::saved_state::WORKER_MEMORY_MIB;

/// The guest cluster's name in infra: the cluster name of its cloud controller manager.
pub const CLUSTER_NAME: &str = "guest";

/// The infra node on which the bench's data path runs. With `externalTrafficPolicy: Local` it hands traffic to its own VMs
/// only, so all workers start there.
pub const DATA_PATH_NODE: &str = "infra-node-1";

/// The label of infra nodes on which workers may run; a test that moves one gives it to another node too.
const WORKERS_LABEL: &str = "bench.local/workers";

/// Creates a VirtualMachine in the HCP namespace and waits until its instance is Running; `image`, the containerDisk,
/// decides what runs in it. The guest cluster's load balancers do not select it.
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
    start(infra, namespace, name, virtual_machine(namespace, name, image, labels)).await
}

/// As [`start_machine`], a worker of the guest cluster: with the labels by which the infra Services of its load balancers select
/// it, and on an infra node that admits workers ([`admit_workers`]).
pub async fn start_worker_machine(infra: &Client, name: &str, image: &str) -> Result<()> {
    let labels = json!({"cluster.x-k8s.io/role": "worker", "cluster.x-k8s.io/cluster-name": CLUSTER_NAME});
    let mut object = virtual_machine(HCP_NAMESPACE, name, image, &labels);
    object["metadata"]["labels"] = labels;
    object["spec"]["template"]["spec"]["nodeSelector"] = json!({ WORKERS_LABEL: "" });
    start(infra, HCP_NAMESPACE, name, object).await
}

/// Lets workers run on an infra node, or no more; those that are there stay.
///
/// # Errors
/// When the node does not exist.
pub async fn admit_workers(infra: &Client, node: &str, admit: bool) -> Result<()> {
    let nodes: Api<Node> = Api::all(infra.clone());
    let label = json!({"metadata": {"labels": {WORKERS_LABEL: admit.then_some("")}}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(label)).await?;
    Ok(())
}

async fn start(infra: &Client, namespace: &str, name: &str, object: Value) -> Result<()> {
    let (object, machines) = (serde_json::from_value(object)?, virtual_machines(infra, namespace));
    // On a busy machine the API server may wait in vain for virt-api's webhook, and refuse.
    until(&format!("virtual machine {name} to be accepted"), Deadline::Reaction, async || {
        match machines.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(Ok(())),
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                Ok(Ok(()))
            }
            Err(error) => Err(error.into()),
        }
    })
    .await?;
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
