//! How soon publish answers: after the disk became Ready, and when it is Ready already.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bench::{
    command::goal::Plan,
    paths,
    scenario::{HCP_NAMESPACE, virtual_machine_instances},
};
use csi_proto::v1::Volume;
use kube::api::DynamicObject;

use super::{becomes, percentile};
use crate::{
    controller_process::{Controller, block},
    fixture::Fixture,
};

tests! {
    Exclusive, long:
        publish_answers_soon_after_ready;
}

/// How often each thing is measured.
const RUNS: usize = 50;

/// Publishes a volume repeatedly, with the usual rights and where watching instances is granted.
async fn publish_answers_soon_after_ready(fixture: Fixture) -> Result<()> {
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let looking = Controller::start(&fixture, "looking").await?;
    let volume = looking.create(&format!("pvc-{}", fixture.word), block()).await?;
    fixture.image_of(&volume.volume_id).await?;

    let lags = lags(&fixture, &looking, &volume, &machine).await?;
    tell(&fixture, "Ready → answer, usual rights", lags, "kubevirt/csi-driver polls once a second")?;

    looking.publish(&volume, &machine).await?;
    let mut answers = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        looking.publish(&volume, &machine).await?;
        answers.push(began.elapsed());
    }
    tell(&fixture, "publish of what is Ready already", answers, "goal < 50 ms")?;
    looking.discard_keeping(&volume, &machine).await?;

    let right = instances_watch_right(&fixture)?;
    let watching = Controller::start(&fixture, "watching").await?;
    let lags = lags_of_watcher(&fixture, &watching, &volume, &machine).await?;
    tell(&fixture, "Ready → answer, instances watched", lags, "goal < 50 ms")?;
    watching.discard(&volume, &machine).await?;
    // After its last wait: it does not know that the right is gone.
    drop((watching, right));
    fixture.delete_machine(&machine).await
}

/// Lags of a controller that has learnt that it may watch; otherwise the test fails, because it would measure something else.
async fn lags_of_watcher(
    fixture: &Fixture,
    controller: &Controller,
    volume: &Volume,
    machine: &str,
) -> Result<Vec<Duration>> {
    let lags = lags(fixture, controller, volume, machine).await?;
    let log = std::fs::read_to_string(fixture.run.join("logs").join("infra-audit.log"))?;
    let watched = log.lines().any(|line| {
        line.contains("\"watch\"")
            && line.contains("serviceaccount:hcp-guest:kubevirt-csi\"")
            && line.contains("virtualmachineinstances")
    });
    ensure!(watched, "expected the controller to watch, saw no watch");
    Ok(lags)
}

/// From the moment in which a watch of our own shows the disk Ready to the answer of publish, for each run.
async fn lags(
    fixture: &Fixture,
    controller: &Controller,
    volume: &Volume,
    machine: &str,
) -> Result<Vec<Duration>> {
    let mut lags = Vec::new();
    for _ in 0..RUNS {
        let (ready, answered) =
            tokio::try_join!(becomes_ready(fixture, machine, &volume.volume_id), async {
                controller.publish(volume, machine).await?;
                Ok(Instant::now())
            })?;
        lags.push(answered.saturating_duration_since(ready));
        controller.discard_keeping(volume, machine).await?;
    }
    Ok(lags)
}

/// When the instance's status shows the volume Ready.
async fn becomes_ready(fixture: &Fixture, machine: &str, volume: &str) -> Result<Instant> {
    let instances = virtual_machine_instances(&fixture.infra, HCP_NAMESPACE);
    becomes(&instances, machine, |instance| is_ready(instance, volume)).await?;
    Ok(Instant::now())
}

fn is_ready(instance: &DynamicObject, volume: &str) -> bool {
    let status = instance.data["status"]["volumeStatus"].as_array();
    status.into_iter().flatten().any(|entry| entry["name"] == volume && entry["phase"] == "Ready")
}

fn tell(fixture: &Fixture, name: &str, mut samples: Vec<Duration>, beside: &str) -> Result<()> {
    samples.sort_unstable();
    let of = |share| percentile(&samples, share).as_millis();
    let value =
        format!("p50 {} ms, p99 {} ms, most {} ms ({} runs)", of(0.5), of(0.99), of(1.0), samples.len());
    fixture.figures.add(name, value, beside)
}

/// The right to watch instances, as `deploy/controller-infra/watch-instances` gives it; revoked when dropped.
struct WatchRight {
    kubectl: std::path::PathBuf,
}

/// Gives the controller's account the right to watch instances.
fn instances_watch_right(fixture: &Fixture) -> Result<WatchRight> {
    let kubectl = Plan::read(&fixture.run)?.artifacts.programs.path("kubectl")?.to_path_buf();
    kubectl_on_infra(&kubectl, "apply")?;
    Ok(WatchRight { kubectl })
}

impl Drop for WatchRight {
    fn drop(&mut self) {
        if let Err(error) = kubectl_on_infra(&self.kubectl, "delete") {
            eprintln!("the right to watch instances stays: {error:#}");
        }
    }
}

fn kubectl_on_infra(kubectl: &Path, verb: &str) -> Result<()> {
    let status = Command::new(kubectl)
        .arg(format!("--kubeconfig={}", paths::kubeconfig().display()))
        .args(["--context=infra", "--namespace", HCP_NAMESPACE, verb, "-k"])
        .arg(paths::repository().join("deploy/controller-infra/watch-instances"))
        .status()
        .with_context(|| format!("run {}", kubectl.display()))?;
    ensure!(status.success(), "expected kubectl {verb} to succeed, saw {status}");
    Ok(())
}
