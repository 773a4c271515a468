//! The workers of the guest cluster: VirtualMachines in infra whose guests run a real kubelet that joins the guest's
//! API server. The bench does through the guest agent what Cluster API and cloud-init do in a real cluster.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    artifact::worker_image::WorkerImage,
    cluster::Clusters,
    sandbox::network,
    scenario::{Deadline, HCP_NAMESPACE, start_worker_machine, until},
    simulator,
    vm::{self, Guest, MachineSpec, Machines, saved_state::WORKER_MEMORY_MIB, worker},
};

/// The containerDisk image of a worker: what it would boot in a real cluster.
pub const WORKER_IMAGE: &str = "bench.local/worker";

/// The annotation in which Cluster API writes the namespace of a node's machine. The driver reads it for the node id, as
/// kubevirt/csi-driver does: providerID with this annotation first.
const CLUSTER_NAMESPACE: &str = "cluster.x-k8s.io/cluster-namespace";

/// A worker's name, and what follows from its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Counted from 1.
    pub number: u8,
    /// Name of the VirtualMachine, and of the guest's Node.
    pub name: String,
    /// Address on the workers' bridge.
    pub address: Ipv4Addr,
    /// Hardware address.
    pub mac: String,
    /// Its tap device.
    pub tap: String,
}

impl Worker {
    /// Worker `number`, counted from 1.
    pub fn numbered(number: u8) -> Self {
        Self {
            number,
            name: format!("worker-{number}"),
            address: network::worker_address(number),
            mac: network::worker_mac(number),
            tap: network::worker_tap(number),
        }
    }

    /// The worker of that name, if it is one.
    pub fn named(name: &str) -> Option<Self> {
        name.strip_prefix("worker-")?.parse().ok().map(Self::numbered)
    }
}

/// Memory of a virtual machine in which no guest runs: QEMU needs some to start.
const EMPTY_MEMORY_MIB: u32 = 16;

/// What a VMI boots: a worker if its containerDisk is the workers', else nothing. `state` is the saved state to resume from.
pub fn boot(image: WorkerImage, state: Option<PathBuf>) -> simulator::virt_handler::Boot {
    Arc::new(move |vmi| {
        let is_worker = vmi.container_disk_image() == Some(WORKER_IMAGE);
        let boot = match Worker::named(&vmi.name).filter(|_| is_worker) {
            None => vm::Boot::Nothing,
            Some(worker) => {
                network::add_tap(&worker.tap)?;
                let Worker { address, mac, tap, .. } = worker;
                vm::Boot::Worker { image: image.clone(), mac, address, tap, state: state.clone() }
            }
        };
        let memory_mib = if matches!(boot, vm::Boot::Nothing) { EMPTY_MEMORY_MIB } else { WORKER_MEMORY_MIB };
        Ok(MachineSpec { name: vmi.name.clone(), memory_mib, boot })
    })
}

/// The addresses of the launcher pods of all workers that may be: those of their guests.
pub fn launcher_addresses() -> BTreeMap<String, Vec<IpAddr>> {
    let workers = (1..=network::MOST_WORKERS).map(Worker::numbered);
    let addresses = |worker: &Worker| network::both(worker.address).into();
    workers.map(|worker| (format!("{HCP_NAMESPACE}/{}", worker.name), addresses(&worker))).collect()
}

/// Starts a worker and waits until its Node is Ready.
pub async fn start_worker(clusters: &Clusters, machines: &Machines, wanted: &Worker) -> Result<()> {
    start_worker_machine(&clusters.infra.client, &wanted.name, WORKER_IMAGE).await?;
    let key = format!("{HCP_NAMESPACE}/{}", wanted.name);
    let machine = machines.get(&key).context("a running VMI without a machine")?;
    let guest = machine.guest().context("a worker without a guest agent")?;
    join(clusters, guest, wanted).await
}

/// Makes a running guest a node of the guest cluster.
pub async fn join(clusters: &Clusters, guest: &Guest, wanted: &Worker) -> Result<()> {
    let user = format!("system:node:{}", wanted.name);
    let kubeconfig_yaml = clusters.tenant.user_kubeconfig(&user, &["system:nodes"])?;
    let proxy_kubeconfig_yaml = clusters.tenant.user_kubeconfig("system:kube-proxy", &[])?;
    let provider_id = format!("kubevirt://{}", wanted.name);
    let (pods, other_pods) =
        (network::worker_pods(wanted.number), network::other_workers_pods(wanted.number));
    let join = worker::Join {
        node_name: &wanted.name,
        address: wanted.address,
        ca_pem: &clusters.tenant.ca_pem,
        kubeconfig_yaml: &kubeconfig_yaml,
        proxy_kubeconfig_yaml: &proxy_kubeconfig_yaml,
        provider_id: &provider_id,
        pods: &pods,
        other_pods: &other_pods,
        gateway: network::TENANT_API,
    };
    let nodes: Api<Node> = Api::all(clusters.tenant.client.clone());
    tokio::try_join!(worker::join(guest, &join), annotate(&nodes, &wanted.name))?;
    let boot = guest.boot_id().await?;
    until(&format!("node {}", wanted.name), Deadline::MachineStart, async || {
        let Some(node) = nodes.get_opt(&wanted.name).await? else {
            return Ok(Err("not registered".to_owned()));
        };
        // A worker that was reset is Ready in the status of its last boot.
        let told =
            node.status.as_ref().and_then(|status| status.node_info.as_ref()).map(|info| &info.boot_id);
        if told != Some(&boot) {
            return Ok(Err("kubelet has not reported this boot".to_owned()));
        }
        Ok(if is_ready(&node) { Ok(()) } else { Err("registered, not Ready".to_owned()) })
    })
    .await
}

/// Annotates the node as soon as kubelet has registered it: the driver's pod comes at the same moment, and has no node id
/// before.
async fn annotate(nodes: &Api<Node>, name: &str) -> Result<()> {
    let annotation = json!({"metadata": {"annotations": {CLUSTER_NAMESPACE: HCP_NAMESPACE}}});
    let annotation = Patch::Merge(annotation);
    until(&format!("the registration of node {name}"), Deadline::MachineStart, async || {
        nodes.patch(name, &PatchParams::default(), &annotation).await?;
        Ok(Ok(()))
    })
    .await
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::Worker;

    #[test]
    fn a_workers_number_gives_its_addresses() {
        let worker = Worker::numbered(2);
        assert_eq!((worker.name.as_str(), worker.mac.as_str()), ("worker-2", "52:54:00:77:00:0c"));
        assert_eq!(Worker::named("worker-2"), Some(worker));
        assert_eq!(Worker::named("vm-2"), None);
    }
}
