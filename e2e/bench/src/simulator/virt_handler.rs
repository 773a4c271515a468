//! Stands for **virt-handler** (with virt-launcher and libvirt behind it): VMI status and volume phases on one side,
//! machines and their disks on the other.
//!
//! Rules, from KubeVirt 1.9.0 `pkg/virt-handler`:
//! * `Scheduled` → start the machine → `Running`, with interfaces, machine type, `selinuxContext`, `LiveMigratable`;
//! * hotplugged volume with a ready attachment pod → `MountedToPod` → disk plugged → `Ready` with a target; a volume that
//!   left the spec → disk unplugged → `UnMountedFromPod`. All other phases are virt-controller's;
//! * after each change of disks a plugged disk grows with its claim (`growth.rs`), from what virt-controller wrote into
//!   `persistentVolumeClaimInfo`; an error is logged and not reported, and tried again at the next event;
//! * live migration → the stages that source and target write (`migration.rs`); the machine's process stays;
//! * deletion → machine stopped → `Succeeded`; a machine that ends by itself → `Succeeded` (its guest shut down) or `Failed`;
//! * an error about the machine → condition Synchronized False, event `SyncFailed`, again after a second;
//! * it writes as its service account with the node's name in the user's extra, one client per node: the real webhook
//!   "Node restriction" checks it. A VMI has no status subresource, so the whole object is PUT with its resourceVersion.
//!
//! What it does not do: migrations that fail or are aborted, growing of disks before a machine starts, memory dumps, network hotplug, guest information,
//! graceful shutdown (the machine is switched off), containerDisk checksums, and of the reasons against migration only
//! the one about volumes. A filesystem volume's `disk.img` is plugged as CDI made it: KubeVirt only grows it, and to less than CDI
//! gives a new claim of the same size, (1 - overhead) x the claim's size.
//!
//! Restart-safe: it keeps nothing that it can't see in the VMI and in [`Machine::plugged`](crate::vm::Machine::plugged).

mod domains;
mod fault;
mod growth;
mod migration;
mod plan;
mod status;
mod vmi;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures::stream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, PostParams},
    runtime::{Controller, controller::Action, reflector::Store, watcher},
};
use tokio_util::task::AbortOnDropHandle;

pub use self::{
    domains::Boot,
    fault::{Fault, Selector},
    plan::Step,
    vmi::{ClaimInfo, Disk, Vmi, Volume},
};
use self::{
    domains::Domains,
    migration::Stage,
    plan::{Act, Alive, Change, Domain, Phase},
};
use super::{
    CREATED_BY_LABEL, Running, SWEEP_PERIOD,
    event::Recorder,
    fault_plan::{FaultPlan, Pending, Verdict, verdict},
    queue,
};
use crate::{
    cluster::ApiServer,
    supervise::Supervisor,
    vm::{self, Machines},
};

/// virt-handler's service account, as KubeVirt's operator names it.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:kubevirt:kubevirt-handler";
/// The groups of that service account.
const GROUPS: [&str; 3] =
    ["system:serviceaccounts", "system:serviceaccounts:kubevirt", "system:authenticated"];
/// The extra that the API server adds to the user of a token that is bound to a node.
const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";
/// The component that virt-handler's events come from.
const COMPONENT: &str = "virt-handler";

/// What the simulator needs.
pub struct Options {
    /// The infra cluster.
    pub infra: ApiServer,
    /// The infra nodes; each gets a virt-handler.
    pub nodes: Vec<String>,
    /// Starts the machines' processes.
    pub supervisor: Supervisor,
    /// Where the machines are registered.
    pub machines: Machines,
    /// What each machine boots.
    pub boot: Boot,
    /// The folder of the infra storage's volumes.
    pub volumes: PathBuf,
    /// What to do wrong.
    pub faults: FaultPlan<Fault>,
}

/// Starts the virt-handlers of all infra nodes.
///
/// # Errors
/// When a client can't be made.
pub fn start(options: Options) -> Result<Running> {
    let client = options.infra.client.clone();
    let mut nodes = BTreeMap::new();
    for node in options.nodes {
        let handler = options.infra.impersonating(SERVICE_ACCOUNT, &GROUPS, &[(NODE_NAME_EXTRA, &node)])?;
        nodes.insert(node, handler);
    }
    let handler = Arc::new(Handler {
        client: client.clone(),
        nodes,
        domains: Domains::new(options.supervisor, options.machines, options.boot),
        volumes: options.volumes,
        faults: options.faults,
        pending: Pending::default(),
        events: Recorder::new(COMPONENT),
    });
    let vmis = Api::all_with(client, &vmi::resource());
    let controller = Controller::new_with(vmis, watcher::Config::default(), vmi::resource())
        .reconcile_all_on(stream::select(handler.faults.changes(), handler.domains.endings()));
    let sweep = sweep_for_ever(Arc::clone(&handler), controller.store());
    Ok(Running::new(vec![
        queue::run("virt-handler", controller, handler, reconcile),
        AbortOnDropHandle::new(tokio::spawn(sweep)),
    ]))
}

struct Handler {
    /// Reads what virt-handler learns from virt-launcher and the node: PVCs and the launcher pod's address.
    client: Client,
    nodes: BTreeMap<String, Client>,
    domains: Domains,
    volumes: PathBuf,
    faults: FaultPlan<Fault>,
    pending: Pending<StepOf>,
    events: Recorder,
}

/// The VMI's UID, the step, the volume.
type StepOf = (String, Step, String);

/// Delays steps of one VMI as the faults demand, and knows when to check again.
struct FaultGate<'a> {
    handler: &'a Handler,
    vmi: &'a Vmi,
    faults: Vec<Fault>,
    asked: BTreeSet<(Step, String)>,
    wait: Option<Duration>,
}

async fn reconcile(object: Arc<DynamicObject>, handler: Arc<Handler>) -> Result<Action> {
    let vmi = Vmi::read(&object)?;
    // Until virt-controller has named the node, and on nodes that are not ours, the VMI is somebody else's.
    let Some(client) = handler.nodes.get(&vmi.status.node_name) else { return Ok(Action::await_change()) };
    let mut gate = FaultGate::new(&handler, &vmi);
    if let Some((stage, writer)) = migration::next(&vmi) {
        let may = stage != Stage::HandOver || gate.may(Step::HandOver, "");
        if let (true, Some(client)) = (may, handler.nodes.get(writer)) {
            return handler.migrate(client, &object, &vmi, stage).await.map(|()| Action::await_change());
        }
    }
    let before = handler.domains.observe(&vmi)?;
    let acts = plan::acts(&vmi, &before, &mut |step, volume| gate.may(step, volume));
    let acted = handler.perform(&vmi, &acts).await;
    let domain = if acts.is_empty() { before } else { handler.domains.observe(&vmi)? };
    if acted.is_ok() {
        handler.grow(&vmi, &domain, &mut gate).await;
    }
    let changes = plan::changes(&vmi, &domain, &mut |step, volume| gate.may(step, volume));
    handler.write(client, &object, &vmi, &changes, domain, acted.as_ref().err()).await?;
    let wait = gate.close();
    acted?;
    Ok(wait.map_or_else(Action::await_change, Action::requeue))
}

impl Handler {
    /// Does one thing after the other and stops at the first that fails, as virt-launcher's sync does.
    async fn perform(&self, vmi: &Vmi, acts: &[Act]) -> Result<()> {
        for act in acts {
            match act {
                Act::Start => self.domains.start(vmi).await?,
                Act::Stop => self.domains.stop(&vmi.key()).await,
                Act::Plug(volume) => {
                    let disk = self.disk(vmi, volume).await?;
                    self.domains.plug(vmi, &disk).await.with_context(|| format!("plug volume {volume}"))?;
                }
                Act::Unplug(volume) => {
                    self.domains
                        .unplug(vmi, volume)
                        .await
                        .with_context(|| format!("unplug volume {volume}"))?;
                }
            }
        }
        Ok(())
    }

    /// Lets plugged disks grow with their claims. Who waits for that sees no error: virt-launcher only logs it.
    async fn grow(&self, vmi: &Vmi, domain: &Domain, gate: &mut FaultGate<'_>) {
        for (volume, claim) in plan::growing(vmi, domain) {
            if let Err(error) = self.grow_one(vmi, volume, claim, gate).await {
                tracing::warn!(vmi = vmi.key(), volume, "the disk does not grow: {error:#}");
            }
        }
    }

    async fn grow_one(
        &self,
        vmi: &Vmi,
        volume: &str,
        claim: &ClaimInfo,
        gate: &mut FaultGate<'_>,
    ) -> Result<()> {
        let Some(sizes) = self.domains.sizes(vmi, volume).await? else { return Ok(()) };
        match growth::grown(claim, sizes) {
            Some(bytes) if gate.may(Step::Grow, volume) => {
                tracing::info!(
                    vmi = vmi.key(),
                    volume,
                    from = sizes.guest,
                    to = bytes,
                    "a plugged disk grows"
                );
                self.domains.grow(vmi, volume, bytes).await
            }
            _ => Ok(()),
        }
    }

    /// The disk of a volume: the image of the PV that its PVC is bound to.
    async fn disk(&self, vmi: &Vmi, volume: &str) -> Result<vm::Disk> {
        let disk = vmi.disk(volume).with_context(|| format!("volume {volume} has no disk"))?;
        let claim = vmi
            .volume(volume)
            .and_then(Volume::claim)
            .with_context(|| format!("volume {volume} has no PVC"))?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &vmi.namespace);
        let spec = claims.get(claim).await?.spec.unwrap_or_default();
        let pv = spec.volume_name.with_context(|| format!("PVC {claim} is not bound"))?;
        let bus = match disk.bus() {
            "virtio" => vm::Bus::Virtio,
            "scsi" => vm::Bus::Scsi,
            other => bail!("a {other} disk can't be hotplugged"),
        };
        Ok(vm::Disk {
            name: volume.to_owned(),
            image: super::infra_storage::image(&self.volumes, &pv, spec.volume_mode.as_deref()),
            bus,
            serial: disk.serial.clone(),
            faults: vm::DiskFaults::read_errors(self.read_errors(vmi, volume)),
            by_test: false,
        })
    }

    fn read_errors(&self, vmi: &Vmi, volume: &str) -> Vec<u64> {
        let of = |fault| match fault {
            Fault::ReadErrors { sectors, at } if at.selects(vmi, volume) => sectors,
            _ => Vec::new(),
        };
        let sectors: BTreeSet<u64> = self.faults.active().into_iter().flat_map(of).collect();
        sectors.into_iter().collect()
    }

    async fn write(
        &self,
        client: &Client,
        object: &DynamicObject,
        vmi: &Vmi,
        changes: &[Change],
        domain: Domain,
        failure: Option<&anyhow::Error>,
    ) -> Result<()> {
        let mut alive = if let Domain::Alive(alive) = domain { Some(alive) } else { None };
        if let (Some(alive), true) = (&mut alive, changes.contains(&Change::Phase(Phase::Running))) {
            self.complete_address(vmi, alive).await?;
        }
        let mut written = object.clone();
        let failure = failure.map(|error| format!("{error:#}"));
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let (told, differs) =
            status::apply(&mut written.data, vmi, changes, alive.as_ref(), failure.as_deref(), &now);
        if differs {
            let vmis: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), &vmi.namespace, &vmi::resource());
            vmis.replace(&vmi.name, &PostParams::default(), &written).await?;
        }
        for status::PlannedEvent { kind, reason, message } in told {
            self.events.tell(client, &reference(vmi), (kind, reason, &message)).await;
        }
        Ok(())
    }

    /// One stage of a live migration. When it is complete, the interfaces are those of the target.
    async fn migrate(&self, client: &Client, object: &DynamicObject, vmi: &Vmi, stage: Stage) -> Result<()> {
        let mut written = object.clone();
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let target = vmi.status.migration_state.as_ref().map_or("", |state| &state.target_pod);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &vmi.namespace);
        let host = pods.get(target).await?.status.and_then(|status| status.host_ip);
        let host = host.with_context(|| format!("pod {target} has no host address"))?.parse()?;
        migration::write(&mut written, vmi, stage, host, &now);
        if let (Stage::Complete, Domain::Alive(mut alive)) = (stage, self.domains.observe(vmi)?) {
            self.complete_address(vmi, &mut alive).await?;
            written.data["status"]["interfaces"] = status::interfaces(vmi, &alive);
        }
        let vmis: Api<DynamicObject> = Api::namespaced_with(client.clone(), &vmi.namespace, &vmi::resource());
        vmis.replace(&vmi.name, &PostParams::default(), &written).await?;
        Ok(())
    }

    /// A machine in which no guest runs has its launcher pod's address, as one behind masquerade has.
    async fn complete_address(&self, vmi: &Vmi, alive: &mut Alive) -> Result<()> {
        if alive.addresses.is_some() {
            return Ok(());
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &vmi.namespace);
        let of_vmi = ListParams::default()
            .labels(&format!("{CREATED_BY_LABEL}={}", vmi.uid))
            .fields(&format!("spec.nodeName={}", vmi.status.node_name));
        let addresses = pods.list(&of_vmi).await?.items.into_iter().find_map(|pod| pod.status?.pod_ips);
        let addresses: Option<Vec<_>> =
            addresses.map(|all| all.iter().filter_map(|address| address.ip.parse().ok()).collect());
        alive.addresses = addresses.map(|addresses| (addresses, mac_of(&vmi.uid)));
        Ok(())
    }
}

impl<'a> FaultGate<'a> {
    fn new(handler: &'a Handler, vmi: &'a Vmi) -> Self {
        Self { handler, vmi, faults: handler.faults.active(), asked: BTreeSet::new(), wait: None }
    }

    fn may(&mut self, step: Step, volume: &str) -> bool {
        self.asked.insert((step, volume.to_owned()));
        let holds = self.faults.iter().filter_map(|fault| match fault {
            Fault::Hold(held) if held.step == step && held.at.selects(self.vmi, volume) => Some(held.hold),
            _ => None,
        });
        let waited = self.handler.pending.waited((self.vmi.uid.clone(), step, volume.to_owned()));
        match verdict(waited, holds) {
            Verdict::Go => return true,
            Verdict::Wait(left) => self.wait = Some(self.wait.map_or(left, |wait| wait.min(left))),
            Verdict::Stuck => {}
        }
        false
    }

    /// Forgets the steps that are no longer pending. Returns when to check again, if a step only waits.
    fn close(self) -> Option<Duration> {
        let uid = &self.vmi.uid;
        self.handler
            .pending
            .retain(|(of, step, volume)| of != uid || self.asked.contains(&(*step, volume.clone())));
        self.wait
    }
}

async fn sweep_for_ever(handler: Arc<Handler>, vmis: Store<DynamicObject>) {
    if vmis.wait_until_ready().await.is_err() {
        return;
    }
    let mut turn = tokio::time::interval(SWEEP_PERIOD);
    loop {
        turn.tick().await;
        let living = vmis.state().into_iter().filter_map(|object| {
            let vmi = Vmi::read(&object).ok()?;
            Some((vmi.key(), vmi.uid))
        });
        handler.domains.sweep(&living.collect()).await;
    }
}

fn reference(vmi: &Vmi) -> ObjectReference {
    ObjectReference {
        api_version: Some("kubevirt.io/v1".to_owned()),
        kind: Some("VirtualMachineInstance".to_owned()),
        namespace: Some(vmi.namespace.clone()),
        name: Some(vmi.name.clone()),
        uid: Some(vmi.uid.clone()),
        ..ObjectReference::default()
    }
}

/// A locally administered MAC address from the digits of a UID.
fn mac_of(uid: &str) -> String {
    let digits: Vec<char> =
        uid.chars().filter(char::is_ascii_hexdigit).chain(std::iter::repeat('0')).take(10).collect();
    digits.chunks(2).fold("02".to_owned(), |mac, pair| format!("{mac}:{}{}", pair[0], pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_guest_has_a_legal_mac() {
        assert_eq!(mac_of("50670586-2699-45f6-9"), "02:50:67:05:86:26");
        assert_eq!(mac_of(""), "02:00:00:00:00:00");
    }
}
