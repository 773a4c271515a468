//! A guest volume in the infra cluster: its name, its object, and whether an existing object is the requested one.

use std::collections::BTreeMap;

use infra::{DataVolume, DataVolumeSource, NewDataVolume, ObjectName, is_dns_label};
use sha2::{Digest, Sha256};

use crate::{
    keys::NAME_ANNOTATION,
    request::{Create, Sharing},
};

/// Access mode of an infra volume that many nodes share.
const READ_WRITE_MANY: &str = "ReadWriteMany";
/// Bytes of the hash in a name: with 128 bits no two names collide in the life of a cluster.
const HASH_BYTES: usize = 16;
/// `status.phase` of a `DataVolume` that will not become a disk.
const FAILED: &str = "Failed";

/// An existing volume is not the requested one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("volume {name} exists with another {what}: {has}, asked for {asked}")]
pub struct Incompatible {
    name: String,
    what: &'static str,
    has: String,
    asked: String,
}

/// The object name of a volume: the CO's own where it is a DNS label that starts with `<prefix>-`, else
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
pub(crate) fn desired(request: &Create, prefix: &str) -> NewDataVolume {
    let name = object_name(&request.name, prefix);
    let annotations = if name.as_str() == request.name {
        BTreeMap::new()
    } else {
        BTreeMap::from([(NAME_ANNOTATION.to_owned(), request.name.clone())])
    };
    NewDataVolume {
        name,
        annotations,
        size: request.capacity.size,
        storage_class: request.storage_class.clone(),
        access_modes: access_modes(request.sharing),
    }
}

/// Whether an existing object satisfies the request; returns its size in bytes.
pub(crate) fn compatible(
    existing: &DataVolume,
    request: &Create,
    desired: &NewDataVolume,
) -> Result<u64, Incompatible> {
    let differs = |what, has: String, asked: String| {
        Err(Incompatible { name: desired.name.to_string(), what, has, asked })
    };
    let original = existing.metadata.annotations.get(NAME_ANNOTATION);
    let original = original.map_or(existing.metadata.name.as_str(), String::as_str);
    if original != request.name {
        return differs("original name", original.to_owned(), request.name.clone());
    }
    if existing.source != DataVolumeSource::Blank || !existing.uses_storage {
        return differs("source", "not made by this driver".into(), "a blank disk".into());
    }
    if existing.access_modes != desired.access_modes {
        let asked = format!("{:?}", desired.access_modes);
        return differs("access mode", format!("{:?}", existing.access_modes), asked);
    }
    if existing.storage_class != desired.storage_class {
        let text = |class: &Option<String>| class.clone().unwrap_or_else(|| "infra's default".to_owned());
        return differs("infra storage class", text(&existing.storage_class), text(&desired.storage_class));
    }
    match existing.size {
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
