//! The RPCs about a volume's content: snapshots, and volumes that are made from a snapshot or from another volume.

use csi_proto::v1::{
    CapacityRange, CreateVolumeRequest, DeleteSnapshotRequest, Volume, VolumeContentSource,
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
    /// `DeleteSnapshot`.
    pub async fn delete_snapshot(&self, snapshot_id: &str) -> Result<(), Status> {
        let request =
            DeleteSnapshotRequest { snapshot_id: snapshot_id.to_owned(), ..DeleteSnapshotRequest::default() };
        self.client.clone().delete_snapshot(timed(request, RPC_DEADLINE)).await.map(drop)
    }

    /// CreateVolume, block, of so many bytes, with a content.
    pub async fn create_from(&self, content: Content<'_>, name: &str, bytes: i64) -> Result<Volume, Status> {
        let kind = match content {
            Content::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() }),
            Content::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_owned() }),
        };
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![block()],
            volume_content_source: Some(VolumeContentSource { r#type: Some(kind) }),
            ..CreateVolumeRequest::default()
        };
        let answer = self.client.clone().create_volume(timed(request, RPC_DEADLINE)).await?;
        answer.into_inner().volume.ok_or_else(|| Status::internal("CreateVolume answered no volume"))
    }
}
