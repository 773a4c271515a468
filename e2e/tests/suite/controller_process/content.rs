//! The RPCs about a volume's content and size: snapshots, volumes that are made from a snapshot or from another volume, expansion.

use std::time::Duration;

use csi_proto::v1::{
    CapacityRange, ControllerExpandVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest,
    DeleteSnapshotRequest, ListSnapshotsRequest, Snapshot, Volume, VolumeContentSource,
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use tonic::Status;

use super::{Controller, RPC_DEADLINE, block, timed};

/// What a volume is made from.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    Snapshot(&'a str),
    Volume(&'a str),
}

impl Controller {
    /// `CreateSnapshot`.
    pub async fn snapshot(&self, name: &str, volume_id: &str, within: Duration) -> Result<Snapshot, Status> {
        self.snapshot_with(&[], name, volume_id, within).await
    }

    /// The same with parameters of a guest `VolumeSnapshotClass`.
    pub async fn snapshot_with(
        &self,
        parameters: &[(&str, &str)],
        name: &str,
        volume_id: &str,
        within: Duration,
    ) -> Result<Snapshot, Status> {
        let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        let request = CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: volume_id.to_owned(),
            parameters: parameters.iter().map(owned).collect(),
            ..CreateSnapshotRequest::default()
        };
        let answer = self.client.clone().create_snapshot(timed(request, within)).await?;
        answer.into_inner().snapshot.ok_or_else(|| Status::internal("CreateSnapshot answered no snapshot"))
    }

    /// `DeleteSnapshot`.
    pub async fn delete_snapshot(&self, snapshot_id: &str) -> Result<(), Status> {
        self.delete_snapshot_within(snapshot_id, RPC_DEADLINE).await
    }

    /// `DeleteSnapshot` with a deadline of the test's choice.
    pub async fn delete_snapshot_within(&self, snapshot_id: &str, within: Duration) -> Result<(), Status> {
        let request =
            DeleteSnapshotRequest { snapshot_id: snapshot_id.to_owned(), ..DeleteSnapshotRequest::default() };
        self.client.clone().delete_snapshot(timed(request, within)).await.map(drop)
    }

    /// `ListSnapshots` of one volume: their ids.
    pub async fn snapshots_of(&self, volume_id: &str, within: Duration) -> Result<Vec<String>, Status> {
        let request = ListSnapshotsRequest {
            source_volume_id: volume_id.to_owned(),
            ..ListSnapshotsRequest::default()
        };
        let answer = self.client.clone().list_snapshots(timed(request, within)).await?;
        let entries = answer.into_inner().entries.into_iter();
        Ok(entries.filter_map(|entry| Some(entry.snapshot?.snapshot_id)).collect())
    }

    /// One page of `ListSnapshots`: ids, and the token of the next page, empty at the end.
    pub async fn page_of_snapshots(
        &self,
        entries: i32,
        token: &str,
    ) -> Result<(Vec<String>, String), Status> {
        let request = ListSnapshotsRequest {
            max_entries: entries,
            starting_token: token.to_owned(),
            ..ListSnapshotsRequest::default()
        };
        let page = self.client.clone().list_snapshots(timed(request, RPC_DEADLINE)).await?.into_inner();
        let ids = page.entries.into_iter().filter_map(|entry| Some(entry.snapshot?.snapshot_id)).collect();
        Ok((ids, page.next_token))
    }

    /// `ControllerExpandVolume`, block; the size that it answers.
    pub async fn expand(&self, volume_id: &str, bytes: i64, within: Duration) -> Result<i64, Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: volume_id.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capability: Some(block()),
            ..ControllerExpandVolumeRequest::default()
        };
        let answer = self.client.clone().controller_expand_volume(timed(request, within)).await?;
        Ok(answer.into_inner().capacity_bytes)
    }

    /// CreateVolume, block, of so many bytes, with a content.
    pub async fn create_from(&self, content: Content<'_>, name: &str, bytes: i64) -> Result<Volume, Status> {
        self.create_from_within(content, name, bytes, &[], RPC_DEADLINE).await
    }

    /// The same with parameters of a StorageClass, and a deadline of the test's choice.
    pub async fn create_from_within(
        &self,
        content: Content<'_>,
        name: &str,
        bytes: i64,
        parameters: &[(&str, &str)],
        within: Duration,
    ) -> Result<Volume, Status> {
        let kind = match content {
            Content::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() }),
            Content::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_owned() }),
        };
        let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![block()],
            volume_content_source: Some(VolumeContentSource { r#type: Some(kind) }),
            parameters: parameters.iter().map(owned).collect(),
            ..CreateVolumeRequest::default()
        };
        let answer = self.client.clone().create_volume(timed(request, within)).await?;
        answer.into_inner().volume.ok_or_else(|| Status::internal("CreateVolume answered no volume"))
    }
}
