//! What exists, as the answers of RPCs show it.

use std::collections::HashMap;

use csi_proto::v1 as csi;
use infra::{Owned, VolumeSnapshot};

use crate::{
    create::Created,
    keys::{BUS, FILESYSTEM, SERIAL},
    request, snapshot,
};

/// The volume of a `CreateVolume`. The context says nothing of its content: whether a disk may be formatted, the node role
/// finds out from the disk alone.
pub(crate) fn volume_on_wire(created: &Created, wanted: &request::Create) -> csi::Volume {
    let metadata = &created.volume.metadata;
    let mut volume_context = HashMap::from([
        (BUS.to_owned(), wanted.bus.as_str().to_owned()),
        (SERIAL.to_owned(), metadata.uid.clone()),
    ]);
    volume_context.extend(wanted.filesystem.clone().map(|kind| (FILESYSTEM.to_owned(), kind)));
    csi::Volume {
        volume_id: metadata.name.clone(),
        capacity_bytes: bytes(created.size),
        volume_context,
        content_source: wanted.source.as_ref().map(request::Source::on_wire),
        ..Default::default()
    }
}

/// A snapshot of ours.
pub(crate) fn snapshot_on_wire(taken: &Owned<VolumeSnapshot>) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: bytes(snapshot::guest_size(taken).unwrap_or_default()),
        snapshot_id: taken.metadata.name.clone(),
        source_volume_id: taken.claim.clone().unwrap_or_default(),
        creation_time: snapshot::taken_at(taken).and_then(|time| time.parse().ok()),
        ready_to_use: taken.is_ready,
        ..Default::default()
    }
}

fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
