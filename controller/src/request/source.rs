//! What a new volume is filled with.

use csi_proto::v1::{VolumeContentSource, volume_content_source};

use super::{Invalid, required};

/// The source of a volume's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A snapshot, by its id.
    Snapshot(String),
    /// Another volume, by its id.
    Volume(String),
}

/// How a volume is cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloneMethod {
    /// CDI clones the claim.
    Claim,
    /// CDI restores a temporary snapshot.
    Snapshot,
    /// The infra storage driver clones the claim.
    DataSourceRef,
}

impl CloneMethod {
    pub(super) fn parse(text: &str) -> Result<Self, Invalid> {
        match text {
            "pvc" => Ok(Self::Claim),
            "snapshot" => Ok(Self::Snapshot),
            "dataSourceRef" => Ok(Self::DataSourceRef),
            other => Err(Invalid::CloneMethod(other.to_owned())),
        }
    }
}

impl Source {
    pub(super) fn read(source: &VolumeContentSource) -> Result<Self, Invalid> {
        match &source.r#type {
            Some(volume_content_source::Type::Snapshot(snapshot)) => {
                required("snapshot id", &snapshot.snapshot_id).map(Self::Snapshot)
            }
            Some(volume_content_source::Type::Volume(volume)) => {
                required("source volume id", &volume.volume_id).map(Self::Volume)
            }
            None => Err(Invalid::Missing("content source")),
        }
    }

    /// As the answer repeats it.
    pub(crate) fn on_wire(&self) -> VolumeContentSource {
        let source = match self {
            Self::Snapshot(id) => {
                volume_content_source::Type::Snapshot(volume_content_source::SnapshotSource {
                    snapshot_id: id.clone(),
                })
            }
            Self::Volume(id) => volume_content_source::Type::Volume(volume_content_source::VolumeSource {
                volume_id: id.clone(),
            }),
        };
        VolumeContentSource { r#type: Some(source) }
    }
}
