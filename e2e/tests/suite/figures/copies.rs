//! How long a snapshot, a restore, a clone and an expansion take beside the bare infra calls of the same run, with how many infra
//! calls, and a list of a hundred snapshots by pages.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::{
    audit::AuditLog,
    scenario::{Deadline, HCP_NAMESPACE, data_volumes, until_gone, virtual_machine_instances},
};
use csi_proto::v1::Volume;
use futures::future::try_join_all;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{becomes, percentile, resident_mib};
use crate::{
    controller_process::{Content, Controller, RPC_DEADLINE, VOLUME_BYTES, block},
    fixture::Fixture,
    rights::CONTROLLER_USER,
    snapshots::volume_snapshots,
};

tests! {
    Exclusive, long:
        copies_beside_the_bare_calls,
        a_hundred_snapshots_are_listed_by_pages;
}

/// How often each thing is measured, with the driver and without.
const ROUNDS: usize = 5;

/// The size to which a volume is expanded.
const GROWN: i64 = 2 * VOLUME_BYTES;

/// Volumes, and snapshots of each, of the list.
const LISTED_VOLUMES: usize = 10;
const SNAPSHOTS_OF_EACH: usize = 10;
/// Entries of a page: not a divisor of the whole, so that the last page is short.
const PAGE: i32 = 7;

/// What is measured.
const KINDS: [&str; 4] =
    ["snapshot → ready", "restore → attached", "clone → attached", "expansion → infra capacity"];

/// Times and calls of one kind.
#[derive(Default)]
struct Samples {
    driver: Vec<Duration>,
    bare: Vec<Duration>,
    calls: Vec<usize>,
}

/// Each thing by RPCs of the driver, then the same by calls of the infra API alone, each waited for with a watch.
async fn copies_beside_the_bare_calls(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let source = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    fixture.image_of(&source.volume_id).await?;
    let scene =
        Scene { fixture: &fixture, controller: &controller, machine: &machine, source: &source.volume_id };
    let mut samples: [Samples; 4] = Default::default();
    for round in 0..ROUNDS {
        scene.round(round, &mut samples).await?;
    }
    controller.delete(&source).await.context("delete the source")?;
    for (kind, of_kind) in KINDS.iter().zip(samples) {
        let Samples { mut driver, mut bare, mut calls } = of_kind;
        driver.sort_unstable();
        bare.sort_unstable();
        calls.sort_unstable();
        let (ours, theirs) = (percentile(&driver, 0.5), percentile(&bare, 0.5));
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        fixture.figures.add(
            kind,
            format!(
                "p50 {} ms, {ratio:.2} × the bare calls; {} infra calls",
                ours.as_millis(),
                calls.get(ROUNDS / 2).copied().unwrap_or_default()
            ),
            format!("bare p50 {} ms; goal ≤ 1.1 ×", theirs.as_millis()),
        )?;
    }
    fixture.delete_machine(&machine).await
}

/// What the rounds are about.
struct Scene<'a> {
    fixture: &'a Fixture,
    controller: &'a Controller,
    machine: &'a str,
    source: &'a str,
}

impl Scene<'_> {
    async fn round(&self, round: usize, samples: &mut [Samples; 4]) -> Result<()> {
        let Self { fixture, controller, source, .. } = self;
        let name = |kind: &str| format!("{kind}-{}-{round}", fixture.word);
        let snapshot = name("snapshot");
        let [of_snapshot, of_restore, of_clone, of_growth] = samples;

        self.by_driver(of_snapshot, async {
            while !controller.snapshot(&snapshot, source, RPC_DEADLINE).await?.ready_to_use {}
            Ok(())
        })
        .await?;
        let restored = name("pvc-restored");
        let copy = self
            .by_driver(of_restore, async {
                let copy =
                    controller.create_from(Content::Snapshot(&snapshot), &restored, VOLUME_BYTES).await?;
                controller.publish(&copy, self.machine).await?;
                Ok(copy)
            })
            .await?;
        let cloned = name("pvc-cloned");
        let clone = self
            .by_driver(of_clone, async {
                let clone = controller.create_from(Content::Volume(source), &cloned, VOLUME_BYTES).await?;
                controller.publish(&clone, self.machine).await?;
                Ok(clone)
            })
            .await?;
        self.by_driver(of_growth, async {
            controller.expand(&restored, GROWN, RPC_DEADLINE).await?;
            Ok(())
        })
        .await?;

        let bare = self.bare(&snapshot, [&copy, &clone]);
        bare.measure([of_snapshot, of_restore, of_clone, of_growth], round).await?;

        for volume in [copy, clone] {
            controller.discard(&volume, self.machine).await?;
        }
        controller.delete_snapshot(&snapshot).await?;
        let snapshots = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
        until_gone(&snapshots, &snapshot, "VolumeSnapshot", Deadline::PodStart).await
    }

    /// Measures work of the driver: its time, and the calls of its account meanwhile.
    async fn by_driver<T>(&self, samples: &mut Samples, work: impl Future<Output = Result<T>>) -> Result<T> {
        let path = self.fixture.run.join("logs").join("infra-audit.log");
        let log = AuditLog::at(path, self.fixture.infra.clone());
        let mark = log.mark().await?;
        let began = Instant::now();
        let done = work.await?;
        samples.driver.push(began.elapsed());
        samples.calls.push(log.since(mark).await?.of_user(CONTROLLER_USER).len());
        Ok(done)
    }

    const fn bare<'a>(&'a self, snapshot: &'a str, copies: [&'a Volume; 2]) -> Bare<'a> {
        Bare { scene: self, snapshot, copies }
    }
}

/// The calls without a driver. The objects are those that the driver made, under other names.
struct Bare<'a> {
    scene: &'a Scene<'a>,
    snapshot: &'a str,
    copies: [&'a Volume; 2],
}

impl Bare<'_> {
    async fn measure(&self, samples: [&mut Samples; 4], round: usize) -> Result<()> {
        let [of_snapshot, of_restore, of_clone, of_growth] = samples;
        let fixture = self.scene.fixture;
        let infra = &fixture.infra;
        let snapshots = volume_snapshots(infra, HCP_NAMESPACE);
        let volumes = data_volumes(infra, HCP_NAMESPACE);
        let claims = infra_claims(infra);
        let snapshot = format!("bare-snapshot-{}-{round}", fixture.word);
        let like = snapshots.get(self.snapshot).await?;
        let began = Instant::now();
        make_like(&snapshots, like, &snapshot).await?;
        becomes(&snapshots, &snapshot, |object| object.data["status"]["readyToUse"] == true).await?;
        of_snapshot.bare.push(began.elapsed());

        let mut made = Vec::new();
        for ((volume, kind), samples) in
            self.copies.iter().zip(["restored", "cloned"]).zip([of_restore, of_clone])
        {
            let name = format!("bare-{kind}-{}-{round}", fixture.word);
            let like = volumes.get(&volume.volume_id).await?;
            let began = Instant::now();
            let uid = make_like(&volumes, like, &name).await?;
            becomes(&volumes, &name, |object| object.data["status"]["phase"] == "Succeeded").await?;
            self.plug(&name, &uid).await?;
            samples.bare.push(began.elapsed());
            made.push(name);
        }
        let grown = made.first().context("no volume was made")?;
        let began = Instant::now();
        let request = json!({"spec": {"resources": {"requests": {"storage": GROWN.to_string()}}}});
        claims.patch(grown, &PatchParams::default(), &Patch::Merge(request)).await?;
        becomes(&claims, grown, |claim| {
            claim.data["status"]["capacity"]["storage"].as_str() == Some(&format!("{}Mi", GROWN >> 20))
        })
        .await?;
        of_growth.bare.push(began.elapsed());

        for name in &made {
            self.call("removevolume", &json!({"name": name})).await?;
            let instances = virtual_machine_instances(infra, HCP_NAMESPACE);
            becomes(&instances, self.scene.machine, |object| status_of(object, name).is_none()).await?;
            volumes.delete(name, &kube::api::DeleteParams::default()).await?;
            until_gone(&volumes, name, "DataVolume", Deadline::PodStart).await?;
        }
        snapshots.delete(&snapshot, &kube::api::DeleteParams::default()).await?;
        until_gone(&snapshots, &snapshot, "VolumeSnapshot", Deadline::PodStart).await
    }

    /// Hotplugs a DataVolume and waits until the instance shows it Ready.
    async fn plug(&self, name: &str, uid: &str) -> Result<()> {
        let body = json!({
            "name": name,
            "disk": {"name": name, "serial": uid, "disk": {"bus": "scsi"}},
            "volumeSource": {"dataVolume": {"name": name, "hotpluggable": true}},
        });
        self.call("addvolume", &body).await?;
        let instances = virtual_machine_instances(&self.scene.fixture.infra, HCP_NAMESPACE);
        becomes(&instances, self.scene.machine, |object| {
            status_of(object, name).is_some_and(|status| status["phase"] == "Ready")
        })
        .await
    }

    async fn call(&self, verb: &str, body: &Value) -> Result<()> {
        super::hotplug_call(&self.scene.fixture.infra, self.scene.machine, verb, body).await
    }
}

/// Makes an object with the labels and the spec of another; its UID.
async fn make_like(api: &Api<DynamicObject>, like: DynamicObject, name: &str) -> Result<String> {
    let mut object = DynamicObject {
        metadata: kube::api::ObjectMeta {
            name: Some(name.to_owned()),
            labels: like.metadata.labels,
            annotations: like.metadata.annotations,
            ..kube::api::ObjectMeta::default()
        },
        ..like
    };
    if let Some(data) = object.data.as_object_mut() {
        data.remove("status");
    }
    let made = api.create(&PostParams::default(), &object).await?;
    made.uid().context("an object without a UID")
}

/// The state of a volume in an instance's status.
fn status_of<'a>(instance: &'a DynamicObject, volume: &str) -> Option<&'a Value> {
    let all = instance.data["status"]["volumeStatus"].as_array()?;
    all.iter().find(|status| status["name"] == volume)
}

fn infra_claims(infra: &kube::Client) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::PersistentVolumeClaim>(&());
    Api::namespaced_with(infra.clone(), HCP_NAMESPACE, &resource)
}

/// Snapshots of several volumes, listed by pages: each is there once. The memory that the driver has after it is reported.
async fn a_hundred_snapshots_are_listed_by_pages(fixture: Fixture) -> Result<()> {
    let controller = Controller::of_own_guest(&fixture, "a").await?;
    let idle = resident_mib(&controller).await?;
    let names: Vec<String> =
        (0..LISTED_VOLUMES).map(|index| format!("pvc-{}-{index}", fixture.word)).collect();
    let volumes = try_join_all(names.iter().map(|name| controller.create(name, block()))).await?;
    for volume in &volumes {
        fixture.image_of(&volume.volume_id).await?;
    }
    let mut snapshots = Vec::new();
    for number in 0..SNAPSHOTS_OF_EACH {
        let taken = volumes.iter().map(|volume| {
            let (controller, name) = (&controller, format!("snapshot-{}-{number}", volume.volume_id));
            async move {
                while !controller.snapshot(&name, &volume.volume_id, RPC_DEADLINE).await?.ready_to_use {}
                anyhow::Ok(name)
            }
        });
        snapshots.extend(try_join_all(taken).await?);
    }

    let began = Instant::now();
    let mut listed = Vec::new();
    let (mut token, mut pages) = (String::new(), 0);
    loop {
        let (mut ids, next) = controller.page_of_snapshots(PAGE, &token).await?;
        listed.append(&mut ids);
        pages += 1;
        token = next;
        if token.is_empty() {
            break;
        }
    }
    let took = began.elapsed();
    let mut expected = snapshots.clone();
    expected.sort();
    listed.sort();
    ensure!(listed == expected, "expected each of {} snapshots once, saw {}", expected.len(), listed.len());
    let loaded = resident_mib(&controller).await?;
    fixture.figures.add(
        &format!("{} snapshots listed by pages of {PAGE}", snapshots.len()),
        format!("{pages} pages in {} ms", took.as_millis()),
        format!("resident memory {idle:.1} MiB idle, {loaded:.1} MiB after it"),
    )?;

    try_join_all(snapshots.iter().map(|name| controller.delete_snapshot(name))).await?;
    let infra = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    for name in &snapshots {
        until_gone(&infra, name, "VolumeSnapshot", Deadline::PodStart).await?;
    }
    for volume in &volumes {
        controller.delete(volume).await?;
    }
    Ok(())
}
