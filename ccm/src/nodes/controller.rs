//! One queue of the guest's Nodes: each is compared with its VM when either changes, and the planned changes are
//! written.
//!
//! This controller does initialisation and upkeep, [`Lifecycle`] does shutdown and deletion. `--controllers` and the
//! cloud-config can switch off each.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client,
    runtime::{controller::Action, reflector::ObjectRef},
};
use kubevirt::Seen;
use tokio_util::sync::CancellationToken;

use crate::{
    access::chain,
    backoff::{AFTER_CONFLICT, Backoff},
    call::CallError,
    cluster_name::ClusterName,
    guest::nodes::{GuestNode, Ready, WireNode, watch::NodeWatch},
    infra::{
        hosts::{Host, Hosts},
        machines::{
            Vmi,
            feed::Feed,
            index::{MachineIndex, Snapshot},
            reads::InfraReads,
        },
    },
    nodes::{
        NodeWrites,
        address::{AddressPolicy, without_shared},
        announcer::{Announcement, Announcer, NODE_SOURCE},
        init::{Found, plan},
        lifecycle::Lifecycle,
        metrics::NodeMetrics,
        recognise::{Machine, Recognition, Unlabelled, backend_doubt, identify, prove, upkeep_doubt},
    },
    queue_metrics::Queue,
    reconciles,
};

/// The framework's default of `--node-monitor-period`.
pub const MONITOR_PERIOD: Duration = Duration::from_secs(5);
/// The framework's default of `--node-status-update-frequency`.
pub const STATUS_UPDATE_FREQUENCY: Duration = Duration::from_mins(5);
/// Our default of `--concurrent-node-syncs`.
const CONCURRENCY: u16 = 16;
/// First and longest pause after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_mins(1);
/// No event reports that a Node younger than this is not recognised.
const COMPLAINT_AGE: Duration = Duration::from_secs(15);
/// The complaints about how many Nodes the controller keeps; above it all are dropped, and reported again.
const MOST_COMPLAINTS: usize = 10_000;

/// What the Node controllers do, and how often.
#[derive(Clone, Debug)]
pub struct NodeControllerSettings {
    /// Which of a VM's addresses its Node gets.
    pub addresses: AddressPolicy,
    /// Whether zone and region are written (`instancesV2.zoneAndRegionEnabled`).
    pub zone_and_region: bool,
    /// Whether Nodes are initialised and kept up to date (`cloud-node-controller`).
    pub upkeep: bool,
    /// Whether Nodes are tainted and deleted (`cloud-node-lifecycle-controller`).
    pub lifecycle: bool,
    /// The guest's name: of a VM that is labelled as another guest's nothing is written into a Node. `None` = labels do
    /// not matter.
    pub cluster: Option<ClusterName>,
    /// Whether VMs without a label get traffic of load balancers.
    pub unlabelled: Unlabelled,
    /// The guest's name, if the CCM writes endpoints: its load balancers then leave out a Node with a [`backend_doubt`],
    /// which an event has to report. `None` = other programs write the endpoints, by rules of their own.
    pub balanced: Option<ClusterName>,
    /// How often a Node that is not ready is reconciled.
    pub monitor_period: Duration,
    /// How often every other Node is reconciled, apart from events.
    pub status_update_frequency: Duration,
    /// How many Nodes are reconciled at the same time; 0 counts as 1.
    pub concurrency: u16,
}

impl Default for NodeControllerSettings {
    fn default() -> Self {
        Self {
            addresses: AddressPolicy::default(),
            zone_and_region: true,
            upkeep: true,
            lifecycle: true,
            cluster: None,
            unlabelled: Unlabelled::default(),
            balanced: None,
            monitor_period: MONITOR_PERIOD,
            status_update_frequency: STATUS_UPDATE_FREQUENCY,
            concurrency: CONCURRENCY,
        }
    }
}

/// The controllers of the guest's Nodes.
pub struct NodeController {
    settings: NodeControllerSettings,
    nodes: NodeWatch,
    index: Arc<MachineIndex>,
    feed: Feed,
    hosts: Hosts,
    writes: NodeWrites,
    announcer: Announcer,
    metrics: NodeMetrics,
    queue: Queue,
    lifecycle: Lifecycle,
    backoff: Backoff,
    /// The last warning event about a Node, by its name. Losing it does no harm.
    complaints: Mutex<HashMap<String, String>>,
    /// It was reported that there is no right to write the status of Nodes.
    reported_no_status: AtomicBool,
}

impl NodeController {
    /// Controllers of the `nodes` of `guest`, whose VMs are read by `reads` and kept in `index`. `feed` has to run at
    /// the same time.
    pub fn new(
        settings: NodeControllerSettings,
        (guest, nodes): (Client, NodeWatch),
        reads: InfraReads,
        (index, feed): (Arc<MachineIndex>, Feed),
        metrics: NodeMetrics,
        queue: Queue,
    ) -> Self {
        Self {
            settings,
            nodes,
            index,
            feed,
            hosts: Hosts::new(reads.clone()),
            writes: NodeWrites::new(guest.clone()),
            lifecycle: Lifecycle::new(&guest, reads, metrics.clone()),
            announcer: Announcer::new(guest),
            metrics,
            queue,
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            complaints: Mutex::default(),
            reported_no_status: AtomicBool::new(false),
        }
    }

    /// Runs until `stop`, and finishes the reconciles that are running then.
    pub async fn run(self, stop: CancellationToken) {
        let due =
            stream::select(self.changed_nodes(), self.changed_machines()).take_until(stop.cancelled_owned());
        self.nodes.start();
        let (nodes, queue) = (self.nodes.store(), (self.queue.clone(), self.settings.concurrency));
        reconciles::run(due, nodes, queue, Arc::new(self), reconcile, after_failure).await;
    }

    /// Each Node that is there, and at each of its changes again.
    fn changed_nodes(&self) -> impl Stream<Item = ObjectRef<WireNode>> + Send + use<> {
        let nodes = self.nodes.clone();
        self.nodes.subscribe().stream().flat_map(move |names| {
            let present: Vec<_> = names.iter().filter_map(|name| nodes.get(name)).collect();
            stream::iter(present).map(|node| ObjectRef::from_obj(&*node))
        })
    }

    /// All Nodes at each change of a VM or VMI. Each is then compared with its VM, which makes no call where nothing
    /// differs.
    fn changed_machines(&self) -> impl Stream<Item = ObjectRef<WireNode>> + Send + use<> {
        let (nodes, changes) = (self.nodes.clone(), self.index.changes());
        let changes = stream::unfold(changes, async |mut changes| {
            changes.changed().await.ok()?;
            Some(((), changes))
        });
        changes.flat_map(move |()| stream::iter(nodes.all()).map(|node| ObjectRef::from_obj(&*node)))
    }

    async fn sync(&self, node: &GuestNode) -> Result<Action, CallError> {
        let seen = self.index.snapshot();
        let recognised = identify(&node.claims, seen.known());
        // Do both, even if one of them fails.
        let life = if self.settings.lifecycle {
            self.lifecycle.sync(node, &recognised, &seen).await
        } else {
            Ok(false)
        };
        if let Ok(true) = life {
            self.backoff.succeeded(&node.claims.name);
            self.complaints().remove(&node.claims.name);
            return Ok(Action::await_change());
        }
        let is_whole = if self.settings.upkeep {
            self.complain(node, &recognised, &seen).await;
            self.upkeep(node, &recognised, &seen).await?
        } else {
            true
        };
        life?;
        Ok(self.next_look(node, &recognised, is_whole))
    }

    /// Writes what the Node lacks. False = something could not be found out this time.
    async fn upkeep(
        &self,
        node: &GuestNode,
        recognised: &Recognition,
        seen: &Snapshot,
    ) -> Result<bool, CallError> {
        let proved = prove(&node.claims, seen.known());
        let (id, by) = match (recognised, &proved) {
            (Recognition::Vm { id, by }, _) => (id, by.to_string()),
            (Recognition::Foreign, Some(id)) if node.is_uninitialized() => {
                (id, "proof; its providerID stays".to_owned())
            }
            _ => return Ok(true),
        };
        let vmi = match seen.vmi(id.vm()) {
            Seen::Present(vmi) => Some(vmi),
            Seen::Absent | Seen::Unseen => None,
        };
        if let (Some(vmi), Some(cluster)) = (&vmi, &self.settings.cluster)
            && upkeep_doubt(Machine::of(&seen.vm(id.vm()), vmi), &node.claims, cluster).is_some()
        {
            return Ok(true);
        }
        let host = self.host(vmi.as_deref()).await;
        let is_whole = host != Host::Unknown || !self.settings.zone_and_region || vmi.is_none();
        // Another guest may let its VMs show any address.
        let vmi = vmi.map(|vmi| {
            let others =
                seen.running().filter(|other| other.name != vmi.name && other.cluster == vmi.cluster);
            without_shared(&vmi, &others)
        });
        let is_proved = proved.is_some();
        let found = Found { id: id.clone(), vmi: vmi.as_ref(), host, is_proved };
        let plan = plan(&self.settings.addresses, node, &found);
        let mut node = node.clone();
        // Write the addresses first: pods come as soon as the taint is removed.
        if let Some(addresses) = &plan.addresses {
            let has = |ip: &IpAddr| addresses.iter().any(|address| address.address == ip.to_string());
            for inner in node.provided.iter().filter(|ip| !has(ip)) {
                tracing::warn!(
                    node = node.claims.name,
                    "kubelet was given --node-ip={inner}, which is not reached from outside of the VM (binding masquerade): \
                     the Node gets the address that its VM shows"
                );
            }
            match self.writes.addresses(&node, addresses).await {
                Ok(version) => node.resource_version = version,
                // KubeOne grants all on `nodes`, which does not include their status. Without its taint removed the Node would take no
                // pods at all, so the rest is written all the same, as by kubevirt/cloud-provider-kubevirt.
                Err(error) if error.is_forbidden() => self.report_no_status(&error),
                Err(error) => return Err(error),
            }
        }
        if let Some(metadata) = &plan.metadata {
            self.writes.metadata(&node, metadata).await?;
        }
        if plan.initialises() {
            tracing::info!(node = node.claims.name, vm = id.vm(), "initialised; recognised by {by}");
            self.is_initialised(&node).await;
        }
        Ok(is_whole)
    }

    /// Reports once that addresses can't be written.
    fn report_no_status(&self, error: &CallError) {
        if !self.reported_no_status.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                error = chain(error),
                "no right to patch the status of nodes of the guest cluster: Nodes keep the addresses that kubelet reports, and are initialised without those of their VMs"
            );
        }
    }

    async fn host(&self, vmi: Option<&Vmi>) -> Host {
        match vmi.and_then(|vmi| vmi.host.as_deref()) {
            Some(host) if self.settings.zone_and_region => self.hosts.find(host).await,
            Some(_) | None => Host::Unknown,
        }
    }

    async fn is_initialised(&self, node: &GuestNode) {
        if let Some(created) = node.created {
            let seconds = Timestamp::now().as_second().saturating_sub(created);
            self.metrics.initialised(u32::try_from(seconds).map_or(0.0, f64::from));
        }
        let message = "Node synced successfully".to_owned();
        let said = Announcement { source: NODE_SOURCE, warning: false, reason: "Synced", message };
        self.announcer.announce(node, &said).await;
    }

    /// Reports once why a Node that waits for a cloud provider is not initialised, or why an initialised one gets no
    /// traffic.
    async fn complain(&self, node: &GuestNode, recognised: &Recognition, seen: &Snapshot) {
        if seen.known().vmis.is_none() {
            return;
        }
        let said = match recognised {
            Recognition::Vm { id, .. } => self.doubted(node, id.vm(), seen),
            _ if is_young(node) || !node.is_uninitialized() => None,
            Recognition::Foreign if prove(&node.claims, seen.known()).is_some() => None,
            _ => complaint(node, recognised),
        };
        let name = &node.claims.name;
        let Some(said) = said else {
            self.complaints().remove(name);
            return;
        };
        if self.is_new(name, &said.message) {
            tracing::warn!(node = name, "{}", said.message);
            self.announcer.announce(node, &said).await;
        }
    }

    fn doubted(&self, node: &GuestNode, vm: &str, seen: &Snapshot) -> Option<Announcement> {
        let Seen::Present(vmi) = seen.vmi(vm) else { return None };
        let seen_vm = seen.vm(vm);
        let machine = Machine::of(&seen_vm, &vmi);
        let NodeControllerSettings { cluster, balanced, unlabelled, .. } = &self.settings;
        let no_upkeep = cluster.as_ref().and_then(|cluster| upkeep_doubt(machine, &node.claims, cluster));
        let no_traffic = || {
            backend_doubt(machine, &node.claims, balanced.as_ref()?, *unlabelled)
                .map(|doubt| (doubt, "load balancers leave this node out"))
        };
        let refused = no_upkeep.map(|doubt| (doubt, "nothing of its VM is written into this node"));
        let (doubt, effect) = refused.or_else(no_traffic)?;
        Some(Announcement {
            source: NODE_SOURCE,
            warning: true,
            reason: "InstanceDoubted",
            message: format!("{effect}: it says that it is the VM {vm}, but {doubt}"),
        })
    }

    fn next_look(&self, node: &GuestNode, recognised: &Recognition, is_whole: bool) -> Action {
        self.backoff.succeeded(&node.claims.name);
        if *recognised == Recognition::Foreign && !node.is_uninitialized() {
            return Action::await_change();
        }
        if node.is_uninitialized() || node.ready != Ready::True {
            self.feed.hurry();
            return Action::requeue(self.settings.monitor_period);
        }
        let pause =
            if is_whole { self.settings.status_update_frequency } else { self.settings.monitor_period };
        Action::requeue(pause)
    }

    /// Whether this is another complaint than the last one about the Node.
    fn is_new(&self, name: &str, complaint: &str) -> bool {
        let mut complaints = self.complaints();
        if complaints.len() >= MOST_COMPLAINTS {
            complaints.clear();
        }
        complaints.insert(name.to_owned(), complaint.to_owned()).as_deref() != Some(complaint)
    }

    fn complaints(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn reconcile(node: Arc<WireNode>, controller: Arc<NodeController>) -> Result<Action, CallError> {
    controller.sync(&GuestNode::from(&*node)).await
}

#[expect(clippy::needless_pass_by_value, reason = "kube's Controller calls it with these")]
fn after_failure(node: Arc<WireNode>, error: &CallError, controller: Arc<NodeController>) -> Action {
    if error.is_conflict() {
        return Action::requeue(AFTER_CONFLICT);
    }
    let name = GuestNode::from(&*node).claims.name;
    let pause = controller.backoff.failed(&name);
    if pause == FIRST_RETRY {
        tracing::warn!(node = name, error = chain(error), "the sync of a Node failed, retrying");
    }
    Action::requeue(pause)
}

/// The last poll of the VMs may be older than a new Node.
fn is_young(node: &GuestNode) -> bool {
    node.created.is_none_or(|created| {
        Timestamp::now().as_second().saturating_sub(created) < COMPLAINT_AGE.as_secs().cast_signed()
    })
}

/// Why a Node can't be recognised, as an event for whoever inspects the Node.
fn complaint(node: &GuestNode, recognised: &Recognition) -> Option<Announcement> {
    let said = |reason, message| Some(Announcement { source: NODE_SOURCE, warning: true, reason, message });
    match recognised {
        Recognition::Vm { .. } => None,
        Recognition::Foreign => said(
            "ProviderIDForeign",
            format!(
                "not initialised: its providerID {:?} is another cloud provider's, and no VM of the infra namespace has its system UUID; if it is a VM, label it node.kubernetes.io/instance-id=<VM>",
                node.claims.provider_id
            ),
        ),
        Recognition::Ambiguous { vms } => said(
            "InstanceAmbiguous",
            format!(
                "not initialised: by its names and system UUID it could be any of the VMs {}; label it node.kubernetes.io/instance-id=<VM>",
                vms.join(", ")
            ),
        ),
        Recognition::Unidentified | Recognition::NoVm => said(
            "InstanceNotFound",
            format!(
                "not initialised: no VM of the infra namespace has its name {:?}, its host name or its system UUID; label it node.kubernetes.io/instance-id=<VM>",
                node.claims.name
            ),
        ),
    }
}

#[cfg(test)]
mod tests;
