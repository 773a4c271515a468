//! How many requests of clients are lost while the pods behind a load balancer are replaced, or a VM moves, or is reset.
//!
//! Two short forms replace pods and move a VM with few requests, which shows that traffic goes on; the others count the loss. The
//! short forms are in the long list too until they have passed there: their bound on a busy emulated worker is not measured.
//! The reset of a VM is in the long list only: it is a whole boot of an emulated worker, until kubelet and the pods run again, and
//! nothing shorter has its loss. In the short list `endpoints::they_follow_the_vms` shows that a VM which does not run takes no
//! traffic.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bench::{
    control::Request,
    scenario::{
        DATA_PATH_NODE, Deadline, HCP_NAMESPACE, PORT, admit_workers, answering_pod_spec, until,
        virtual_machine_instance_migrations, virtual_machine_instances,
    },
};
use futures::future::join_all;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{data_path::DataPath, managed, pods_in};
use crate::fixture::{Fixture, setting};

tests! {
    Exclusive, long:
        lost_in_a_rolling_restart,
        lost_in_a_rolling_restart_with_our_endpoints,
        lost_in_a_live_migration,
        lost_in_a_reset_of_a_vm,
        a_rolling_restart_loses_hardly_a_request,
        a_live_migration_loses_hardly_a_request;
}

/// How large a measurement is.
#[derive(Clone, Copy)]
struct Size {
    /// Requests, at least: two emulated workers answer some fifty in a second.
    questions: u32,
    /// Requests before the disruption begins.
    before: u32,
    /// Pods, as many on each of two workers.
    pods: i32,
}

/// Enough to count the loss.
const LONG: Size = Size { questions: 1_000, before: 200, pods: 4 };
/// Enough to see that traffic goes on: there are always pods to which it can go, and each is replaced.
const SHORT: Size = Size { questions: 100, before: 20, pods: 2 };
/// The environment variable with another number of requests.
const SETTING: &str = "BENCH_QUESTIONS";
/// How many clients send requests at the same time, each one after the other. More, and the emulated workers are so busy with them
/// that they miss their pods' probes: the loss is then not caused by the disruption.
const CLIENTS: usize = 2;
/// Seconds for which a pod that goes still answers: until all kube-proxies know that it goes.
const DRAIN_SECONDS: u32 = 5;
/// Seconds until a pod that goes is killed.
const GRACE_SECONDS: u32 = 30;
/// The Service and its pods.
const NAME: &str = "web";
/// The infra node to which a worker moves.
const OTHER_NODE: &str = "infra-node-2";
/// One of so many requests may be lost where none should be: an emulated worker stands still for a second or more now and then,
/// as the figure without a disruption shows. One such moment loses a request of each client, so this many are allowed at least.
const ONE_IN: u32 = 50;

/// The objects that a disruption changes.
struct DisruptionTarget<'a> {
    fixture: &'a Fixture,
    deployments: Api<Deployment>,
    pods: Api<Pod>,
    size: Size,
    /// The worker that moves or is reset.
    worker: String,
}

/// The results of the requests.
struct Losses {
    asked: u32,
    lost: BTreeMap<String, u32>,
    took: Duration,
}

async fn lost_in_a_rolling_restart(fixture: Fixture) -> Result<()> {
    rolling_restart(fixture, LONG, ("infra's selector", json!({})), &["Cluster", "Local"]).await
}

async fn lost_in_a_rolling_restart_with_our_endpoints(fixture: Fixture) -> Result<()> {
    rolling_restart(fixture, LONG, ("our endpoints", managed()), &["Local"]).await
}

/// The endpoints are ours and only those with a pod, so each replaced pod changes them.
async fn a_rolling_restart_loses_hardly_a_request(fixture: Fixture) -> Result<()> {
    rolling_restart(fixture, SHORT, ("our endpoints", managed()), &["Local"]).await
}

/// The pods are replaced as `kubectl rollout restart` does: hardly a request is lost, whichever controller writes the endpoints.
async fn rolling_restart(
    fixture: Fixture,
    size: Size,
    (who, keys): (&str, Value),
    policies: &[&str],
) -> Result<()> {
    let path = DataPath::with(&fixture, &keys).await?;
    for policy in policies {
        let what = format!("a rolling restart of {} pods, {who}", size.pods);
        let restart = async |it: &DisruptionTarget<'_>| it.restart().await;
        measured(&fixture, &path, size, &what, policy, restart).await?.few()?;
    }
    path.close().await
}

async fn lost_in_a_live_migration(fixture: Fixture) -> Result<()> {
    let path = DataPath::new(&fixture).await?;
    measured(&fixture, &path, LONG, "no disruption", "Cluster", async |_| Ok(())).await?.few()?;
    live_migration(&fixture, &path, LONG, &["Cluster", "Local"]).await?;
    path.close().await
}

/// Under Local infra's node sends traffic only to VMs that run on it, so the worker leaves the traffic and comes back to it.
async fn a_live_migration_loses_hardly_a_request(fixture: Fixture) -> Result<()> {
    let path = DataPath::new(&fixture).await?;
    live_migration(&fixture, &path, SHORT, &["Local"]).await?;
    path.close().await
}

/// A worker moves to another infra node and back; its address moves with it, as with a network whose addresses are a VM's own.
/// No packet waits for the copy of its memory: QEMU stays where it is.
async fn live_migration(fixture: &Fixture, path: &DataPath, size: Size, policies: &[&str]) -> Result<()> {
    admit_workers(&fixture.infra, OTHER_NODE, true).await?;
    for policy in policies {
        let there_and_back = async |it: &DisruptionTarget<'_>| {
            it.migrate(OTHER_NODE).await?;
            it.migrate(DATA_PATH_NODE).await
        };
        let what = "a live migration and one back";
        measured(fixture, path, size, what, policy, there_and_back).await?.few()?;
    }
    admit_workers(&fixture.infra, OTHER_NODE, false).await
}

/// A worker is reset: requests to it are lost until its pods answer again, unless a proxy learns that it is away; then all requests
/// are answered again.
async fn lost_in_a_reset_of_a_vm(fixture: Fixture) -> Result<()> {
    let path = DataPath::new(&fixture).await?;
    // An emulated worker boots for minutes: once is enough unless somebody measures.
    let policies: &[&str] =
        if setting::<u32>(SETTING)?.is_some() { &["Cluster", "Local"] } else { &["Cluster"] };
    for policy in policies {
        let what = "a reset of one of two VMs";
        measured(&fixture, &path, LONG, what, policy, async |it| it.reset().await).await?;
    }
    path.close().await
}

/// Sends requests while `disrupt` runs, and until enough were sent; afterwards each of the pods answers, and no other.
async fn measured(
    fixture: &Fixture,
    path: &DataPath,
    size: Size,
    what: &str,
    policy: &str,
    disrupt: impl AsyncFn(&DisruptionTarget<'_>) -> Result<()>,
) -> Result<Losses> {
    let (guest, namespace) = (&fixture.guest, &path.place.namespace);
    let deployments: Api<Deployment> = Api::namespaced(guest.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(guest.clone(), namespace);
    let workers = fixture.control.workers().await?;
    let worker = workers.last().context("no worker")?.clone();
    let disrupted = DisruptionTarget { fixture, deployments, pods, size, worker };
    disrupted.deployments.create(&PostParams::default(), &deployment(size.pods)?).await?;
    disrupted.rolled_out().await?;
    let address = path.service(NAME, json!({"externalTrafficPolicy": policy})).await?;
    let pods = disrupted.pods().await?;
    path.until_answered("each pod", address, |answers| pods_in(answers) == pods).await?;

    let counted = counted(path, address, size, async || disrupt(&disrupted).await).await?;
    let pods = disrupted.pods().await?;
    path.until_answered("each pod afterwards", address, |answers| pods_in(answers) == pods).await?;
    fixture.figures.add(
        &format!("questions lost in {what}, policy {policy}"),
        format!("{} of {}", counted.all_lost(), counted.asked),
        format!("in {:.0} s; {:?}", counted.took.as_secs_f64(), counted.lost),
    )?;
    path.place.guests.delete(NAME, &DeleteParams::default()).await?;
    disrupted.deployments.delete(NAME, &DeleteParams::background()).await?;
    path.ended(NAME).await?;
    Ok(counted)
}

async fn counted(
    path: &DataPath,
    address: IpAddr,
    size: Size,
    disrupt: impl AsyncFnOnce() -> Result<()>,
) -> Result<Losses> {
    let enough = setting(SETTING)?.unwrap_or(size.questions);
    let (asked, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let lost: Mutex<BTreeMap<String, u32>> = Mutex::default();
    let client = async || {
        while !over.load(Ordering::Relaxed) || asked.load(Ordering::Relaxed) < enough {
            asked.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = path.user.get(address, PORT).await {
                let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
                *lost.entry(error.root_cause().to_string()).or_default() += 1;
            }
        }
    };
    let disruption = async {
        let outcome = async {
            until("the first requests", Deadline::PodStart, async || {
                let asked = asked.load(Ordering::Relaxed);
                Ok(if asked >= size.before { Ok(()) } else { Err(format!("{asked} asked")) })
            })
            .await?;
            disrupt().await
        };
        let outcome = outcome.await;
        over.store(true, Ordering::Relaxed);
        outcome
    };
    let began = Instant::now();
    let (_, outcome) = tokio::join!(join_all((0..CLIENTS).map(|_| client())), disruption);
    outcome?;
    let lost = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Losses { asked: asked.into_inner(), lost, took: began.elapsed() })
}

impl Losses {
    fn all_lost(&self) -> u32 {
        self.lost.values().sum()
    }

    fn few(&self) -> Result<()> {
        let (lost, asked) = (self.all_lost(), self.asked);
        let most = (asked / ONE_IN).max(u32::try_from(CLIENTS)?);
        ensure!(
            lost <= most,
            "expected at most {most} of {asked} requests to be lost, saw {lost}: {:?}",
            self.lost
        );
        Ok(())
    }
}

impl DisruptionTarget<'_> {
    /// The names of the pods that do not end.
    async fn pods(&self) -> Result<BTreeSet<String>> {
        let all = self.pods.list(&ListParams::default().labels(&format!("app={NAME}"))).await?.items;
        let stay = all.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(stay.map(ResourceExt::name_any).collect())
    }

    /// Restarts the pods as `kubectl rollout restart` does.
    async fn restart(&self) -> Result<()> {
        let before = self.pods().await?;
        let again =
            json!({"spec": {"template": {"metadata": {"annotations": {"bench.local/restarted": "once"}}}}});
        self.deployments.patch(NAME, &PatchParams::default(), &Patch::Merge(again)).await?;
        self.rolled_out().await?;
        let after = self.pods().await?;
        ensure!(before.is_disjoint(&after), "expected all of {before:?} to be replaced, saw {after:?}");
        Ok(())
    }

    /// Waits until all pods are of the newest template, and available.
    async fn rolled_out(&self) -> Result<()> {
        until(&format!("all pods of {NAME} to be new and available"), Deadline::MachineStart, async || {
            let deployment = self.deployments.get(NAME).await?;
            let status = deployment.status.unwrap_or_default();
            let seen = status.observed_generation == deployment.metadata.generation;
            let counts = [status.replicas, status.updated_replicas, status.available_replicas];
            let done = seen && counts.iter().all(|count| *count == Some(self.size.pods));
            Ok(if done { Ok(()) } else { Err(format!("all, updated, available: {counts:?}")) })
        })
        .await
    }

    /// Migrates the worker to `node`, and waits until it is there.
    async fn migrate(&self, node: &str) -> Result<()> {
        let migrations = virtual_machine_instance_migrations(&self.fixture.infra, HCP_NAMESPACE);
        let wanted = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": {"generateName": "traffic-"}, "spec": {"vmiName": self.worker}});
        let name = migrations.create(&PostParams::default(), &serde_json::from_value(wanted)?).await?;
        let name = name.metadata.name.context("a migration without a name")?;
        until("the migration to end", Deadline::PodStart, async || {
            let phase = migrations.get(&name).await?.data["status"]["phase"].to_string();
            Ok(if phase.contains("Succeeded") { Ok(()) } else { Err(phase) })
        })
        .await?;
        let instances = virtual_machine_instances(&self.fixture.infra, HCP_NAMESPACE);
        let now = instances.get(&self.worker).await?.data["status"]["nodeName"].clone();
        ensure!(now == node, "expected {} on {node}, saw it on {now}", self.worker);
        migrations.delete(&name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Presses the worker's reset button, and waits until all pods are available again.
    async fn reset(&self) -> Result<()> {
        self.fixture.control.ask(&Request::Reset { worker: self.worker.clone() }).await?;
        self.rolled_out().await
    }
}

fn deployment(pods: i32) -> Result<Deployment> {
    let mut pod: Value = answering_pod_spec();
    pod["terminationGracePeriodSeconds"] = GRACE_SECONDS.into();
    pod["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}});
    let labels = json!({"app": NAME});
    pod["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels}, "matchLabelKeys": ["pod-template-hash"],
    }]);
    Ok(serde_json::from_value(json!({
        "metadata": {"name": NAME},
        "spec": {
            "replicas": pods,
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }))?)
}
