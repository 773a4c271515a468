//! Brings the whole bench up, part by part, in the order in which they need each other, and owns it.

mod cloud_provider;
mod faults;
mod installation;
mod manifests;
mod node_plugin;
mod workers;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;

pub use cloud_provider::CloudProvider;
pub use faults::{Fault, FaultGuard, Faults};
pub use installation::{CONTROLLER, Installation, TENANT_NAMESPACE};
pub use node_plugin::{DRIVER_CONTAINER, NodePlugin, PLUGIN_FOLDER};
pub use workers::{WORKER_IMAGE, Worker, start_worker};

use crate::{
    artifact::{Artifacts, CLOUD_CONTROLLER_MANAGER, DRIVER, Shipped, ShippedImage},
    cluster::{self, Clusters, service_proxy},
    paths::{self, Run},
    report::{Progress, Timings},
    sandbox::network,
    scenario::{DATA_PATH_NODE, HCP_NAMESPACE, admit_workers},
    simulator::{Running, infra_pods, infra_storage, virt_handler},
    supervise::{Process, Supervisor},
    vm::{Machine, Machines, saved_state},
};

/// Lines of a dead part's log that the error quotes.
const LOG_LINES: usize = 15;

/// The infra nodes. Two, so that a VM could move; none runs a kubelet.
const INFRA_NODES: [&str; 2] = [DATA_PATH_NODE, "infra-node-2"];

/// Images of the Kubernetes project that infra's nodes really run; each one's entry point is the program of its name.
const SIDECARS: [&str; 4] = ["csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter"];

/// What a person may choose about a bench.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Options {
    /// How many workers: 1 or 2.
    pub workers: u8,
    /// KubeVirt feature gates; none means its defaults (DeclarativeHotplugVolumes).
    pub gates: Vec<String>,
    /// Boot each worker's kernel instead of restoring the saved state.
    pub cold_boot: bool,
}

/// A bench that is up.
#[derive(Debug)]
pub struct Bench {
    /// Its folders.
    pub run: Run,
    /// What was chosen.
    pub options: Options,
    /// Programs and images.
    pub artifacts: Artifacts,
    /// All processes.
    pub supervisor: Supervisor,
    /// Both clusters.
    pub clusters: Clusters,
    /// The virtual machines that run.
    pub machines: Machines,
    /// The faults that the simulators inject.
    pub faults: Faults,
    /// The driver's manifests.
    pub installation: Installation,
    /// The processes of both control planes: none may end while the bench is up.
    control_planes: Vec<Process>,
    /// The simulators; they stop with the bench.
    _simulators: Vec<Running>,
    /// The tasks that copy the node plugins' logs.
    _node_logs: Vec<AbortOnDropHandle<()>>,
}

impl Bench {
    /// The workers' names.
    pub fn workers(&self) -> Vec<Worker> {
        (1..=self.options.workers).map(Worker::numbered).collect()
    }

    /// The node plugin of a worker.
    pub fn node_plugin(&self, worker: &str) -> NodePlugin {
        NodePlugin::new(&self.clusters.tenant.client, worker)
    }

    /// Presses the reset button of a worker, and waits until it is a node again and its node plugin serves.
    ///
    /// # Errors
    /// When it is no worker, or does not come back.
    pub async fn reset_worker(&self, name: &str) -> Result<()> {
        let worker = Worker::named(name).with_context(|| format!("{name} is no worker"))?;
        let plugin = self.node_plugin(name);
        let before = plugin.container().await?;
        let machine = self.machine(name)?;
        machine.reset().await?;
        workers::join(&self.clusters, machine.guest().context("no guest agent")?, &worker).await?;
        plugin.wait_until_replaced(before.as_deref()).await?;
        plugin.wait_until_serving().await
    }

    /// Waits until a process of a control plane ends, which it must not; the error names it and quotes its log.
    pub async fn control_plane_fails(&self) -> anyhow::Error {
        let ends = self.control_planes.iter().map(|part| Box::pin(part.exited()));
        let (status, index, _) = futures::future::select_all(ends).await;
        let part = &self.control_planes[index];
        anyhow::anyhow!(
            "{} ended with {status}; its log ends with:\n{}",
            part.name(),
            part.log_tail(LOG_LINES)
        )
    }

    /// The machine of a VirtualMachine in the HCP namespace.
    pub fn machine(&self, name: &str) -> Result<Arc<Machine>> {
        self.machines
            .get(&format!("{HCP_NAMESPACE}/{name}"))
            .with_context(|| format!("no machine {name} is running"))
    }
}

/// Starts everything; returns when both workers are Ready and a claim would be served.
///
/// # Errors
/// When a part does not come up, with the part's name and the tail of its log.
pub async fn bring_up(
    run: Run,
    artifacts: Artifacts,
    options: Options,
    progress: &dyn Progress,
    timings: &Timings,
) -> Result<Arc<Bench>> {
    let supervisor = Supervisor::new(run.logs());
    let programs = &artifacts.programs;
    let faults = Faults::default();
    let storage = start_infra_storage(&run, &faults).await?;
    let wanted = cluster::Options {
        kubevirt_feature_gates: options.gates.clone(),
        infra_storage: paths::infra_storage_socket(),
    };
    let clusters = cluster::start(&supervisor, programs, &wanted, progress);
    let clusters = timings.measure_async("boot", "clusters, KubeVirt, CDI", Box::pin(clusters)).await?;
    let control_planes = supervisor.alive();

    let machines = Machines::default();
    let state = if options.cold_boot {
        None
    } else {
        let state = saved_state::ensure(&supervisor, &artifacts.worker, progress);
        Some(timings.measure_async("boot", "workers' saved state", state).await?)
    };
    progress.step("starting the simulators of infra's nodes and virt-handler");
    let mut simulators =
        start_simulators(&run, &supervisor, &clusters, &artifacts, &machines, &faults, state).await?;
    simulators.push(storage);

    admit_workers(&clusters.infra.client, DATA_PATH_NODE, true).await?;
    let proxy = service_proxy::start(&supervisor, programs, &clusters.infra, DATA_PATH_NODE)?;

    progress.step("installing the driver: tenant half, kubeconfig Secrets, infra half");
    let (installation, provider) =
        tokio::try_join!(Installation::render(programs), CloudProvider::render(programs))?;
    let apply = async { tokio::try_join!(installation.apply(&clusters), provider.apply(&clusters)) };
    timings.measure_async("boot", "installation", apply).await?;

    let plugin = |number| NodePlugin::new(&clusters.tenant.client, &Worker::numbered(number).name);
    let node_logs = (1..=options.workers).flat_map(|number| plugin(number).keep_logs(&run)).collect();

    let bench = Arc::new(Bench {
        run,
        options,
        artifacts,
        supervisor,
        clusters,
        machines,
        faults,
        installation,
        control_planes,
        _simulators: simulators,
        _node_logs: node_logs,
    });
    progress.step(&format!("booting {} worker(s) as virtual machines of infra", bench.options.workers));
    timings.measure_async("boot", "workers", start_workers(&bench, progress)).await?;
    let controller = bench.installation.controller_is_available(&bench.clusters.infra);
    timings.measure_async("boot", "CSI controller", controller).await?;
    service_proxy::serving(&proxy).await?;
    progress.step("the bench is up");
    Ok(bench)
}

/// Starts the CSI plugin of infra storage: it needs no cluster, and its sidecars need it.
async fn start_infra_storage(run: &Run, faults: &Faults) -> Result<Running> {
    infra_storage::start(infra_storage::Options {
        pool: run.pool(),
        volumes: run.volumes(),
        socket: paths::infra_storage_socket(),
        faults: faults.infra_storage.clone(),
    })
    .await
}

/// Starts the simulators; `state` is what the workers resume from, none for a cold boot.
async fn start_simulators(
    run: &Run,
    supervisor: &Supervisor,
    clusters: &Clusters,
    artifacts: &Artifacts,
    machines: &Machines,
    faults: &Faults,
    state: Option<PathBuf>,
) -> Result<Vec<Running>> {
    let (infra, volumes) = (clusters.infra.clone(), run.volumes());
    Ok(vec![
        infra_pods::start(pods(run, clusters, supervisor, artifacts, faults)?).await?,
        virt_handler::start(virt_handler::Options {
            infra,
            nodes: INFRA_NODES.map(str::to_owned).into(),
            supervisor: supervisor.clone(),
            machines: machines.clone(),
            boot: workers::boot(artifacts.worker.clone(), state),
            volumes,
            faults: faults.virt_handler.clone(),
        })?,
    ])
}

/// How the kubelets of the infra nodes run the programs that really run.
fn pods(
    run: &Run,
    clusters: &Clusters,
    supervisor: &Supervisor,
    artifacts: &Artifacts,
    faults: &Faults,
) -> Result<infra_pods::Options> {
    let mut images = BTreeMap::from([
        shipped(DRIVER, &artifacts.driver_image),
        shipped(CLOUD_CONTROLLER_MANAGER, &artifacts.ccm_image),
    ]);
    for name in SIDECARS {
        let program = artifacts.programs.path(name)?.to_path_buf();
        images.insert(name.to_owned(), infra_pods::Image::Program(program));
    }
    let bench = paths::program()?;
    Ok(infra_pods::Options {
        infra: clusters.infra.clone(),
        nodes: INFRA_NODES.map(str::to_owned).into(),
        node_address: IpAddr::V4(network::INFRA_API),
        launcher_addresses: workers::launcher_addresses(),
        supervisor: supervisor.clone(),
        images,
        volumes: run.volumes(),
        container_init: vec![bench.display().to_string(), infra_pods::root::COMMAND.to_owned()],
        faults: faults.infra_pods.clone(),
    })
}

/// An image that we ship, by its name.
fn shipped(shipped: Shipped, image: &ShippedImage) -> (String, infra_pods::Image) {
    let layers = infra_pods::Image::Layers {
        root: image.root.clone(),
        entry_point: image.entry_point.clone(),
        search_path: image.search_path.clone(),
    };
    (infra_pods::image_name(shipped.image).to_owned(), layers)
}

async fn start_workers(bench: &Arc<Bench>, progress: &dyn Progress) -> Result<()> {
    let start = |worker: Worker| async move {
        start_worker(&bench.clusters, &bench.machines, &worker).await?;
        progress.step(&format!("{} is Ready; waiting for the node plugin's pod on it", worker.name));
        bench.node_plugin(&worker.name).wait_until_serving().await
    };
    futures::future::try_join_all(bench.workers().into_iter().map(start)).await?;
    Ok(())
}
