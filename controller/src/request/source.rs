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

impl Source {
    pub(super) fn read(source: &VolumeContentSource) -> Result<Self, Invalid> {
        match &source.r#type {
            Some(volume_content_source::Type::Snapshot(snapshot)) => {
                required("snapshot id", &snapshot.snapshot_id).map(Self::Snapshot)
            }
            Some(volume_content_source::Type::Volume(_)) => Err(Invalid::ContentSource),
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
