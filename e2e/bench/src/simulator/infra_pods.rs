//! Stands for the **kubelets of the infra nodes**.
//!
//! Three kinds of pods, three rules:
//! * KubeVirt's and CDI's own (launcher, attachment, importer): nothing runs, they only get the status that the real ones
//!   would have: Running once their PVCs are bound, an importer then Succeeded with its work done
//!   (`importer.rs`), a launcher that is deleted goes when its VMI is over, and one whose machine migrated away ends;
//! * pods of images in the map [`Options::images`]: their containers are really run (`program.rs`), over the image's own root
//!   if it is a real image;
//! * any other image can't be pulled, and the pod's status says so.
//!
//! A claim whose volume has grown is expanded on the node of a pod that uses it (`expansion.rs`).
//!
//! Nodes get the labels, capacity and heartbeat that KubeVirt's scheduling needs (`node.rs`).
//!
//! What it does not do: resources and eviction, networks of pods (a program listens in the bench's own network and has
//! its node's address), hostPath and PVC volumes of programs, exec and logs over the API (logs are files of the run).

mod container;
mod environment;
mod expansion;
mod fault;
mod image;
mod importer;
mod node;
mod options;
mod probe;
mod program;
mod program_status;
pub mod root;
mod simulated;
mod sources;
mod volume;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use futures::stream;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, Preconditions},
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

pub use self::{
    fault::{Fault, Selector, Step},
    image::{Image, Images, image_name},
    options::Options,
    simulated::Kind,
};
use self::{program::Programs, simulated::Outcome};
use super::{
    CREATED_BY_LABEL, Running, SWEEP_PERIOD,
    fault_plan::{FaultPlan, Pending, Verdict, verdict},
    queue::{self, not_found},
};

/// Annotation of a launcher pod: its VMI's name.
const DOMAIN_ANNOTATION: &str = "kubevirt.io/domain";

/// Creates the nodes and starts their kubelets.
///
/// # Errors
/// When a node can't be written.
pub async fn start(options: Options) -> Result<Running> {
    for node in &options.nodes {
        node::write(&options.infra.client, node, options.node_address).await?;
    }
    let heartbeat = node::beat(options.infra.client.clone(), options.nodes.clone(), options.node_address);
    let client = options.infra.client.clone();
    let programs = Programs::new(&options)?;
    let expansion = expansion::run(client.clone(), options.volumes.clone());
    let kubelets = Arc::new(Kubelets {
        client: client.clone(),
        nodes: options.nodes.into_iter().collect(),
        address: options.node_address,
        launcher_addresses: options.launcher_addresses,
        images: options.images,
        volumes: options.volumes,
        faults: options.faults,
        pending: Pending::default(),
        programs,
    });
    let pods = Controller::new(Api::<Pod>::all(client.clone()), watcher::Config::default());
    let store = pods.store();
    let (by_claim, by_vmi) = (store.clone(), store.clone());
    let pods = pods
        .watches(
            Api::<PersistentVolumeClaim>::all(client.clone()),
            watcher::Config::default(),
            move |claim| {
                pods_where(&by_claim, |pod| simulated::claims(pod).any(|name| is_named(&claim, pod, name)))
            },
        )
        .watches_with(
            Api::all_with(client, &vmi()),
            vmi(),
            watcher::Config::default(),
            move |vmi: DynamicObject| {
                pods_where(&by_vmi, |pod| {
                    pod.labels().get(CREATED_BY_LABEL).is_some()
                        && pod.labels().get(CREATED_BY_LABEL) == vmi.uid().as_ref()
                })
            },
        )
        .reconcile_all_on(stream::select(kubelets.faults.changes(), kubelets.programs.changes()));
    let sweep = sweep_for_ever(Arc::clone(&kubelets), store);
    Ok(Running::new(vec![
        AbortOnDropHandle::new(tokio::spawn(heartbeat)),
        AbortOnDropHandle::new(tokio::spawn(sweep)),
        queue::run("infra-pods", pods, kubelets, reconcile),
        expansion,
    ]))
}

struct Kubelets {
    client: Client,
    nodes: BTreeSet<String>,
    address: IpAddr,
    launcher_addresses: BTreeMap<String, Vec<IpAddr>>,
    images: Images,
    volumes: PathBuf,
    faults: FaultPlan<Fault>,
    pending: Pending<(String, Step)>,
    programs: Programs,
}

async fn reconcile(pod: Arc<Pod>, kubelets: Arc<Kubelets>) -> Result<Action> {
    if !kubelets.nodes.contains(simulated::node_of(&pod)) {
        return Ok(Action::await_change());
    }
    let kind = simulated::kind(&pod, &kubelets.images);
    let step = match kind {
        Kind::Program => kubelets.next_of_program(&pod),
        _ => kubelets.next_of_simulated(&pod, kind).await?,
    };
    let next = match step {
        Next::Nothing => return Ok(Action::await_change()),
        Next::Later(wait) => return Ok(Action::requeue(wait)),
        Next::Do(step) => step,
    };
    if let Some(step) = next {
        match kubelets.held(&pod, kind, step) {
            Verdict::Go => {}
            Verdict::Wait(left) => return Ok(Action::requeue(left)),
            Verdict::Stuck => return Ok(Action::await_change()),
        }
    }
    kubelets.act(&pod, kind, next).await?;
    let uid = pod.uid().unwrap_or_default();
    kubelets.pending.retain(|(of, _)| *of != uid);
    Ok(Action::await_change())
}

/// What is next for a pod: nothing until it changes, a check later, or a step (`None`: only an update of its status).
enum Next {
    Nothing,
    Later(Duration),
    Do(Option<Step>),
}

impl Kubelets {
    async fn next_of_simulated(&self, pod: &Pod, kind: Kind) -> Result<Next> {
        if pod.metadata.deletion_timestamp.is_some() {
            return self.next_of_deleted(pod, kind).await;
        }
        let next = match (simulated::phase(pod), kind) {
            ("Running", Kind::Worker) => {
                let fails_and_says_so = simulated::is_waiting(pod) && self.outcome(pod) != Outcome::Succeeded;
                if fails_and_says_so { Next::Nothing } else { Next::Do(Some(Step::Finish)) }
            }
            ("Running", Kind::Launcher) if self.vmi_left(pod).await? => Next::Do(Some(Step::Finish)),
            ("Running" | "Succeeded" | "Failed", _) => Next::Nothing,
            (_, Kind::Unknown) if simulated::is_waiting(pod) => Next::Nothing,
            // A PVC's change brings the pod back.
            _ if self.claims_are_bound(pod).await? => Next::Do(Some(Step::Start)),
            _ => Next::Nothing,
        };
        Ok(next)
    }

    /// A launcher lives as long as its machine, which virt-handler stops, and no longer than its grace period.
    async fn next_of_deleted(&self, pod: &Pod, kind: Kind) -> Result<Next> {
        let left = simulated::grace_left(pod);
        if kind == Kind::Launcher && !left.is_zero() && self.vmi_lives(pod).await? {
            return Ok(Next::Later(left));
        }
        Ok(Next::Do(Some(Step::Stop)))
    }

    fn next_of_program(&self, pod: &Pod) -> Next {
        if pod.metadata.deletion_timestamp.is_some() {
            return if self.programs.stop(pod, simulated::grace_left(pod)) {
                Next::Do(Some(Step::Stop))
            } else {
                Next::Nothing
            };
        }
        if self.programs.knows(pod) { Next::Do(None) } else { Next::Do(Some(Step::Start)) }
    }

    async fn act(&self, pod: &Pod, kind: Kind, step: Option<Step>) -> Result<()> {
        if step == Some(Step::Stop) {
            return self.remove(pod).await;
        }
        let status = if kind == Kind::Program {
            match self.programs.run(pod) {
                Some(state) => program_status::status(pod, &state, self.address),
                None => return Ok(()),
            }
        } else {
            let outcome = match step {
                Some(Step::Finish) if kind == Kind::Launcher => Outcome::Succeeded,
                Some(Step::Finish) => self.outcome(pod),
                _ => Outcome::Running,
            };
            if outcome == Outcome::Succeeded && kind == Kind::Worker {
                importer::work(&self.client, &self.volumes, pod).await?;
            }
            let own = self.launcher_addresses(pod, kind);
            simulated::status(pod, kind, &outcome, simulated::Addresses { node: self.address, own })
        };
        self.write(pod, status).await
    }

    /// The addresses that the pod network has for this launcher.
    fn launcher_addresses(&self, pod: &Pod, kind: Kind) -> &[IpAddr] {
        let machine = pod.annotations().get(DOMAIN_ANNOTATION).filter(|_| kind == Kind::Launcher);
        let key = machine.zip(pod.namespace()).map(|(machine, namespace)| format!("{namespace}/{machine}"));
        key.and_then(|key| self.launcher_addresses.get(&key)).map(Vec::as_slice).unwrap_or_default()
    }

    fn held(&self, pod: &Pod, kind: Kind, step: Step) -> Verdict {
        let holds = self.faults.active().into_iter().filter_map(|fault| match fault {
            Fault::Hold(held) if held.step == step && held.at.selects(pod, kind) => Some(held.hold),
            _ => None,
        });
        verdict(self.pending.waited((pod.uid().unwrap_or_default(), step)), holds)
    }

    fn outcome(&self, pod: &Pod) -> Outcome {
        let mut failures = self.faults.active().into_iter().filter_map(|fault| match fault {
            Fault::Fail { code, message, at } if at.selects(pod, Kind::Worker) => {
                Some(Outcome::Failing { code, message })
            }
            _ => None,
        });
        failures.next_back().unwrap_or(Outcome::Succeeded)
    }

    async fn claims_are_bound(&self, pod: &Pod) -> Result<bool> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        for name in simulated::claims(pod) {
            let phase = claims.get_opt(name).await?.and_then(|claim| claim.status?.phase);
            if phase.as_deref() != Some("Bound") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn vmi_lives(&self, pod: &Pod) -> Result<bool> {
        let Some(found) = self.vmi_of(pod).await? else { return Ok(false) };
        Ok(!matches!(found.data["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
    }

    /// Whether the machine that lived in this launcher has migrated to another. Its node is no evidence: the machine may come back
    /// to it, into another launcher.
    async fn vmi_left(&self, pod: &Pod) -> Result<bool> {
        let Some(found) = self.vmi_of(pod).await? else { return Ok(false) };
        let state = &found.data["status"]["migrationState"];
        Ok(state["completed"] == true && state["failed"] != true && state["sourcePod"] == pod.name_any())
    }

    /// The VMI that a launcher is for.
    async fn vmi_of(&self, pod: &Pod) -> Result<Option<DynamicObject>> {
        let Some(name) = pod.annotations().get(DOMAIN_ANNOTATION) else { return Ok(None) };
        let namespace = pod.namespace().unwrap_or_default();
        let vmis: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, &vmi());
        let found = vmis.get_opt(name).await?;
        Ok(found.filter(|vmi| vmi.uid().as_ref() == pod.labels().get(CREATED_BY_LABEL)))
    }

    /// Writes a status unless the pod has it already.
    async fn write(&self, pod: &Pod, status: serde_json::Value) -> Result<()> {
        if simulated::has(pod, &status) {
            return Ok(());
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"resourceVersion": pod.resource_version(), "uid": pod.uid()}, "status": status});
        match pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if !not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The last thing that a kubelet does with a pod.
    async fn remove(&self, pod: &Pod) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let this_one = Preconditions { uid: pod.uid(), ..Preconditions::default() };
        let params =
            DeleteParams { preconditions: Some(this_one), ..DeleteParams::default().grace_period(0) };
        match pods.delete(&pod.name_any(), &params).await {
            Err(error) if !not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

async fn sweep_for_ever(kubelets: Arc<Kubelets>, pods: Store<Pod>) {
    if pods.wait_until_ready().await.is_err() {
        return;
    }
    let mut turn = tokio::time::interval(SWEEP_PERIOD);
    loop {
        turn.tick().await;
        let living: BTreeSet<String> = pods.state().iter().filter_map(|pod| pod.uid()).collect();
        kubelets.programs.sweep(&living);
    }
}

fn pods_where(pods: &Store<Pod>, matches: impl Fn(&Pod) -> bool) -> Vec<ObjectRef<Pod>> {
    pods.state().iter().filter(|pod| matches(pod)).map(|pod| ObjectRef::from_obj(&**pod)).collect()
}

fn is_named(claim: &PersistentVolumeClaim, pod: &Pod, name: &str) -> bool {
    claim.namespace() == pod.namespace() && claim.name_any() == name
}

fn vmi() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("kubevirt.io", "v1", "VirtualMachineInstance"))
}
