//! What the kubelets of the infra nodes are started with.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use super::{fault::Fault, image::Images};
use crate::{cluster::ApiServer, simulator::fault_plan::FaultPlan, supervise::Supervisor};

/// What the simulator needs.
pub struct Options {
    /// The infra cluster; programs find its API server in their environment.
    pub infra: ApiServer,
    /// The nodes to create: `infra-node-1`, …
    pub nodes: Vec<String>,
    /// The address of all of them, and of the programs' pods.
    pub node_address: IpAddr,
    /// The addresses that the pod network gives launcher pods whose VMs have a guest, by `<namespace>/<VM>`. In a real cluster a
    /// VM has its pod's address.
    pub launcher_addresses: BTreeMap<String, Vec<IpAddr>>,
    /// Runs the containers.
    pub supervisor: Supervisor,
    /// The folder of the infra storage's volumes, in which CDI's importers make disks.
    pub volumes: PathBuf,
    /// What they can run.
    pub images: Images,
    /// The command that ends in [`super::root::enter`], without the plan's path: `["/path/of/bench", "container-init"]`.
    pub container_init: Vec<String>,
    /// The faults to inject.
    pub faults: FaultPlan<Fault>,
}
