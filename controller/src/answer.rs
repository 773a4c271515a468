//! What exists, as the answers of RPCs show it.

use std::collections::HashMap;

use csi_proto::{Timestamp, v1 as csi};
use infra::{DataVolume, Owned, VolumeSnapshot};

use crate::{
    create::Created,
    keys::{ALLOW_FORMAT_NONZERO, BLANK_SINCE, BUS, COPIED, FILESYSTEM, SERIAL, TRUE},
    request, snapshot,
};

/// The volume of a `CreateVolume`. That a volume was made blank never permits to format it: the node role finds out from the
/// disk alone whether it may, and refuses a filesystem that is an earlier owner's. Nothing else tells these from the
/// volume's own. Nor does it format a copy.
pub(crate) fn volume_on_wire(created: &Created, wanted: &request::Create) -> csi::Volume {
    let metadata = &created.volume.metadata;
    let mut volume_context = HashMap::from([
        (BUS.to_owned(), wanted.bus.as_str().to_owned()),
        (SERIAL.to_owned(), metadata.uid.clone()),
    ]);
    volume_context.extend(wanted.filesystem.clone().map(|kind| (FILESYSTEM.to_owned(), kind)));
    if wanted.source.is_none() && wanted.holds_filesystem {
        volume_context.extend(made_at(&created.volume).map(|at| (BLANK_SINCE.to_owned(), at.to_string())));
        if wanted.format_nonzero {
            volume_context.insert(ALLOW_FORMAT_NONZERO.to_owned(), TRUE.to_owned());
        }
    }
    if wanted.source.is_some() && wanted.holds_filesystem {
        volume_context.insert(COPIED.to_owned(), TRUE.to_owned());
    }
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

/// When a volume was made, in seconds since 1970.
fn made_at(volume: &DataVolume) -> Option<u64> {
    let made: Timestamp = volume.metadata.creation_timestamp.as_deref()?.parse().ok()?;
    u64::try_from(made.seconds).ok()
}

fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
