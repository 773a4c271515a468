//! The mount table of this process, as values: which mounts sit on a path, and where a disk is mounted.
//!
//! The text of `/proc/self/mountinfo` is parsed by the `procfs` crate, which leaves the octal escapes in; they are
//! undone here.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use procfs::{FromRead, process::MountInfos};

use crate::device_number::DeviceNumber;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device of the mounted filesystem; for a bound device node this is the device of devtmpfs, not of the disk.
    pub number: DeviceNumber,
    /// What of the filesystem is mounted: `/`, or the bound directory or file inside it.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Filesystem type.
    pub fs_type: String,
    /// Options of this mount, as printed.
    pub options: BTreeSet<String>,
    /// Options of the filesystem under all its mounts, as printed.
    pub super_options: BTreeSet<String>,
}

impl Mount {
    /// Nothing can be written through this mount.
    pub fn read_only(&self) -> bool {
        self.options.contains("ro") || self.super_options.contains("ro")
    }

    /// Why nothing can be written through this mount: what a probe of a writable one has shown, or that it is read-only.
    pub fn write_refusal(&self, probed: Option<&str>) -> Option<String> {
        probed.map(str::to_owned).or_else(|| self.read_only().then(|| "its mount is read-only".to_owned()))
    }

    /// All options, of the mount and of its filesystem.
    pub fn words(&self) -> BTreeSet<String> {
        self.options.union(&self.super_options).cloned().collect()
    }
}

/// All mounts that this process sees, in the kernel's order: of two on one path the later lies on top.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable(pub Vec<Mount>);

impl MountTable {
    /// Parses the text of a `mountinfo` file.
    ///
    /// Bytes that are not UTF-8 are replaced: they can only be in paths that are not ours, and must not hide the rest.
    ///
    /// # Errors
    /// A line that is not a mount: then nothing is known, and nothing is concluded.
    pub fn parse(mountinfo: &[u8]) -> io::Result<Self> {
        let text = String::from_utf8_lossy(mountinfo);
        let parsed = MountInfos::from_read(text.as_bytes()).map_err(|error| invalid(error.to_string()))?;
        let mounts = parsed.into_iter().map(|info| {
            Ok(Mount {
                number: info
                    .majmin
                    .parse()
                    .map_err(|()| invalid(format!("device number {}", info.majmin)))?,
                root: unescape(&info.root),
                point: unescape(&info.mount_point.to_string_lossy()),
                fs_type: info.fs_type,
                options: words(info.mount_options),
                super_options: words(info.super_options),
            })
        });
        Ok(Self(mounts.collect::<io::Result<_>>()?))
    }

    /// The mounts on `path`, the visible one last.
    pub fn at(&self, path: &Path) -> Vec<Mount> {
        self.0.iter().filter(|mount| mount.point == path).cloned().collect()
    }

    /// The mounts of a disk's filesystem.
    pub fn of(&self, number: DeviceNumber) -> Vec<Mount> {
        self.0.iter().filter(|mount| mount.number == number).cloned().collect()
    }

    /// The mounts by which a device node is bound onto a file: their root inside devtmpfs is the node's name.
    pub fn of_node(&self, name: &str) -> Vec<Mount> {
        let root = Path::new("/").join(name);
        self.0.iter().filter(|m| m.root == root && m.fs_type == DEVTMPFS).cloned().collect()
    }

    /// Mount points strictly below `path`.
    pub fn below(&self, path: &Path) -> Vec<PathBuf> {
        self.0
            .iter()
            .map(|m| &m.point)
            .filter(|point| *point != path && point.starts_with(path))
            .cloned()
            .collect()
    }
}

/// Filesystem type of `/dev`.
pub const DEVTMPFS: &str = "devtmpfs";
/// Filesystem type of a `/dev` that a container runtime made.
pub const TMPFS: &str = "tmpfs";

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn words(options: HashMap<String, Option<String>>) -> BTreeSet<String> {
    options
        .into_iter()
        .map(|(name, value)| value.map_or_else(|| name.clone(), |value| format!("{name}={value}")))
        .collect()
}

/// Undoes the kernel's escapes: `\` and three octal digits for space, tab, newline, backslash and `#` (`seq_file`'s
/// `mangle`). Anything else after a backslash is kept as it is.
pub fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'\\'
            && let Some(byte) = octal(tail)
        {
            plain.push(byte);
            rest = &tail[ESCAPE_DIGITS..];
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

const ESCAPE_DIGITS: usize = 3;

fn octal(digits: &[u8]) -> Option<u8> {
    digits.get(..ESCAPE_DIGITS)?.iter().try_fold(0_u8, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const TABLE: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:5 / /dev rw,nosuid - devtmpfs dev rw,size=1024k
40 22 8:0 / /var/lib/kubelet/plugins/a\\040b/globalmount rw,noexec shared:7 - xfs /dev/sda rw,attr2,nouuid
41 22 8:0 / /var/lib/kubelet/pods/p/mount ro,noexec shared:7 - xfs /dev/sda rw,attr2,nouuid
42 22 8:0 /sub /var/lib/kubelet/pods/p/volume-subpaths/1 rw master:3 propagate_from:2 - xfs /dev/sda rw
43 22 0:5 /sdb /var/lib/kubelet/pods/p/block rw,nosuid - devtmpfs dev rw,size=1024k
";

    #[test]
    fn the_table_tells_mounts_of_a_path_of_a_disk_and_of_a_device_node() {
        let table = MountTable::parse(TABLE.as_bytes()).unwrap();
        assert_eq!(table.0.len(), 6);
        let staged = table.at(Path::new("/var/lib/kubelet/plugins/a b/globalmount"));
        assert_eq!(staged.len(), 1);
        assert!(!staged[0].read_only());
        assert!(staged[0].words().contains("noexec") && staged[0].words().contains("nouuid"));
        assert!(table.at(Path::new("/var/lib/kubelet/pods/p/mount"))[0].read_only());
        assert_eq!(table.of(DeviceNumber::new(8, 0)).len(), 3);
        assert_eq!(table.of_node("sdb").len(), 1);
        assert_eq!(table.below(Path::new("/var/lib/kubelet/pods/p")).len(), 3);
    }

    #[test]
    fn a_broken_line_is_an_error_and_foreign_bytes_are_not() {
        assert!(MountTable::parse(b"nonsense\n").is_err());
        assert!(MountTable::parse(b"1 2 x:y / / rw - ext4 /dev/root rw\n").is_err());
        let mut table = TABLE.as_bytes().to_vec();
        table.extend_from_slice(b"50 22 0:9 / /mnt/\xff rw - tmpfs none rw\n");
        assert_eq!(MountTable::parse(&table).unwrap().0.len(), 7);
    }

    #[rstest]
    #[case("/a\\040b", "/a b")]
    #[case("/a\\134040", "/a\\040")]
    #[case("/a\\011\\012\\043", "/a\t\n#")]
    #[case("/a\\09", "/a\\09")]
    #[case("/a\\", "/a\\")]
    #[case("/a\\777", "/a\\777")]
    #[case("/plain", "/plain")]
    fn escapes_are_undone(#[case] given: &str, #[case] plain: &str) {
        assert_eq!(unescape(given), Path::new(plain));
    }

    /// The kernel's side of the contract.
    fn escape(path: &str) -> String {
        path.chars()
            .map(|c| match c {
                ' ' | '\t' | '\n' | '\\' | '#' => format!("\\{:03o}", c as u32),
                other => other.to_string(),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn what_the_kernel_escapes_comes_back(path in "/[ -~\t\n\\\\#äß]{0,40}") {
            prop_assert_eq!(unescape(&escape(&path)), PathBuf::from(&path));
        }

        #[test]
        fn a_mount_with_any_name_is_found(name in "[ -~\t]{1,30}") {
            prop_assume!(!name.contains('/'));
            let point = Path::new("/m").join(&name);
            let line = format!("1 2 8:0 / /m/{} rw - ext4 /dev/sda rw\n", escape(&name));
            prop_assert_eq!(MountTable::parse(line.as_bytes()).unwrap().at(&point).len(), 1);
        }

        #[test]
        fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(MountTable::parse(&bytes));
        }
    }
}
