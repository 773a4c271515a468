//! Fifty volumes for one VM at the same moment, beside the bare burst: the same hotplug calls one after another, made
//! without a driver. The burst is the lower bound, because concurrent calls on one VM lose a race.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bench::{
    audit::AuditLog,
    report::human,
    scenario::{Deadline, HCP_NAMESPACE, until, virtual_machine_instances},
};
use csi_proto::v1::Volume;
use futures::{TryStreamExt, future::join_all};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::WatchParams, core::WatchEvent};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::{hotplug_call, resident_mib};
use crate::{
    controller_process::{Controller, block},
    fixture::Fixture,
    rights::CONTROLLER_USER,
};

tests! {
    Exclusive, long:
        fifty_volumes_of_one_vm_beside_the_bare_burst;
}

/// How many volumes.
const COUNT: usize = 50;

/// The calls of kubevirt/csi-driver for a lone volume's life: each of many must need fewer. How many fewer depends on how long
/// infra takes: nine calls are the volume's own (`docs/decisions/0005`), the reads of the VM come each second.
const CALLS_PER_VOLUME: f64 = 18.0;

/// What virt-controller calls the pods that hold plugged volumes.
const ATTACHMENT_POD: &str = "hp-volume-";

/// One direction of a phase: how long it took and how many attachment pods it made.
struct Phase {
    time: Duration,
    pods: usize,
}

/// Burst first, then the driver, on the same volumes and the same VM.
async fn fifty_volumes_of_one_vm_beside_the_bare_burst(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let log = AuditLog::at(fixture.run.join("logs").join("infra-audit.log"), fixture.infra.clone());
    let mark = log.mark().await?;

    let names: Vec<String> = (0..COUNT).map(|index| format!("pvc-{}-{index}", fixture.word)).collect();
    let idle = resident_mib(&controller).await?;
    let created = join_all(names.iter().map(|name| controller.create(name, block()))).await;
    let volumes = created.into_iter().collect::<Result<Vec<Volume>, _>>()?;
    for result in join_all(volumes.iter().map(|volume| fixture.image_of(&volume.volume_id))).await {
        result?;
    }

    let pods = AttachmentPods::watch(&fixture).await?;
    let burst = Burst { fixture: &fixture, machine: &machine, volumes: &volumes };
    let bare =
        [pods.during(burst.calls("addvolume")).await?, pods.during(burst.calls("removevolume")).await?];
    let publish = async {
        let all = join_all(volumes.iter().map(|volume| controller.publish(volume, &machine))).await;
        all.into_iter().collect::<Result<Vec<()>, _>>().map(drop).context("publish")
    };
    let unpublish = async {
        let all = join_all(volumes.iter().map(|volume| controller.unpublish(volume, &machine))).await;
        all.into_iter().collect::<Result<Vec<()>, _>>().map(drop).context("unpublish")
    };
    let published = pods.during(publish).await?;
    burst.shows(COUNT).await?;
    let loaded = resident_mib(&controller).await?;
    let driver = [published, pods.during(unpublish).await?];
    burst.shows(0).await?;
    for result in join_all(volumes.iter().map(|volume| controller.delete(volume))).await {
        result?;
    }

    for ((what, bare), driver) in ["published", "unpublished"].into_iter().zip(&bare).zip(&driver) {
        let ratio = driver.time.as_secs_f64() / bare.time.as_secs_f64();
        let value =
            format!("{} with {} attachment pods: {ratio:.2} × the burst", human(driver.time), driver.pods);
        let beside = format!("burst {} with {} pods; goal ≤ 1.2 ×", human(bare.time), bare.pods);
        fixture.figures.add(&format!("{COUNT} volumes of one VM {what} at once"), value, beside)?;
    }
    fixture.figures.add(
        "controller's resident memory",
        format!("{idle:.1} MiB idle, {loaded:.1} MiB with {COUNT} volumes attached"),
        "goal 15 MiB idle",
    )?;
    let calls = log.since(mark).await?.of_user(CONTROLLER_USER).len();
    #[expect(clippy::cast_precision_loss, reason = "some thousand calls")]
    let each = calls as f64 / COUNT as f64;
    let beside = format!("kubevirt/csi-driver, lone volume: {CALLS_PER_VOLUME}; goal: half of it");
    fixture.figures.add(
        &format!("infra calls for each of {COUNT} volumes' lives"),
        format!("{each:.1}"),
        beside,
    )?;
    ensure!(
        each < CALLS_PER_VOLUME,
        "expected fewer than {CALLS_PER_VOLUME} infra calls for each of {COUNT} volumes, saw {each:.1}"
    );
    fixture.delete_machine(&machine).await
}

/// The calls without a driver.
struct Burst<'a> {
    fixture: &'a Fixture,
    machine: &'a str,
    volumes: &'a [Volume],
}

impl Burst<'_> {
    /// Each call right after the last one's answer; then waits until the instance shows all of it.
    async fn calls(&self, verb: &str) -> Result<()> {
        for volume in self.volumes {
            let name = &volume.volume_id;
            let body = if verb == "addvolume" {
                let serial = volume.volume_context.get("serial").context("no serial")?;
                json!({
                    "name": name,
                    "disk": {"name": name, "serial": serial, "disk": {"bus": "scsi"}},
                    "volumeSource": {"dataVolume": {"name": name}},
                })
            } else {
                json!({"name": name})
            };
            hotplug_call(&self.fixture.infra, self.machine, verb, &body).await?;
        }
        self.shows(if verb == "addvolume" { COUNT } else { 0 }).await
    }

    /// Waits until the instance's status shows so many plugged volumes, all Ready.
    async fn shows(&self, count: usize) -> Result<()> {
        let instances = virtual_machine_instances(&self.fixture.infra, HCP_NAMESPACE);
        until(&format!("{count} disks in {}", self.machine), Deadline::PodStart, async || {
            let instance = instances.get(self.machine).await?;
            let entries = instance.data["status"]["volumeStatus"].as_array().cloned().unwrap_or_default();
            let plugged: Vec<Value> =
                entries.into_iter().filter(|entry| !entry["hotplugVolume"].is_null()).collect();
            let ready = plugged.iter().filter(|entry| entry["phase"] == "Ready").count();
            let done = plugged.len() == count && ready == count;
            Ok(if done { Ok(()) } else { Err(format!("{} disks, {ready} of them Ready", plugged.len())) })
        })
        .await
    }
}

/// Counts attachment pods as they are made.
struct AttachmentPods {
    seen: Arc<Mutex<BTreeSet<String>>>,
    _watch: AbortOnDropHandle<()>,
}

impl AttachmentPods {
    async fn watch(fixture: &Fixture) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
        let mut events = Box::pin(pods.watch(&WatchParams::default().timeout(290), "0").await?);
        let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let all = Arc::clone(&seen);
        let watch = tokio::spawn(async move {
            while let Ok(Some(event)) = events.try_next().await {
                if let WatchEvent::Added(pod) = event
                    && pod.metadata.name.is_some_and(|name| name.starts_with(ATTACHMENT_POD))
                {
                    all.lock().expect("no holder panics").extend(pod.metadata.uid);
                }
            }
        });
        Ok(Self { seen, _watch: AbortOnDropHandle::new(watch) })
    }

    /// Does `work`; how long it took and how many pods came meanwhile.
    async fn during(&self, work: impl Future<Output = Result<()>>) -> Result<Phase> {
        let before = self.seen.lock().expect("no holder panics").len();
        let began = Instant::now();
        work.await?;
        let time = began.elapsed();
        let pods = self.seen.lock().expect("no holder panics").len() - before;
        Ok(Phase { time, pods })
    }
}
