//! A shape through the sidecars and kubelet: a claim, a pod that writes, and another on the other worker that reads.

use anyhow::{Context, Result};
use bench::scenario::{
    DEVICE_PATH, Deadline, MOUNT_PATH, PodOnVolume, STORAGE_CLASS, claim, data_volumes, pod, until,
    until_gone,
};
use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, LogParams, ObjectMeta, PostParams},
};

use super::{Shape, WRITTEN};
use crate::fixture::Fixture;

/// The claim's name.
const CLAIM: &str = "claim";

/// The parameter with which a StorageClass chooses the filesystem (external-provisioner's).
const FILESYSTEM_PARAMETER: &str = "csi.storage.k8s.io/fstype";

/// Runs a pod on each worker, one after the other.
pub async fn run(fixture: Fixture, shape: Shape) -> Result<()> {
    let namespace = fixture.guest_namespace().await?;
    let classes: Api<StorageClass> = Api::all(fixture.guest.clone());
    let class = guest_class(&classes, &fixture.word, shape).await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.guest.clone(), &namespace);
    let wanted = claim(CLAIM, &class, shape.volume_mode());
    let volume =
        format!("pvc-{}", claims.create(&PostParams::default(), &wanted).await?.uid().context("no uid")?);

    let workers = fixture.control.workers().await?;
    let (first, last) = (workers.first().context("no worker")?, workers.last().context("no worker")?);
    let pods = Pods {
        fixture: &fixture,
        shape,
        volume: &volume,
        api: Api::namespaced(fixture.guest.clone(), &namespace),
    };
    pods.run("writer", first, &write(&shape)).await?;
    pods.run("reader", last, &read(&shape)).await?;

    claims.delete(CLAIM, &DeleteParams::default()).await?;
    until_gone(&claims, CLAIM, "claim", Deadline::PodStart).await?;
    let infra = data_volumes(&fixture.infra, bench::scenario::HCP_NAMESPACE);
    until_gone(&infra, &volume, "DataVolume", Deadline::PodStart).await?;
    classes.delete(&class, &DeleteParams::default()).await?;
    Ok(())
}

/// A copy of the shipped guest class with the shape's parameters. It binds as the infra class does.
async fn guest_class(classes: &Api<StorageClass>, name: &str, shape: Shape) -> Result<String> {
    let mut class = classes.get(STORAGE_CLASS).await?;
    class.metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    class.volume_binding_mode = Some(shape.infra_class()?.binding.to_owned());
    let parameters = class.parameters.get_or_insert_default();
    parameters.insert("infraStorageClassName".to_owned(), shape.class.to_owned());
    parameters.insert("bus".to_owned(), shape.bus.to_owned());
    if shape.content != "block" {
        parameters.insert(FILESYSTEM_PARAMETER.to_owned(), shape.content.to_owned());
    }
    classes.create(&PostParams::default(), &class).await?;
    Ok(name.to_owned())
}

/// The pods of one claim.
struct Pods<'a> {
    fixture: &'a Fixture,
    shape: Shape,
    volume: &'a str,
    api: Api<Pod>,
}

impl Pods<'_> {
    /// Runs a pod on the claim until it has printed what was written, checks infra and the worker meanwhile, then
    /// deletes it and waits until it is gone.
    async fn run(&self, name: &str, worker: &str, script: &str) -> Result<()> {
        let volume_mode = self.shape.volume_mode();
        let wanted = PodOnVolume { name, claim: CLAIM, node: Some(worker), volume_mode, script };
        self.api.create(&PostParams::default(), &pod(&wanted)).await?;
        until(&format!("the output of the pod {name}"), Deadline::PodStart, async || {
            let phase = self.api.get(name).await?.status.and_then(|status| status.phase).unwrap_or_default();
            if phase != "Running" {
                return Ok(Err(format!("the pod is {phase}")));
            }
            let log = self.api.logs(name, &LogParams::default()).await?;
            Ok(if log.trim() == WRITTEN { Ok(()) } else { Err(format!("it printed {log:?}")) })
        })
        .await?;
        let infra = data_volumes(&self.fixture.infra, bench::scenario::HCP_NAMESPACE);
        let serial = infra.get(self.volume).await?.uid().context("a DataVolume without a uid")?;
        self.shape.check_infra(self.fixture, self.volume).await?;
        self.shape.check_disk(self.fixture, worker, &serial).await?;
        self.api.delete(name, &DeleteParams::default()).await?;
        until_gone(&self.api, name, "pod", Deadline::PodStart).await
    }
}

fn write(shape: &Shape) -> String {
    match shape.content {
        "block" => format!("printf {WRITTEN} | dd of={DEVICE_PATH} conv=fsync 2>/dev/null; echo {WRITTEN}"),
        content => format!(
            "{}; echo {WRITTEN} > {MOUNT_PATH}/file; sync; cat {MOUNT_PATH}/file",
            mounted_as(content)
        ),
    }
}

fn read(shape: &Shape) -> String {
    match shape.content {
        // The runtime logs whole lines.
        "block" => format!("dd if={DEVICE_PATH} bs={} count=1 2>/dev/null; echo", WRITTEN.len()),
        content => format!("{}; cat {MOUNT_PATH}/file", mounted_as(content)),
    }
}

/// Ends the pod's script unless the volume is mounted as the filesystem that was asked for.
fn mounted_as(content: &str) -> String {
    format!("grep -q ' {MOUNT_PATH} {content} ' /proc/mounts")
}
