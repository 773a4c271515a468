//! A guest volume in the infra cluster: its name, its object, and whether an existing object is the requested one.

use std::collections::BTreeMap;

use infra::{Claim, DataVolume, DataVolumeSource, NewDataVolume, NewSource, ObjectName, is_dns_label};
use sha2::{Digest, Sha256};

use crate::{
    content::Size,
    keys::{GUEST_SIZE_ANNOTATION, NAME_ANNOTATION, SOURCE_VOLUME_ANNOTATION},
    request::{Create, Sharing, Source},
};

/// Access mode of an infra volume that many nodes share.
const READ_WRITE_MANY: &str = "ReadWriteMany";
/// Bytes of the hash in a name: with 128 bits no two names collide in the life of a cluster.
const HASH_BYTES: usize = 16;
/// `status.phase` of a `DataVolume` that will not become a disk.
const FAILED: &str = "Failed";
/// `status.phase` of a `DataVolume` whose disk has its content.
const SUCCEEDED: &str = "Succeeded";
/// The source of a volume that this driver does not make.
const NOT_OURS: &str = "not made by this driver";

/// An existing volume or snapshot is not the requested one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name} exists with another {what}: {has}, asked for {asked}")]
pub struct Incompatible {
    kind: &'static str,
    name: String,
    what: &'static str,
    has: String,
    asked: String,
}

impl Incompatible {
    pub(crate) fn of_snapshot(name: &str, what: &'static str, has: &str, asked: &str) -> Self {
        let (name, has, asked) = (name.to_owned(), has.to_owned(), asked.to_owned());
        Self { kind: "snapshot", name, what, has, asked }
    }
}

/// The object name of a volume or snapshot: the CO's own where it is a DNS label that starts with `<prefix>-`, else
/// `<prefix>-<hash>`.
pub(crate) fn object_name(name: &str, prefix: &str) -> ObjectName {
    let fits = is_dns_label(name) && name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-'));
    if fits && let Some(name) = ObjectName::parse(name) {
        return name;
    }
    let digest = Sha256::digest(name.as_bytes());
    let hash = digest.iter().take(HASH_BYTES).fold(0_u128, |hash, byte| hash << 8 | u128::from(*byte));
    ObjectName::parse(&format!("{prefix}-{hash:032x}")).expect("prefix is a label and a hash is hexadecimal")
}

/// The object for a request.
pub(crate) fn desired(request: &Create, prefix: &str, source: NewSource, size: Size) -> NewDataVolume {
    let name = object_name(&request.name, prefix);
    let mut annotations = BTreeMap::new();
    if name.as_str() != request.name {
        annotations.insert(NAME_ANNOTATION.to_owned(), request.name.clone());
    }
    if size.guest != size.made {
        annotations.insert(GUEST_SIZE_ANNOTATION.to_owned(), size.guest.to_string());
    }
    if let (Some(Source::Volume(id)), NewSource::Snapshot(_)) = (&request.source, &source) {
        annotations.insert(SOURCE_VOLUME_ANNOTATION.to_owned(), id.clone());
    }
    NewDataVolume {
        name,
        annotations,
        size: size.made,
        storage_class: request.storage_class.clone(),
        access_modes: access_modes(request.sharing),
        source,
    }
}

/// Whether an existing object satisfies the request; returns its size in bytes, as the guest knows it.
pub(crate) fn compatible(existing: &DataVolume, request: &Create) -> Result<u64, Incompatible> {
    let differs = |what, has: String, asked: String| {
        Err(Incompatible { kind: "volume", name: existing.metadata.name.clone(), what, has, asked })
    };
    let original = existing.metadata.annotations.get(NAME_ANNOTATION);
    let original = original.map_or(existing.metadata.name.as_str(), String::as_str);
    if original != request.name {
        return differs("original name", original.to_owned(), request.name.clone());
    }
    let source = source_of(existing);
    if source.as_ref() != Ok(&request.source) {
        let text = |source: &Option<Source>| match source {
            None => "a blank disk".to_owned(),
            Some(Source::Snapshot(id)) => format!("snapshot {id}"),
            Some(Source::Volume(id)) => format!("volume {id}"),
        };
        let has = source.as_ref().map_or_else(|unknown| (*unknown).to_owned(), text);
        return differs("source", has, text(&request.source));
    }
    let modes = access_modes(request.sharing);
    if existing.access_modes != modes {
        let asked = format!("{modes:?}");
        return differs("access mode", format!("{:?}", existing.access_modes), asked);
    }
    if existing.storage_class != request.storage_class {
        let text = |class: &Option<String>| class.clone().unwrap_or_else(|| "infra's default".to_owned());
        return differs("infra storage class", text(&existing.storage_class), text(&request.storage_class));
    }
    match guest_size(existing) {
        Some(size) if request.capacity.admits(size) => Ok(size),
        size => {
            let has = size.map_or("unreadable".into(), |size| format!("{size} bytes"));
            differs("size", has, format!("{:?}", request.capacity))
        }
    }
}

/// Whether the infra volume was made for many nodes.
pub(crate) fn is_shared(volume: &DataVolume) -> bool {
    volume.access_modes.iter().any(|mode| mode == READ_WRITE_MANY)
}

/// What the guest asked to fill the volume with (`None` = nothing); an error where no guest can have asked for it.
fn source_of(existing: &DataVolume) -> Result<Option<Source>, &'static str> {
    match &existing.source {
        _ if !existing.uses_storage => Err(NOT_OURS),
        DataVolumeSource::Blank => Ok(None),
        DataVolumeSource::Snapshot(name) => {
            let cloned = existing.metadata.annotations.get(SOURCE_VOLUME_ANNOTATION);
            let snapshot = || Source::Snapshot(name.clone());
            Ok(Some(cloned.cloned().map_or_else(snapshot, Source::Volume)))
        }
        DataVolumeSource::Claim(name) => Ok(Some(Source::Volume(name.clone()))),
        DataVolumeSource::Other => Err(NOT_OURS),
    }
}

/// The size in bytes that the guest knew when the volume was made.
pub(crate) fn guest_size(volume: &DataVolume) -> Option<u64> {
    let annotated = volume.metadata.annotations.get(GUEST_SIZE_ANNOTATION);
    annotated.and_then(|size| size.parse().ok()).or(volume.size)
}

/// The size in bytes that the guest knows now. A block device has been expanded where its claim requests more than CDI
/// did; a file's claim always requests more, so there an expansion does not show.
pub(crate) fn guest_size_with(volume: &DataVolume, claim: &Claim) -> Option<u64> {
    let expanded = claim.requested().filter(|now| claim.is_block() && Some(*now) > volume.size);
    expanded.or_else(|| guest_size(volume))
}

/// Whether its disk has its content.
pub(crate) fn is_populated(volume: &DataVolume) -> bool {
    volume.phase == SUCCEEDED
}

/// Whether its disk is made only when a VM uses it (phases of CDI for WaitForFirstConsumer).
pub(crate) fn waits_for_consumer(volume: &DataVolume) -> bool {
    matches!(volume.phase.as_str(), "WaitForFirstConsumer" | "PendingPopulation")
}

/// Whether CDI gave up on it.
pub(crate) fn has_failed(volume: &DataVolume) -> bool {
    volume.phase == FAILED
}

fn access_modes(sharing: Sharing) -> Vec<String> {
    match sharing {
        Sharing::OneNode => Vec::new(),
        Sharing::ManyNodes => vec![READ_WRITE_MANY.to_owned()],
    }
}

#[cfg(test)]
mod tests;
