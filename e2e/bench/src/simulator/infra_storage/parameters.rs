//! What a request says about its volume beside its size: parameters of the class, and the claim's name, which csi-provisioner
//! adds (`--extra-create-metadata`). Pure.

use std::collections::HashMap;

use csi_proto::v1::{VolumeCapability, volume_capability::AccessType};

use super::{plan::Refusal, pool::Volume};
use crate::cluster::storage_classes::{CLASS_PARAMETER, NODE_EXPANSION_PARAMETER};

/// Keys that csi-provisioner adds (`pkg/controller`, `pvcNameKey` and `pvcNamespaceKey`).
const CLAIM: &str = "csi.storage.k8s.io/pvc/name";
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";

/// The volume that a request describes, without its size and its source. A filesystem has to be expanded on a node too, a
/// device has not, unless the class says otherwise.
pub(super) fn volume(
    capabilities: &[VolumeCapability],
    parameters: &HashMap<String, String>,
) -> Result<Volume, Refusal> {
    let block = is_block(capabilities)?;
    let text = |key: &str| parameters.get(key).cloned().unwrap_or_default();
    let node_expansion = match parameters.get(NODE_EXPANSION_PARAMETER).map(String::as_str) {
        None => !block,
        Some("true") => true,
        Some("false") => false,
        Some(other) => {
            let message = format!("parameter {NODE_EXPANSION_PARAMETER} is {other:?}, not true or false");
            return Err(Refusal::invalid(message));
        }
    };
    Ok(Volume {
        block,
        class: text(CLASS_PARAMETER),
        namespace: text(NAMESPACE),
        claim: text(CLAIM),
        node_expansion,
        ..Volume::default()
    })
}

/// Whether the capabilities are those of a device; all of them are of one kind.
pub(super) fn is_block(capabilities: &[VolumeCapability]) -> Result<bool, Refusal> {
    let mut kinds = capabilities.iter().map(|capability| match capability.access_type {
        Some(AccessType::Block(_)) => Some(true),
        Some(AccessType::Mount(_)) => Some(false),
        None => None,
    });
    let first = kinds.next().flatten();
    match first {
        Some(block) if kinds.all(|kind| kind == first) => Ok(block),
        _ => Err(Refusal::invalid("a volume is wanted either as a block device or as a filesystem")),
    }
}

#[cfg(test)]
mod tests {
    use csi_proto::v1::volume_capability::{BlockVolume, MountVolume};

    use super::*;

    fn capability(block: bool) -> VolumeCapability {
        let kind =
            if block { AccessType::Block(BlockVolume {}) } else { AccessType::Mount(MountVolume::default()) };
        VolumeCapability { access_type: Some(kind), ..VolumeCapability::default() }
    }

    #[test]
    fn a_filesystem_is_expanded_on_a_node_and_a_device_is_not_unless_the_class_says_so() {
        let of = |block, told: Option<&str>| {
            let parameters =
                told.map(|told| (NODE_EXPANSION_PARAMETER.to_owned(), told.to_owned())).into_iter().collect();
            volume(&[capability(block)], &parameters).map(|volume| volume.node_expansion)
        };
        assert_eq!((of(true, None), of(false, None)), (Ok(false), Ok(true)));
        assert_eq!((of(true, Some("true")), of(false, Some("false"))), (Ok(true), Ok(false)));
        assert!(of(true, Some("yes")).is_err());
    }

    #[test]
    fn a_volume_is_of_one_kind() {
        assert!(is_block(&[]).is_err());
        assert!(is_block(&[VolumeCapability::default()]).is_err());
        assert!(is_block(&[capability(true), capability(false)]).is_err());
        assert_eq!(is_block(&[capability(false), capability(false)]), Ok(false));
    }
}
