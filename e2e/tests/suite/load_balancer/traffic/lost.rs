//! How many questions of clients are lost while the pods behind a load balancer are replaced.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Instant,
};

use anyhow::{Result, ensure};
use bench::scenario::{Deadline, PORT, answering_pod_spec, until};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::way::Way;
use crate::fixture::Fixture;

/// Questions of one measurement, at least.
const QUESTIONS: u32 = 10_000;
/// Questions before the restart begins.
const BEFORE: u32 = 500;
/// How many clients ask at the same time, each one question after the other.
const CLIENTS: usize = 8;
/// Pods: two on each of two workers.
const PODS: i32 = 4;
/// Seconds for which a pod that goes still answers: until all kube-proxies know that it goes.
const DRAIN_SECONDS: u32 = 5;
/// Seconds until a pod that goes is killed.
const GRACE_SECONDS: u32 = 30;

/// Both policies; nothing is asserted but that the restart ended and most questions were answered.
pub async fn in_a_rolling_restart(fixture: Fixture) -> Result<()> {
    let way = Way::new(&fixture).await?;
    let deployments: Api<Deployment> = Api::namespaced(fixture.guest.clone(), &way.place.namespace);
    for policy in ["Cluster", "Local"] {
        let name = policy.to_lowercase();
        deployments.create(&PostParams::default(), &deployment(&name)?).await?;
        rolled_out(&deployments, &name).await?;
        let address = way.service(&name, json!({"externalTrafficPolicy": policy})).await?;
        way.look("an answer to each question", address, |_| true).await?;

        let (asked, over) = (AtomicU32::new(0), AtomicBool::new(false));
        let lost: Mutex<BTreeMap<String, u32>> = Mutex::default();
        let client = async || {
            while !over.load(Ordering::Relaxed) || asked.load(Ordering::Relaxed) < QUESTIONS {
                asked.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = way.user.get(address, PORT).await {
                    let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
                    *lost.entry(error.root_cause().to_string()).or_default() += 1;
                }
            }
        };
        let restart = async {
            let outcome = restarted(&deployments, &name, &asked).await;
            over.store(true, Ordering::Relaxed);
            outcome
        };
        let began = Instant::now();
        let (_, restart) = tokio::join!(join_all((0..CLIENTS).map(|_| client())), restart);
        let (restart, took) = (restart?, began.elapsed());

        let asked = asked.into_inner();
        let lost = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
        let all: u32 = lost.values().sum();
        fixture.figures.add(
            &format!("questions lost in a rolling restart of {PODS} pods, policy {policy}"),
            format!("{all} of {asked}"),
            format!("restart {restart:.0} s, questions {:.0} s; {lost:?}", took.as_secs_f64()),
        )?;
        ensure!(all < asked / 2, "{all} of {asked} questions were lost: {lost:?}");
        deployments.delete(&name, &DeleteParams::default()).await?;
    }
    way.close().await
}

/// Restarts the pods as `kubectl rollout restart` does, once some questions were asked; the seconds that it took.
async fn restarted(deployments: &Api<Deployment>, name: &str, asked: &AtomicU32) -> Result<f64> {
    until("the first questions", Deadline::PodStart, async || {
        let asked = asked.load(Ordering::Relaxed);
        Ok(if asked >= BEFORE { Ok(()) } else { Err(format!("{asked} asked")) })
    })
    .await?;
    let began = Instant::now();
    let again =
        json!({"spec": {"template": {"metadata": {"annotations": {"bench.local/restarted": "once"}}}}});
    deployments.patch(name, &PatchParams::default(), &Patch::Merge(again)).await?;
    rolled_out(deployments, name).await?;
    Ok(began.elapsed().as_secs_f64())
}

/// Waits until all pods are of the newest template, and available.
async fn rolled_out(deployments: &Api<Deployment>, name: &str) -> Result<()> {
    until(&format!("the pods of {name}"), Deadline::MachineStart, async || {
        let deployment = deployments.get(name).await?;
        let status = deployment.status.unwrap_or_default();
        let seen = status.observed_generation == deployment.metadata.generation;
        let counts = [status.replicas, status.updated_replicas, status.available_replicas];
        let done = seen && counts.iter().all(|count| *count == Some(PODS));
        Ok(if done { Ok(()) } else { Err(format!("all, updated, available: {counts:?}")) })
    })
    .await
}

fn deployment(name: &str) -> Result<Deployment> {
    let mut pod: Value = answering_pod_spec();
    pod["terminationGracePeriodSeconds"] = GRACE_SECONDS.into();
    pod["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}});
    let labels = json!({"app": name});
    pod["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels}, "matchLabelKeys": ["pod-template-hash"],
    }]);
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": PODS,
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }))?)
}
