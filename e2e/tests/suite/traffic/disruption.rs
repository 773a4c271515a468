//! How many requests of clients are lost while the pods behind a load balancer are replaced, or a VM moves, or is reset.

use std::{
    collections::BTreeMap,
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
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{data_path::DataPath, managed, pods_in};
use crate::fixture::{Fixture, setting};

tests! {
    Exclusive, long:
        lost_in_a_rolling_restart,
        lost_in_a_live_migration,
        lost_in_a_reset_of_a_vm;
    Exclusive:
        lost_in_a_rolling_restart_with_our_endpoints;
}

/// Requests of one measurement, at least: two emulated workers answer some fifty in a second.
const QUESTIONS: u32 = 1_000;
/// The environment variable with another number of them.
const SETTING: &str = "BENCH_QUESTIONS";
/// Requests before the disruption begins.
const BEFORE: u32 = 200;
/// How many clients send requests at the same time, each one after the other. More, and the emulated workers are so busy with them
/// that they miss their pods' probes: the loss is then not caused by the disruption.
const CLIENTS: usize = 2;
/// Pods: two on each of two workers.
const PODS: i32 = 4;
/// Seconds for which a pod that goes still answers: until all kube-proxies know that it goes.
const DRAIN_SECONDS: u32 = 5;
/// Seconds until a pod that goes is killed.
const GRACE_SECONDS: u32 = 30;
/// The Service and its pods.
const NAME: &str = "web";
/// The infra node to which a worker moves.
const OTHER_NODE: &str = "infra-node-2";
/// One of so many requests may be lost where none should be: an emulated worker stands still for a second or more now and then,
/// as the figure without a disruption shows.
const ONE_IN: u32 = 50;

/// The objects that a disruption changes.
struct DisruptionTarget<'a> {
    fixture: &'a Fixture,
    deployments: Api<Deployment>,
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
    rolling_restart(fixture, "infra's selector", json!({}), &["Cluster", "Local"]).await
}

async fn lost_in_a_rolling_restart_with_our_endpoints(fixture: Fixture) -> Result<()> {
    rolling_restart(fixture, "our endpoints", managed(), &["Local"]).await
}

/// The pods are replaced as `kubectl rollout restart` does: hardly a request is lost, whichever controller writes the endpoints.
async fn rolling_restart(fixture: Fixture, who: &str, keys: Value, policies: &[&str]) -> Result<()> {
    let path = DataPath::with(&fixture, &keys).await?;
    for policy in policies {
        let what = format!("a rolling restart of {PODS} pods, {who}");
        let counted = measured(&fixture, &path, &what, policy, async |it| it.restart().await).await?;
        counted.few()?;
    }
    path.close().await
}

/// A worker moves to another infra node and back; its address moves with it, as with a network whose addresses are a VM's own.
/// No packet waits for the copy of its memory: QEMU stays where it is.
async fn lost_in_a_live_migration(fixture: Fixture) -> Result<()> {
    let path = DataPath::new(&fixture).await?;
    measured(&fixture, &path, "no disruption", "Cluster", async |_| Ok(())).await?.few()?;
    admit_workers(&fixture.infra, OTHER_NODE, true).await?;
    for policy in ["Cluster", "Local"] {
        let there_and_back = async |it: &DisruptionTarget<'_>| {
            it.migrate(OTHER_NODE).await?;
            it.migrate(DATA_PATH_NODE).await
        };
        measured(&fixture, &path, "a live migration and one back", policy, there_and_back).await?.few()?;
    }
    admit_workers(&fixture.infra, OTHER_NODE, false).await?;
    path.close().await
}

/// A worker is reset: requests to it are lost until its pods answer again, unless a proxy learns that it is away; then all requests
/// are answered again.
async fn lost_in_a_reset_of_a_vm(fixture: Fixture) -> Result<()> {
    let path = DataPath::new(&fixture).await?;
    // An emulated worker boots for minutes: once is enough unless somebody measures.
    let policies: &[&str] =
        if setting::<u32>(SETTING)?.is_some() { &["Cluster", "Local"] } else { &["Cluster"] };
    for policy in policies {
        measured(&fixture, &path, "a reset of one of two VMs", policy, async |it| it.reset().await).await?;
    }
    path.close().await
}

/// Sends requests while `disrupt` runs, and until enough were sent; afterwards each of the pods answers.
async fn measured(
    fixture: &Fixture,
    path: &DataPath,
    what: &str,
    policy: &str,
    disrupt: impl AsyncFn(&DisruptionTarget<'_>) -> Result<()>,
) -> Result<Losses> {
    let deployments: Api<Deployment> = Api::namespaced(fixture.guest.clone(), &path.place.namespace);
    let workers = fixture.control.workers().await?;
    let worker = workers.last().context("no worker")?.clone();
    let disrupted = DisruptionTarget { fixture, deployments, worker };
    disrupted.deployments.create(&PostParams::default(), &deployment()?).await?;
    disrupted.rolled_out().await?;
    let address = path.service(NAME, json!({"externalTrafficPolicy": policy})).await?;
    let all = usize::try_from(PODS)?;
    path.until_answered("each pod", address, |answers| pods_in(answers).len() == all).await?;

    let counted = counted(path, address, async || disrupt(&disrupted).await).await?;
    path.until_answered("each pod afterwards", address, |answers| pods_in(answers).len() == all).await?;
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
    disrupt: impl AsyncFnOnce() -> Result<()>,
) -> Result<Losses> {
    let enough = setting(SETTING)?.unwrap_or(QUESTIONS);
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
                Ok(if asked >= BEFORE { Ok(()) } else { Err(format!("{asked} asked")) })
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
        ensure!(
            lost <= asked / ONE_IN,
            "expected at most one of {ONE_IN} requests to be lost, saw {lost} of {asked}: {:?}",
            self.lost
        );
        Ok(())
    }
}

impl DisruptionTarget<'_> {
    /// Restarts the pods as `kubectl rollout restart` does.
    async fn restart(&self) -> Result<()> {
        let again =
            json!({"spec": {"template": {"metadata": {"annotations": {"bench.local/restarted": "once"}}}}});
        self.deployments.patch(NAME, &PatchParams::default(), &Patch::Merge(again)).await?;
        self.rolled_out().await
    }

    /// Waits until all pods are of the newest template, and available.
    async fn rolled_out(&self) -> Result<()> {
        until(&format!("all pods of {NAME} to be new and available"), Deadline::MachineStart, async || {
            let deployment = self.deployments.get(NAME).await?;
            let status = deployment.status.unwrap_or_default();
            let seen = status.observed_generation == deployment.metadata.generation;
            let counts = [status.replicas, status.updated_replicas, status.available_replicas];
            let done = seen && counts.iter().all(|count| *count == Some(PODS));
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

fn deployment() -> Result<Deployment> {
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
            "replicas": PODS,
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }))?)
}
