//! What the capabilities of a request need of its volume.

use csi_call::{Filesystem, mount_flags};
use csi_proto::v1::{
    VolumeCapability,
    volume_capability::{AccessType, access_mode::Mode},
};

use super::{Invalid, Sharing};

/// What capabilities need of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// One node or many.
    pub sharing: Sharing,
    /// The filesystem, of several the one that needs the largest disk; `None` = only block.
    pub filesystem: Option<Filesystem>,
}

/// What all capabilities together need; `default` is the filesystem of those that name none.
pub(super) fn needs(capabilities: &[VolumeCapability], default: &str) -> Result<Needs, Invalid> {
    if capabilities.is_empty() {
        return Err(Invalid::Missing("volume capabilities"));
    }
    let mut all = Needs { sharing: Sharing::OneNode, filesystem: None };
    for capability in capabilities {
        if sharing_of(capability)? == Sharing::ManyNodes {
            all.sharing = Sharing::ManyNodes;
        }
        let filesystems = [all.filesystem, filesystem_of(capability, default)?].into_iter().flatten();
        all.filesystem = filesystems.max_by_key(|filesystem| filesystem.least_bytes);
    }
    Ok(all)
}

/// The filesystem that the node role is to make; what it refuses is refused here, before a volume is made for it.
fn filesystem_of(capability: &VolumeCapability, default: &str) -> Result<Option<Filesystem>, Invalid> {
    let Some(AccessType::Mount(mount)) = &capability.access_type else { return Ok(None) };
    if !mount.volume_mount_group.is_empty() {
        return Err(Invalid::MountGroup);
    }
    if let Some(refused) =
        mount_flags::options(&mount.mount_flags).find(|option| mount_flags::is_refused(option))
    {
        return Err(Invalid::MountFlag(refused.to_owned()));
    }
    let name = if mount.fs_type.is_empty() { default } else { &mount.fs_type };
    Filesystem::named(name).map(Some).ok_or_else(|| Invalid::Filesystem(name.to_owned()))
}

pub(super) fn sharing_of(capability: &VolumeCapability) -> Result<Sharing, Invalid> {
    let access = capability.access_type.as_ref().ok_or(Invalid::Missing("access type (block or mount)"))?;
    let mode = capability.access_mode.as_ref().ok_or(Invalid::Missing("access mode"))?;
    let is_mount = matches!(access, AccessType::Mount(_));
    match Mode::try_from(mode.mode) {
        Ok(
            Mode::SingleNodeWriter
            | Mode::SingleNodeReaderOnly
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter,
        ) => Ok(Sharing::OneNode),
        Ok(Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)
            if is_mount =>
        {
            Err(Invalid::SharedFilesystem)
        }
        Ok(Mode::MultiNodeMultiWriter) => Ok(Sharing::ManyNodes),
        Ok(Mode::Unknown) => Err(Invalid::Missing("access mode")),
        Ok(mode @ (Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter)) => {
            Err(Invalid::AccessMode(mode.as_str_name().to_owned()))
        }
        Err(_) => Err(Invalid::AccessMode(mode.mode.to_string())),
    }
}
