//! The process: turns flags and cloud-config into the parts, and decides when each runs. It decides nothing about
//! Services or Nodes.

mod endpoint;
mod leadership;

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
#[cfg(test)]
use clap::Parser;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serving::{ProcessMetrics, Shutdown, Tasks, Telemetry, readiness::Readiness};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{CallMetrics, GuestCluster, InfraCluster, chain},
    announcer::EventSink,
    config::{CloudConfig, ManagedEndpoints},
    endpoints::{
        context::Context as EndpointContext, controller::EndpointController, metrics::EndpointMetrics,
    },
    flags::{Controller, Flags, LeaderFlags, path},
    framework_metrics::FrameworkMetrics,
    guest::nodes::watch::NodeWatch,
    guest_names::GuestLabels,
    handover::{EndpointChoice, EndpointSource, Gate, Slices},
    infra::machines::{feed::Feed, index::MachineIndex, reads::InfraReads},
    load_balancer::{
        cleanup::Cleanup,
        controller::{Begins, COMPONENT, ServiceController},
        index::Index,
        metrics::ServiceMetrics,
        plan::{Moment, PlanConfig},
        watches,
    },
    nodes::{
        controller::{NodeController, NodeControllerSettings},
        metrics::NodeMetrics,
    },
    queue_metrics::QueueMetrics,
};

/// The crates whose debug lines `--v=4` and `--v=5` show.
const OWN_CRATES: &[&str] = &["ccm", "kubevirt_cloud_controller_manager", "secure_serving", "serving"];
/// The prefix of the metrics that only we have.
const METRICS_PREFIX: &str = "kubevirt_ccm";
/// The framework's names of controllers in metrics; that of the service controller is also its queue's.
const SERVICE_NAME: &str = "service";
/// The framework's names of queues: the service controller's for changes of Nodes, and the Node controllers'. In the
/// upstream cloud provider each run of the lifecycle controller goes over all Nodes, without a queue; here both
/// controllers share one.
const SERVICE_NODE_QUEUE: &str = "node";
const NODE_QUEUE: &str = "Nodes";
/// The upstream cloud provider's name of the controller; its queue has no name there.
const ENDPOINT_QUEUE: &str = "kubevirt_eps_controller";
const NODE_METRIC: &str = "cloud-node";
const LIFECYCLE_METRIC: &str = "cloud-node-lifecycle";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Both clusters.
#[derive(Clone)]
struct Clusters {
    guest: GuestCluster,
    infra: InfraCluster,
}

/// The metrics of the controllers.
#[derive(Clone, Default)]
struct Metrics {
    services: ServiceMetrics,
    nodes: NodeMetrics,
    endpoints: EndpointMetrics,
    queues: QueueMetrics,
    framework: FrameworkMetrics,
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        self.services.register(registry);
        self.nodes.register(registry);
        self.queues.register(registry);
        self.framework.register(registry);
        self.endpoints.register(registry);
    }
}

/// Where the tasks of the controllers run.
#[derive(Clone, Copy)]
struct Running<'a> {
    /// Ends with the controllers.
    watches: &'a Tasks,
    /// Ends with the program, or when all events are written.
    events: &'a Tasks,
    /// What `/readyz` waits for.
    readiness: &'a Readiness,
}

/// The VMs, for all parts that need them.
#[derive(Clone)]
struct Machines {
    reads: InfraReads,
    index: Arc<MachineIndex>,
    feed: Feed,
}

impl Machines {
    fn new(infra: &InfraCluster) -> Self {
        let reads = InfraReads::new(infra);
        let index = Arc::new(MachineIndex::default());
        Self { feed: Feed::new(reads.clone(), Arc::clone(&index)), reads, index }
    }
}

/// Runs the program until it ends.
///
/// # Errors
/// Flags or files are invalid, or a part failed.
pub fn start(flags: Flags) -> Result<(), Box<dyn Error + Send + Sync>> {
    let telemetry =
        Telemetry { format: flags.logging_format, verbosity: flags.verbosity, own_crates: OWN_CRATES };
    telemetry.install()?;
    for flag in &flags.ignored.given {
        tracing::info!("--{flag} has no effect here");
    }
    serving::program::run(|shutdown| serve(flags, shutdown))
}

async fn serve(flags: Flags, shutdown: Shutdown) -> Result<()> {
    let config = read_config(&flags).await?;
    if flags.cleanup {
        let stop = shutdown.stopping();
        let ended = stop.clone().run_until_cancelled_owned(Box::pin(clean_up(&flags, config))).await;
        stop.cancel();
        return ended.unwrap_or_else(|| bail!("stopped before the end"));
    }
    let mut registry = Registry::default();
    ProcessMetrics::register(&mut registry, METRICS_PREFIX, VERSION);
    let calls = CallMetrics::default();
    calls.register(&mut registry);
    let guest =
        GuestCluster::open("--kubeconfig", path(&flags.kubeconfig), &flags.master, calls.clone()).await;
    let guest = guest.context("--kubeconfig")?;
    let infra =
        InfraCluster::open(config.kubeconfig.clone(), &config.namespace, flags.write_rate(), calls).await;
    let clusters = Clusters { guest, infra: infra.context("kubeconfig of the cloud-config")? };
    let metrics = Metrics::default();
    metrics.register(&mut registry);
    let leads = leader_gauge(&mut registry, &flags.leader);

    let readiness = Readiness::default();
    let served = CancellationToken::new();
    let last = served.clone().drop_guard();
    if flags.serving.secure_port != 0 {
        let shown = (registry, &metrics.framework, readiness.clone());
        let endpoint = endpoint::bind(&flags, &config, &clusters, shown, shutdown.tasks()).await?;
        tracing::info!(address = %endpoint.local_addr(), "serving HTTPS");
        shutdown.spawn("the HTTPS endpoint", async move {
            endpoint.serve(served).await;
            Ok::<_, Infallible>(())
        });
    }
    let tasks = shutdown.tasks().clone();
    shutdown.spawn("the controllers", async move {
        let _last = last;
        lead(flags, config, clusters, metrics, leads, (tasks, readiness)).await
    });
    Ok(())
}

async fn read_config(flags: &Flags) -> Result<CloudConfig> {
    let file = &flags.cloud_config;
    let text = tokio::fs::read_to_string(file).await;
    let text = text.with_context(|| format!("--cloud-config={} can't be read", file.display()))?;
    let (config, unknown) = CloudConfig::parse(&text).context("--cloud-config")?;
    for key in unknown {
        tracing::warn!("key {key} of the cloud-config is unknown and has no effect");
    }
    Ok(config)
}

/// Runs the controllers, with leader election only while the lease is held.
async fn lead(
    flags: Flags,
    config: CloudConfig,
    clusters: Clusters,
    metrics: Metrics,
    leads: Gauge,
    (tasks, readiness): (Tasks, Readiness),
) -> Result<(), anyhow::Error> {
    let stop = tasks.stopping();
    let controllers = || control(&flags, &config, clusters.clone(), metrics.clone(), (&tasks, &readiness));
    if flags.leader.leader_elect {
        let lease = leadership::lease(&flags.leader, &clusters.guest)?;
        leadership::lead(lease, &leads, &stop, controllers).await;
    } else {
        leads.set(1);
        stop.run_until_cancelled(controllers()).await;
    }
    Ok(())
}

/// Runs the controllers that the flags select, until it is dropped.
async fn control(
    flags: &Flags,
    config: &CloudConfig,
    clusters: Clusters,
    metrics: Metrics,
    (tasks, readiness): (&Tasks, &Readiness),
) {
    if flags.controllers.runs(Controller::Route) {
        tracing::info!("node-route-controller: KubeVirt has no routes to make, nothing is done");
    }
    // The watches end with the controllers. Events that wait are still written.
    let (watches, _end) = tasks.scope();
    let machines = Machines::new(&clusters.infra);
    let nodes = NodeWatch::new(&clusters.guest, watches.clone());
    let shared = (machines, nodes);
    let tasks = Running { watches: &watches, events: tasks, readiness };
    tokio::join!(
        Box::pin(serve_nodes(flags, config, clusters.clone(), shared.clone(), metrics.clone())),
        Box::pin(serve_services(flags, config, clusters, shared, metrics, tasks)),
    );
}

async fn serve_nodes(
    flags: &Flags,
    config: &CloudConfig,
    clusters: Clusters,
    (machines, nodes): (Machines, NodeWatch),
    metrics: Metrics,
) {
    let writes_endpoints = config.load_balancer.enabled
        && flags.controllers.runs(Controller::Endpoints)
        && endpoint_choice(config).is_ours();
    let settings = NodeControllerSettings {
        addresses: config.instances.addresses.clone(),
        zone_and_region: config.instances.zone_and_region,
        upkeep: flags.controllers.runs(Controller::Node),
        lifecycle: flags.controllers.runs(Controller::NodeLifecycle),
        cluster: Some(flags.cluster_name.clone()),
        unlabelled: config.instances.unlabelled,
        balanced: writes_endpoints.then(|| flags.cluster_name.clone()),
        monitor_period: flags.node_monitor_period,
        status_update_frequency: flags.node_status_update_frequency,
        concurrency: flags.concurrent_node_syncs,
    };
    if !config.instances.enabled || !(settings.upkeep || settings.lifecycle) {
        tracing::info!("Nodes are not served: switched off");
        return std::future::pending().await;
    }
    for (name, runs) in [(NODE_METRIC, settings.upkeep), (LIFECYCLE_METRIC, settings.lifecycle)] {
        if runs {
            metrics.framework.runs(name);
        }
    }
    let Machines { reads, index, feed } = machines;
    let (parts, queue) = ((index, feed.clone()), metrics.queues.queue(NODE_QUEUE));
    let guest = (clusters.guest.client, nodes);
    let controller = NodeController::new(settings, guest, reads, parts, metrics.nodes, queue);
    // The controllers end when this future is dropped; they have nothing to finish.
    tokio::join!(feed.run(), controller.run(CancellationToken::new()));
}

/// LoadBalancer Services, and their endpoints.
async fn serve_services(
    flags: &Flags,
    config: &CloudConfig,
    clusters: Clusters,
    (machines, nodes): (Machines, NodeWatch),
    metrics: Metrics,
    tasks: Running<'_>,
) {
    let balancers = flags.controllers.runs(Controller::Service) && config.load_balancer.enabled;
    let endpoints = flags.controllers.runs(Controller::Endpoints) && config.load_balancer.enabled;
    if !balancers {
        tracing::info!("LoadBalancer Services are not served: switched off");
    }
    if !balancers && !endpoints {
        return std::future::pending().await;
    }
    let plan_config = plan_config(flags, config);
    let gate = Arc::new(Gate::default());
    let (guest, infra) = (&clusters.guest, &clusters.infra);
    let (services, writers) = Index::new(&plan_config, infra.namespace.clone());
    let due = services.due();
    watches::start(&services, writers, (guest, infra), Arc::clone(&plan_config.policy), tasks.watches);
    let events = EventSink::start(clusters.guest.clone(), COMPONENT, tasks.events);
    let writer = EndpointController::new(EndpointContext {
        events: events.clone(),
        guest: guest.clone(),
        infra: infra.clone(),
        identity: plan_config.identity.clone(),
        choice: plan_config.endpoints.choice,
        unlabelled: config.instances.unlabelled,
        addresses: config.instances.addresses.clone(),
        services: services.clone(),
        nodes: nodes.clone(),
        gate: Arc::clone(&gate),
        index: machines.index,
        feed: machines.feed,
        metrics: metrics.endpoints,
        contested: metrics.services.contested.clone(),
        queue: metrics.queues.queue(ENDPOINT_QUEUE),
    });
    let write = async { if endpoints { Box::pin(writer.run()).await } else { writer.stay_off() } };
    let balance = async {
        if !balancers {
            return;
        }
        metrics.framework.runs(SERVICE_NAME);
        let controller = ServiceController {
            guest: clusters.guest,
            infra: clusters.infra,
            config: plan_config,
            services: (services, due),
            nodes,
            gate,
            address_timeout: config.load_balancer.poll_timeout,
            owner: config.load_balancer.owner.clone(),
            sweep_interval: config.load_balancer.sweep_interval,
            concurrency: flags.concurrent_service_syncs,
            events,
            metrics: metrics.services,
            queue: metrics.queues.queue(SERVICE_NAME),
            node_queue: metrics.queues.queue(SERVICE_NODE_QUEUE),
            tasks: tasks.watches.clone(),
            begins: Begins::of(tasks.readiness),
        };
        Box::pin(controller.run()).await;
    };
    tokio::join!(Box::pin(write), Box::pin(balance));
}

fn endpoint_choice(config: &CloudConfig) -> EndpointChoice {
    EndpointChoice {
        selectorless: config.load_balancer.selectorless,
        slices_for_local: config.load_balancer.endpoint_slices,
        slices_for_all: config.load_balancer.endpoints == ManagedEndpoints::All,
    }
}

fn plan_config(flags: &Flags, config: &CloudConfig) -> PlanConfig {
    let choice = endpoint_choice(config);
    PlanConfig {
        identity: identity(flags, config),
        endpoints: EndpointSource { choice, slices: Slices::Unknown },
        policy: Arc::new(config.load_balancer.policy.clone()),
        limits: config.load_balancer.limits,
        node_ports: config.load_balancer.node_ports,
        guest_cluster: None,
        owner: None,
        moment: Moment::default(),
    }
}

fn identity(flags: &Flags, config: &CloudConfig) -> GuestLabels {
    GuestLabels {
        cluster: flags.cluster_name.clone(),
        infra_labels: config.infra_labels.clone(),
        former: config.former_labels.clone(),
    }
}

/// `--cleanup`.
async fn clean_up(flags: &Flags, config: CloudConfig) -> Result<()> {
    let calls = CallMetrics::default();
    let guest =
        GuestCluster::open("--kubeconfig", path(&flags.kubeconfig), &flags.master, calls.clone()).await;
    let infra =
        InfraCluster::open(config.kubeconfig.clone(), &config.namespace, flags.write_rate(), calls).await;
    let leader = &flags.leader;
    let cleanup = Cleanup {
        infra: infra.context("kubeconfig of the cloud-config")?,
        guest: guest.inspect_err(|error| tracing::warn!(error = chain(error), "--kubeconfig")).ok(),
        identity: identity(flags, &config),
        lease: (leader.leader_elect_resource_namespace.clone(), leader.leader_elect_resource_name.clone()),
        lease_duration: leader.leader_elect_lease_duration,
        force: flags.cleanup_force,
        timeout: flags.cleanup_timeout,
    };
    cleanup.run().await
}

fn leader_gauge(registry: &mut Registry, flags: &LeaderFlags) -> Gauge {
    let by_name = Family::<Vec<(String, String)>, Gauge>::default();
    let labels = vec![("name".to_owned(), flags.leader_elect_resource_name.clone())];
    let leads = by_name.get_or_create(&labels).clone();
    registry.register("leader_election_master_status", "1 while this process holds the lease", by_name);
    leads
}

/// Registers all metrics of the program, each with a sample, so that its labels show.
#[cfg(test)]
pub(crate) fn every_metric(registry: &mut Registry) {
    let (metrics, calls) = (Metrics::default(), CallMetrics::default());
    ProcessMetrics::register(registry, METRICS_PREFIX, VERSION);
    calls.register(registry);
    metrics.register(registry);
    leader_gauge(registry, &LeaderFlags::parse_from([""]));
    calls.sample();
    let queue = metrics.queues.queue(SERVICE_NAME);
    let item = (String::new(), String::new());
    queue.added(item.clone());
    queue.taken(&item);
    queue.done(0.0, true);
    metrics.services.refused("sample");
    metrics.services.contested.count("sample", Some("sample"));
    metrics.endpoints.count("sample", Some(crate::endpoints::metrics::Count { ready: 1, unready: 0 }));
    metrics.framework.runs(SERVICE_NAME);
    metrics.framework.answered("livez", true);
}
