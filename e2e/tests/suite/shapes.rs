//! Volumes of other shapes than the demo's, through kubelet and the real sidecars.

use anyhow::{Context, Result};
use bench::scenario::{DEVICE_PATH, Deadline, PodOnVolume, STORAGE_CLASS, claim, pod, until, until_gone};
use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api,
    api::{DeleteParams, LogParams, PostParams},
};

use crate::fixture::Fixture;

/// The infra class that provisions only when a VM wants the volume (`cluster::storage_classes`).
const INFRA_CLASS: &str = "block-wffc";

/// A raw block volume on an infra class that waits for its first consumer: publish plugs a volume that is not there yet,
/// and population is part of it. A second pod on the other worker reads what the first wrote on the device.
pub async fn block_on_wait_for_first_consumer(fixture: Fixture) -> Result<()> {
    let namespace = fixture.guest_namespace().await?;
    let class = waiting_class(&fixture).await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.guest.clone(), &namespace);
    claims.create(&PostParams::default(), &claim("claim", &class, "Block")).await?;

    let workers = fixture.control.workers().await?;
    let (first, last) = (workers.first().context("no worker")?, workers.last().context("no worker")?);
    let write = format!("echo kept | dd of={DEVICE_PATH} conv=fsync 2>/dev/null; echo written");
    run_pod(&fixture, &namespace, "writer", first, &write, "written").await?;
    let read = format!("dd if={DEVICE_PATH} bs=5 count=1 2>/dev/null");
    run_pod(&fixture, &namespace, "reader", last, &read, "kept").await?;

    claims.delete("claim", &DeleteParams::default()).await?;
    until_gone(&claims, "claim", "claim", Deadline::PodStart).await?;
    let classes: Api<StorageClass> = Api::all(fixture.guest.clone());
    classes.delete(&class, &DeleteParams::default()).await?;
    Ok(())
}

/// A copy of the shipped guest class that names the waiting infra class.
async fn waiting_class(fixture: &Fixture) -> Result<String> {
    let classes: Api<StorageClass> = Api::all(fixture.guest.clone());
    let mut class = classes.get(STORAGE_CLASS).await?;
    class.metadata = kube::api::ObjectMeta { name: Some(fixture.word.clone()), ..Default::default() };
    class
        .parameters
        .get_or_insert_default()
        .insert("infraStorageClassName".to_owned(), INFRA_CLASS.to_owned());
    classes.create(&PostParams::default(), &class).await?;
    Ok(fixture.word.clone())
}

/// Runs a pod on the claim until it has printed `expected`, then deletes it and waits until it is gone.
async fn run_pod(
    fixture: &Fixture,
    namespace: &str,
    name: &str,
    worker: &str,
    script: &str,
    expected: &str,
) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(fixture.guest.clone(), namespace);
    let wanted = PodOnVolume { name, claim: "claim", node: Some(worker), volume_mode: "Block", script };
    pods.create(&PostParams::default(), &pod(&wanted)).await?;
    until(&format!("the output of {name}"), Deadline::PodStart, async || {
        let phase = pods.get(name).await?.status.and_then(|status| status.phase).unwrap_or_default();
        if phase != "Running" {
            return Ok(Err(format!("the pod is {phase}")));
        }
        let log = pods.logs(name, &LogParams::default()).await?;
        Ok(if log.trim() == expected { Ok(()) } else { Err(format!("it printed {log:?}")) })
    })
    .await?;
    pods.delete(name, &DeleteParams::default()).await?;
    until_gone(&pods, name, "pod", Deadline::PodStart).await
}
