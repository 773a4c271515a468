//! The filesystems that the driver serves. The node makes and mounts them; the controller refuses the creation of a
//! volume that the node could not make one on.

/// A filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// As in a StorageClass and to the kernel.
    pub name: &'static str,
    /// Size of the smallest disk on which its mkfs makes it.
    pub least_bytes: u64,
}

/// All of them. mkfs.ext2 and mkfs.ext4 refuse 64 KiB; on less than 2 MiB mkfs.ext3 leaves the journal out, which makes
/// an ext2 (e2fsprogs 1.47); mkfs.xfs refuses less than 300 MiB since xfsprogs 5.19.
pub const FILESYSTEMS: [Filesystem; 4] = [
    Filesystem { name: "ext2", least_bytes: 128 << 10 },
    Filesystem { name: "ext3", least_bytes: 2 << 20 },
    Filesystem { name: "ext4", least_bytes: 128 << 10 },
    Filesystem { name: "xfs", least_bytes: 300 << 20 },
];

/// What is made where a capability names no filesystem; external-provisioner's `--default-fstype` in all known
/// installations.
pub const DEFAULT: &str = "ext4";

impl Filesystem {
    /// By its name; the empty name means the default.
    pub fn named(name: &str) -> Option<Self> {
        let name = if name.is_empty() { DEFAULT } else { name };
        FILESYSTEMS.into_iter().find(|filesystem| filesystem.name == name)
    }
}

/// The names, for the refusal of another.
pub fn names() -> String {
    FILESYSTEMS.map(|filesystem| filesystem.name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_is_found_by_its_exact_name() {
        assert_eq!(Filesystem::named(""), Filesystem::named("ext4"));
        assert_eq!(Filesystem::named("xfs").unwrap().least_bytes, 314_572_800);
        for other in ["btrfs", "XFS", "ext", " ext4", "ntfs"] {
            assert_eq!(Filesystem::named(other), None, "{other}");
        }
    }
}
