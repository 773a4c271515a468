//! Another guest's volumes, VM and snapshot, which must stay.

use anyhow::{Context, Result};
use bench::scenario::{Deadline, HCP_NAMESPACE, start_labelled_machine, until};
use csi_proto::v1::{CreateSnapshotRequest, Volume, controller_client::ControllerClient};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use serde_json::json;
use tonic::transport::Channel;

use super::record::Record;
use crate::{
    controller_process::{Controller, INFRA_LABELS, block, timed},
    fixture::{EMPTY_IMAGE, Fixture},
    snapshots::volume_snapshots,
};

/// What the names of all that is recorded contain.
const THEIRS: &str = "theirs";

/// What another guest has, and its driver.
pub struct OtherVolumes {
    /// Its volume that its VM has.
    pub attached: Volume,
    /// Its volume that no VM has.
    pub free: Volume,
    /// The snapshot of that.
    pub snapshot: String,
    /// Its VM.
    pub machine: String,
    driver: Controller,
    record: Record,
}

impl OtherVolumes {
    /// Makes and records them.
    pub async fn new(fixture: &Fixture) -> Result<Self> {
        let driver = Controller::of_own_guest(fixture, THEIRS).await?;
        let machine = format!("{}-{THEIRS}", fixture.word);
        let (key, _) = INFRA_LABELS.split_once('=').context("a label")?;
        let labels = json!({ key: "another" });
        start_labelled_machine(&fixture.infra, HCP_NAMESPACE, &machine, EMPTY_IMAGE, &labels).await?;
        let name = |what: &str| format!("pvc-{}-{THEIRS}-{what}", fixture.word);
        let attached = driver.create(&name("a"), block()).await.context("another guest's volume")?;
        let free = driver.create(&name("f"), block()).await.context("another guest's second volume")?;
        driver.publish(&attached, &machine).await.context("attach another guest's volume")?;
        for volume in [&attached, &free] {
            fixture.image_of(&volume.volume_id).await?;
        }
        let request = CreateSnapshotRequest {
            source_volume_id: free.volume_id.clone(),
            name: format!("snapshot-{}-{THEIRS}", fixture.word),
            ..CreateSnapshotRequest::default()
        };
        let answer = client(&driver).create_snapshot(timed(request, super::volumes::DEADLINE)).await;
        let snapshot = answer.context("another guest's snapshot")?.into_inner().snapshot;
        let snapshot = snapshot.context("no snapshot in the answer")?.snapshot_id;
        is_at_rest(fixture, &snapshot, &free.volume_id).await?;
        let record =
            Record::of_volumes(&fixture.infra, HCP_NAMESPACE, &format!("{}-{THEIRS}", fixture.word)).await?;
        Ok(Self { attached, free, snapshot, machine, driver, record })
    }

    /// Checks that all of it is as it was.
    pub async fn ensure_unchanged(&self) -> Result<()> {
        self.record.ensure_unchanged().await
    }

    /// Its own guest still has the use of it, and deletes it.
    pub async fn end(self, fixture: &Fixture) -> Result<()> {
        self.driver.publish(&self.attached, &self.machine).await.context("it is attached as before")?;
        self.driver.delete_snapshot(&self.snapshot).await.context("delete the other guest's snapshot")?;
        self.driver.delete(&self.free).await.context("delete the other guest's volume")?;
        self.driver.discard(&self.attached, &self.machine).await?;
        fixture.delete_machine(&self.machine).await
    }
}

/// Waits until infra's own controllers have taken the snapshot, and hold its source no more.
async fn is_at_rest(fixture: &Fixture, snapshot: &str, source: &str) -> Result<()> {
    let snapshots = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    until("another guest's snapshot to be taken", Deadline::PodStart, async || {
        let status = snapshots.get(snapshot).await?.data["status"].clone();
        let finalizers = claims.get(source).await?.metadata.finalizers.unwrap_or_default();
        let is_held = finalizers.iter().any(|finalizer| finalizer.starts_with("snapshot.storage."));
        let rests = status["readyToUse"] == true && !is_held;
        Ok(if rests { Ok(()) } else { Err(format!("{status}, its source has {finalizers:?}")) })
    })
    .await
}

/// The CSI client of a driver.
pub fn client(driver: &Controller) -> ControllerClient<Channel> {
    ControllerClient::new(driver.channel())
}
