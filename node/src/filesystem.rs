//! The table of filesystems: how each is made, checked, mounted and grown, and how its superblock is read.
//!
//! Decides only; [`crate::host`] runs the programs. No force flag stands in any argument list: mkfs.xfs itself refuses
//! a disk with a known signature, and mke2fs opens the disk exclusively.

use std::{fmt, ops::RangeInclusive, path::Path};

use csi_call::Filesystem;

use crate::origin::FilesystemUuid;

/// A filesystem that this driver makes and mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names of the filesystems")]
pub enum FilesystemType {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Name, searched in `PATH`.
    pub program: &'static str,
    /// Arguments, in order.
    pub arguments: Vec<String>,
}

impl Tool {
    fn new(program: &'static str, options: &[&str], operand: &Path) -> Self {
        let operand = operand.to_string_lossy().into_owned();
        Self { program, arguments: options.iter().map(|&o| o.to_owned()).chain([operand]).collect() }
    }
}

/// How a filesystem is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MkfsOptions {
    /// Its UUID; `None`: any.
    pub uuid: Option<FilesystemUuid>,
    /// Options of mkfs.xfs for the features that an xfs may have.
    pub xfs_features: &'static [&'static str],
}

/// What the end of the check program means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckResult {
    /// Clean, or repaired.
    Sound,
    /// Repaired in a way that asks for another run.
    Again,
    /// Damaged beyond what is repaired unasked.
    Damaged,
    /// Not checked: the filesystem has a feature that is newer than the program. It may be one that the kernel knows.
    TooNew,
    /// Not checked to the end, for a reason that is not the filesystem's. Nothing is known of the data.
    NotChecked,
}

/// The exit code of e2fsck is a sum of these bits (e2fsck(8), EXIT CODE). 1 is "corrected".
const E2FSCK_REBOOT: i32 = 2;
const E2FSCK_UNCORRECTED: i32 = 4;
/// All bits that are a verdict on the filesystem. The others (8 operational error, 16 usage, 32 cancelled, 128 library)
/// say that there is none, also where e2fsck adds "uncorrected" to them, as it does for what it cannot check. Only a
/// superblock without sense is a verdict by its words ([`E2FSCK_NO_SUPERBLOCK`]).
const E2FSCK_VERDICT: i32 = 7;
/// e2fsck's words on features that it does not know (`e2fsck/unix.c`: "%s has unsupported feature(s):"). It adds
/// "Filesystem still has errors" to them whatever state the superblock names (1.47.0), so those words say nothing.
const E2FSCK_TOO_NEW: &str = "unsupported feature";
/// e2fsck ends with this code alone where it finds no superblock that it can use. The words tell it from other errors.
const E2FSCK_OPERATIONAL: i32 = 8;
/// e2fsck's words on a superblock without sense (`e2fsck/problem.c`, `PR_0_SB_CORRUPT`).
const E2FSCK_NO_SUPERBLOCK: &str = "does not describe a valid";
/// The C library's words on a read that failed. "Could not be read" is one half of those above, and is no verdict.
const READ_FAILED: &str = "Input/output error";

/// Words of resize2fs and `xfs_growfs`, and what they ask for. Neither has exit codes for them: both end with 1.
const GROWTH_ADVICE: [(&str, &str); 3] = [
    // strerror(ENOSPC): the new groups' tables, and the copies of those of the old ones, take room that is there already.
    (
        "No space left on device",
        "it has no room for the tables of the new space: delete files, then the next request grows it",
    ),
    // libext2fs, `EXT2_ET_UNSUPP_FEATURE` and `EXT2_ET_RO_UNSUPP_FEATURE`.
    (
        "unsupported feature",
        "the program is older than the filesystem: use an image with a newer one; until then the volume stays as it is",
    ),
    // resize2fs/online.c; the kernel's `ext4_resize_begin` wants CAP_SYS_RESOURCE, and no errors on record.
    (
        "Permission denied to resize filesystem",
        "the kernel refuses it: run the node role in a privileged container, as deploy/ does; if it is, the kernel log of this node has the reason",
    ),
];
const GROWTH_IS_REPEATED: &str = "it is repeated with the request";

impl FilesystemType {
    /// By the name used in storage classes, by blkid and in mountinfo.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "ext2" => Some(Self::Ext2),
            "ext3" => Some(Self::Ext3),
            "ext4" => Some(Self::Ext4),
            "xfs" => Some(Self::Xfs),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Size of the smallest disk on which it is made.
    pub fn least_bytes(self) -> u64 {
        Filesystem::named(self.name()).map_or(0, |known| known.least_bytes)
    }

    /// Makes it on a blank disk.
    ///
    /// ext: no blocks reserved for root (`-m 0`, as kubevirt/csi-driver), tables written lazily, and no discard, which
    /// on a blank disk only costs time and writes nothing that is needed (`-K` is the same for xfs). Its features are
    /// `ext_features`, whatever `mke2fs.conf` names.
    pub fn mkfs(self, disk: &Path, made: &MkfsOptions) -> Tool {
        const EXT: &[&str] = &["-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"];
        const EXT2: &[&str] = &["-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"];
        let (program, options): (_, &[&str]) = match self {
            Self::Ext2 => ("mkfs.ext2", EXT2),
            Self::Ext3 => ("mkfs.ext3", EXT),
            Self::Ext4 => ("mkfs.ext4", EXT),
            Self::Xfs => ("mkfs.xfs", &["-q", "-K"]),
        };
        let mut options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        if let Some(features) = self.ext_features() {
            options.extend(["-O".to_owned(), features.to_owned()]);
        }
        match (self, made.uuid) {
            (_, None) => {}
            (Self::Xfs, Some(uuid)) => options.extend(["-m".to_owned(), format!("uuid={uuid}")]),
            (_, Some(uuid)) => options.extend(["-U".to_owned(), uuid.to_string()]),
        }
        if self == Self::Xfs {
            options.extend(made.xfs_features.iter().map(|&option| option.to_owned()));
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Tool::new(program, &options, disk)
    }

    /// Option `-O` of mke2fs for the features of a new ext filesystem; `none` clears those that `mke2fs.conf` and the release
    /// of e2fsprogs turn on (mke2fs(8)).
    ///
    /// They are the default of e2fsprogs 1.43 to 1.46, all known to kernels since 3.18 (ext4(5), KERNEL SUPPORT). Since 1.47
    /// mke2fs also turns on `metadata_csum_seed`, which a kernel before 4.4 does not mount, and `orphan_file`, which is of
    /// 5.15 (e2fsprogs, `doc/RelNotes/v1.47.0.txt`); e2fsck before 1.47 checks no filesystem that has it, and a kernel before
    /// 5.15 mounts none for writing that was not unmounted cleanly (`orphan_present`). Unlike xfs the kernel of this worker
    /// does not decide: a volume goes on to other workers and other images, nothing here needs a newer feature, and
    /// `/sys/fs/ext4/features` does not name `orphan_file`.
    fn ext_features(self) -> Option<&'static str> {
        match self {
            Self::Ext2 => Some("none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr"),
            Self::Ext3 => {
                Some("none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,has_journal")
            }
            Self::Ext4 => Some(
                "none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize",
            ),
            Self::Xfs => None,
        }
    }

    /// Checks it before it is mounted for writing; xfs replays its log when mounted, and `xfs_repair` is never
    /// automatic.
    pub fn check(self, disk: &Path) -> Option<Tool> {
        match self {
            Self::Ext2 | Self::Ext3 | Self::Ext4 => Some(Tool::new("e2fsck", &["-p"], disk)),
            Self::Xfs => None,
        }
    }

    /// Reads the exit code of [`Self::check`], `None` if a signal ended it, and what it printed.
    pub fn check_result(code: Option<i32>, spoken: &str) -> CheckResult {
        match code {
            Some(bits @ 0..=E2FSCK_VERDICT) if bits & E2FSCK_UNCORRECTED != 0 => CheckResult::Damaged,
            Some(bits @ 0..=E2FSCK_VERDICT) if bits & E2FSCK_REBOOT != 0 => CheckResult::Again,
            Some(0..=E2FSCK_VERDICT) => CheckResult::Sound,
            Some(_) if spoken.contains(E2FSCK_TOO_NEW) => CheckResult::TooNew,
            Some(E2FSCK_OPERATIONAL)
                if spoken.contains(E2FSCK_NO_SUPERBLOCK) && !spoken.contains(READ_FAILED) =>
            {
                CheckResult::Damaged
            }
            Some(_) | None => CheckResult::NotChecked,
        }
    }

    /// Grows it to the size of its disk while it is mounted.
    pub fn grow(self, disk: &Path, mount_point: &Path) -> Tool {
        match self {
            Self::Ext2 | Self::Ext3 | Self::Ext4 => Tool::new("resize2fs", &[], disk),
            Self::Xfs => Tool::new("xfs_growfs", &["-d"], mount_point),
        }
    }

    /// What to do after [`Self::grow`] has failed, by its words.
    pub fn growth_advice(spoken: &str) -> &'static str {
        let advice = GROWTH_ADVICE.iter().find(|(words, _)| spoken.contains(words));
        advice.map_or(GROWTH_IS_REPEATED, |(_, advice)| advice)
    }

    /// Options it is always mounted with. A clone or a restored snapshot has its source's UUID, and xfs refuses the
    /// second of two on one node unless `nouuid` is given.
    pub fn mount_defaults(self) -> &'static [&'static str] {
        match self {
            Self::Ext2 | Self::Ext3 | Self::Ext4 => &[],
            Self::Xfs => &["nouuid"],
        }
    }

    /// Reads its superblock from the first [`SUPERBLOCK_BYTES`] of a disk.
    pub fn superblock(self, head: &[u8]) -> Option<Superblock> {
        match self {
            Self::Ext2 | Self::Ext3 | Self::Ext4 => ext_superblock(head),
            Self::Xfs => xfs_superblock(head),
        }
    }
}

impl fmt::Display for FilesystemType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first kernel in which bigtime and inobtcount are no experiment; a kernel before 5.10 does not mount them.
const XFS_BIG_TIME: (u32, u32) = (5, 15);

/// The options with which a new xfs has only features that this kernel can mount. mkfs.xfs by itself turns on what the
/// release of xfsprogs has, whatever the kernel of the node: nrext64, which needs 5.19, since xfsprogs 6.5. The files that
/// xfsprogs has for this (`/usr/share/xfsprogs/mkfs`) are no help: 6.1 refuses its own. A kernel whose version cannot be read
/// gets the fewest.
pub fn xfs_features(release: &str) -> &'static [&'static str] {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= XFS_BIG_TIME {
        &["-i", "nrext64=0"]
    } else {
        &["-i", "nrext64=0", "-m", "bigtime=0,inobtcount=0"]
    }
}

/// How much of a disk's beginning holds the superblock of each filesystem in the table, and those of md 1.1 and 1.2: the
/// last is at byte 4096.
pub const SUPERBLOCK_BYTES: usize = 8192;

/// A filesystem is grown when its disk is larger by more than this. Neither program uses a tail smaller than this: ext4
/// drops a last group without room for its own tables, xfs a last allocation group under 64 blocks.
pub const GROW_THRESHOLD_BYTES: u64 = 4 << 20;

/// How far mkfs came with a filesystem, by its superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// mkfs did not end.
    Unfinished,
    /// Never mounted for writing: it is not known whether all that mkfs wrote is on the disk.
    Unused,
    /// mkfs ended, and all it wrote is there.
    Finished,
}

/// What a superblock holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Size of the filesystem in bytes.
    pub bytes: u64,
    /// How far mkfs came.
    pub completion: Completion,
    /// Bytes of the size that statfs(2) leaves out: the internal log of xfs.
    pub log_bytes: u64,
    /// The kernel met an error in it, and no check has followed. xfs keeps no such mark.
    pub has_errors: bool,
    /// Its UUID.
    pub uuid: FilesystemUuid,
    /// When it was made, in seconds since 1970. xfs has it elsewhere: [`xfs_made_at`].
    pub made_at: Option<u64>,
}

/// ext2/3/4: `struct ext2_super_block` at offset 1024, little endian.
///
/// mke2fs writes it last, but into the page cache: what the kernel puts on the disk first is the kernel's choice, so a
/// disk or a machine that went away in the midst leaves a whole superblock before tables that were never written. Each
/// mount for writing counts `s_mnt_count` up and sets `s_mtime` (a check may set the count back, never the time).
fn ext_superblock(head: &[u8]) -> Option<Superblock> {
    const OFFSET: usize = 1024;
    const MAGIC: u16 = 0xef53;
    const INCOMPAT_64BIT: u32 = 0x80;
    const MOUNT_TIME: usize = 0x2c;
    const MOUNT_COUNT: usize = 0x34;
    const STATE: usize = 0x3a;
    const ERROR_FS: u16 = 2;
    const UUID: usize = 0x68;
    const MADE: usize = 0x108;
    const MADE_HIGH: usize = 0x276;
    /// Blocks have 1 KiB to 64 KiB (`EXT2_MAX_BLOCK_LOG_SIZE`). With more, bits of the size would be lost.
    const MOST_BLOCK_SHIFT: u32 = 6;
    let block = head.get(OFFSET..)?;
    let u16_at = |at: usize| Some(u16::from_le_bytes(block.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?));
    if u16_at(0x38)? != MAGIC {
        return None;
    }
    let high = if u32_at(0x60)? & INCOMPAT_64BIT == 0 { 0 } else { u32_at(0x150)? };
    let blocks = (u64::from(high) << 32) | u64::from(u32_at(0x4)?);
    let shift = u32_at(0x18)?;
    if shift > MOST_BLOCK_SHIFT {
        return None;
    }
    let block_bytes = 1024_u64 << shift;
    let unused = u32_at(MOUNT_TIME)? == 0 && u16_at(MOUNT_COUNT)? == 0;
    let completion = if unused { Completion::Unused } else { Completion::Finished };
    let has_errors = u16_at(STATE)? & ERROR_FS != 0;
    let made = (u64::from(*block.get(MADE_HIGH)?) << 32) | u64::from(u32_at(MADE)?);
    Some(Superblock {
        bytes: blocks.checked_mul(block_bytes)?,
        completion,
        log_bytes: 0,
        has_errors,
        uuid: FilesystemUuid(block.get(UUID..UUID + 16)?.try_into().ok()?),
        made_at: (made != 0).then_some(made),
    })
}

/// xfs: `struct xfs_dsb` at offset 0, big endian. mkfs.xfs writes past the page cache, sets `sb_inprogress` first and
/// clears it last; the kernel refuses to mount while it is set, so such a filesystem never held a file.
fn xfs_superblock(head: &[u8]) -> Option<Superblock> {
    const MAGIC: &[u8] = b"XFSB";
    const IN_PROGRESS: usize = 126;
    const UUID: usize = 32;
    /// `XFS_MIN_BLOCKSIZE`, `XFS_MAX_BLOCKSIZE`.
    const BLOCK_BYTES: RangeInclusive<u64> = 512..=65_536;
    let u32_at = |at: usize| Some(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
    if head.get(..MAGIC.len())? != MAGIC {
        return None;
    }
    let block_bytes = u64::from(u32_at(4)?);
    if !BLOCK_BYTES.contains(&block_bytes) || !block_bytes.is_power_of_two() {
        return None;
    }
    let log_blocks = if u64_at(48)? == 0 { 0 } else { u64::from(u32_at(96)?) };
    Some(Superblock {
        bytes: u64_at(8)?.checked_mul(block_bytes)?,
        completion: if *head.get(IN_PROGRESS)? == 0 { Completion::Finished } else { Completion::Unfinished },
        log_bytes: log_blocks.checked_mul(block_bytes)?,
        has_errors: false,
        uuid: FilesystemUuid(head.get(UUID..UUID + 16)?.try_into().ok()?),
        made_at: None,
    })
}

/// How much of an inode holds its age.
pub const XFS_INODE_BYTES: usize = 176;

/// Where the inode of the root directory of an xfs lies, by its superblock (`struct xfs_dsb`): an inode's number is that of
/// its allocation group, of its block in there, and its place in the block.
pub fn xfs_root_inode(head: &[u8]) -> Option<u64> {
    xfs_superblock(head)?;
    let byte = |at: usize| head.get(at).copied().map(u32::from);
    let root = u64::from_be_bytes(head.get(56..64)?.try_into().ok()?);
    let group_blocks = u64::from(u32::from_be_bytes(head.get(84..88)?.try_into().ok()?));
    let (block_log, inode_log, per_block_log, group_log) = (byte(120)?, byte(122)?, byte(123)?, byte(124)?);
    let below = |bits: u32| 1_u64.checked_shl(bits).map(|limit| limit - 1);
    let group = root.checked_shr(group_log + per_block_log)?;
    let block = root.checked_shr(per_block_log)? & below(group_log)?;
    let place = root & below(per_block_log)?;
    let blocks = group.checked_mul(group_blocks)?.checked_add(block)?;
    let at = blocks.checked_mul(below(block_log)? + 1)?;
    at.checked_add(place.checked_mul(below(inode_log)? + 1)?)
}

/// When an xfs was made, in seconds since 1970: the age of its root directory (`struct xfs_dinode`, version 3). An xfs of
/// version 4 does not have it.
pub fn xfs_made_at(inode: &[u8]) -> Option<u64> {
    const MAGIC: &[u8] = b"IN";
    const VERSION: usize = 4;
    const FLAGS2: usize = 120;
    const BIG_TIME: u64 = 1 << 3;
    const MADE: usize = 144;
    const NANOSECONDS: u64 = 1_000_000_000;
    /// A big time counts from the smallest time of the older form.
    const BIG_TIME_OFFSET: u64 = 1 << 31;
    let u64_at = |at: usize| Some(u64::from_be_bytes(inode.get(at..at + 8)?.try_into().ok()?));
    if inode.get(..MAGIC.len())? != MAGIC || *inode.get(VERSION)? != 3 {
        return None;
    }
    let made = u64_at(MADE)?;
    if u64_at(FLAGS2)? & BIG_TIME != 0 {
        return (made / NANOSECONDS).checked_sub(BIG_TIME_OFFSET);
    }
    i32::try_from(made.cast_signed() >> 32).ok().and_then(|seconds| u64::try_from(seconds).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const ALL: [FilesystemType; 4] =
        [FilesystemType::Ext2, FilesystemType::Ext3, FilesystemType::Ext4, FilesystemType::Xfs];

    #[test]
    fn names_are_their_own_inverse_and_no_mkfs_is_forced() {
        for filesystem in ALL {
            assert_eq!(FilesystemType::parse(filesystem.name()), Some(filesystem));
            let mkfs = filesystem.mkfs(Path::new("/dev/sda"), &MkfsOptions::default());
            assert_eq!(mkfs.program, format!("mkfs.{filesystem}"));
            assert_eq!(mkfs.arguments.last().map(String::as_str), Some("/dev/sda"));
            assert!(!mkfs.arguments.iter().any(|a| a == "-f" || a == "-F"), "{mkfs:?}");
        }
        assert_eq!(FilesystemType::parse("btrfs"), None);
    }

    #[test]
    fn a_uuid_and_features_are_given_as_each_program_takes_them() {
        let uuid = FilesystemUuid([0xab; 16]);
        let options = MkfsOptions { uuid: Some(uuid), xfs_features: xfs_features("5.4.0") };
        for filesystem in ALL {
            let arguments = filesystem.mkfs(Path::new("/dev/sda"), &options).arguments.join(" ");
            let (given, features) = match filesystem {
                FilesystemType::Xfs => {
                    (format!("-m uuid={uuid}"), "-i nrext64=0 -m bigtime=0,inobtcount=0 /dev/sda")
                }
                _ => (format!("-U {uuid}"), " /dev/sda"),
            };
            assert!(arguments.contains(&given) && arguments.ends_with(features), "{arguments}");
            assert_eq!(arguments.contains("nrext64"), filesystem == FilesystemType::Xfs, "{arguments}");
            assert_eq!(arguments.contains("-O none,"), filesystem != FilesystemType::Xfs, "{arguments}");
        }
    }

    #[rstest]
    #[case("4.18.0-553.el8_10.x86_64", false)]
    #[case("5.4.0-216-generic", false)]
    #[case("5.9.16", false)]
    #[case("5.14.0-503.el9", false)]
    #[case("5.15", true)]
    #[case("6.1.0-57-cloud-amd64", true)]
    #[case("6.18.44", true)]
    #[case("10.0.1", true)]
    #[case("6", true)]
    #[case("5", false)]
    #[case("", false)]
    #[case("unknown", false)]
    fn the_kernel_decides_on_the_features_of_a_new_xfs(#[case] release: &str, #[case] big_time: bool) {
        let features = xfs_features(release).join(" ");
        assert!(features.contains("nrext64=0"), "{features}");
        assert_eq!(!features.contains("bigtime=0,inobtcount=0"), big_time, "{features}");
    }

    #[test]
    fn the_age_of_an_xfs_is_that_of_its_root_directory() {
        let mut head = vec![0_u8; SUPERBLOCK_BYTES];
        head[..4].copy_from_slice(b"XFSB");
        head[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        head[84..88].copy_from_slice(&1000_u32.to_be_bytes());
        // Blocks of 4096, inodes of 512, eight in a block, groups of at most 1024 blocks.
        (head[120], head[122], head[123], head[124]) = (12, 9, 3, 10);
        let mut at = |root: u64| {
            head[56..64].copy_from_slice(&root.to_be_bytes());
            xfs_root_inode(&head)
        };
        assert_eq!(at(128), Some(16 * 4096));
        assert_eq!(at(131), Some(16 * 4096 + 3 * 512));
        assert_eq!(at((1 << 13) | 8), Some((1000 + 1) * 4096), "of the second group");
        assert_eq!(xfs_root_inode(b"XFSB"), None);

        let inode = |flags: u64, made: u64, version: u8| {
            let mut inode = vec![0_u8; XFS_INODE_BYTES];
            inode[..2].copy_from_slice(b"IN");
            inode[4] = version;
            inode[120..128].copy_from_slice(&flags.to_be_bytes());
            inode[144..152].copy_from_slice(&made.to_be_bytes());
            inode
        };
        assert_eq!(xfs_made_at(&inode(0, (1_700_000_000 << 32) | 7, 3)), Some(1_700_000_000));
        assert_eq!(
            xfs_made_at(&inode(8, (1_700_000_000 + (1 << 31)) * 1_000_000_000, 3)),
            Some(1_700_000_000)
        );
        assert_eq!(xfs_made_at(&inode(0, u64::MAX, 3)), None, "before 1970");
        assert_eq!(xfs_made_at(&inode(0, 1 << 32, 2)), None);
        assert_eq!(xfs_made_at(&[]), None);
    }

    #[test]
    fn the_controller_is_told_all_that_is_made_here() {
        let told =
            csi_call::filesystems::FILESYSTEMS.map(|filesystem| FilesystemType::parse(filesystem.name));
        assert_eq!(told, ALL.map(Some));
        assert!(FilesystemType::parse(csi_call::filesystems::DEFAULT).is_some());
    }

    #[rstest]
    #[case(Some(0), CheckResult::Sound)]
    #[case(Some(1), CheckResult::Sound)]
    #[case(Some(2), CheckResult::Again)]
    #[case(Some(3), CheckResult::Again)]
    #[case(Some(4), CheckResult::Damaged)]
    #[case(Some(5), CheckResult::Damaged)]
    #[case(Some(6), CheckResult::Damaged)]
    #[case(Some(8), CheckResult::NotChecked)]
    #[case(Some(9), CheckResult::NotChecked)]
    #[case(Some(12), CheckResult::NotChecked)]
    #[case(Some(16), CheckResult::NotChecked)]
    #[case(Some(32), CheckResult::NotChecked)]
    #[case(Some(128), CheckResult::NotChecked)]
    #[case(Some(-1), CheckResult::NotChecked)]
    #[case(None, CheckResult::NotChecked)]
    fn e2fsck_codes(#[case] code: Option<i32>, #[case] result: CheckResult) {
        assert_eq!(FilesystemType::check_result(code, "e2fsck: some words"), result);
    }

    #[rstest]
    #[case(Some(8), CheckResult::TooNew)]
    #[case(Some(12), CheckResult::TooNew)]
    #[case(Some(4), CheckResult::Damaged)]
    #[case(Some(0), CheckResult::Sound)]
    #[case(None, CheckResult::NotChecked)]
    fn a_feature_that_e2fsck_does_not_know_is_no_damage(
        #[case] code: Option<i32>,
        #[case] result: CheckResult,
    ) {
        let spoken = "/dev/sda has unsupported feature(s): FEATURE_C13 e2fsck: Get a newer version of e2fsck! /dev/sda: ********** WARNING: Filesystem still has errors **********";
        assert_eq!(FilesystemType::check_result(code, spoken), result);
    }

    #[rstest]
    #[case::no_superblock(Some(8), "Bad magic number in super-block", CheckResult::Damaged)]
    #[case::unread(Some(8), "Input/output error", CheckResult::NotChecked)]
    #[case::another_end(Some(16), "Bad magic number in super-block", CheckResult::NotChecked)]
    #[case::killed(None, "Bad magic number in super-block", CheckResult::NotChecked)]
    fn a_superblock_without_sense_is_damage_if_it_was_read(
        #[case] code: Option<i32>,
        #[case] cause: &str,
        #[case] result: CheckResult,
    ) {
        let spoken = format!(
            "e2fsck: {cause} while trying to open /dev/sda /dev/sda: The superblock could not be read or does not describe a valid ext2/ext3/ext4 filesystem."
        );
        assert_eq!(FilesystemType::check_result(code, &spoken), result);
    }

    proptest! {
        #[test]
        fn only_a_verdict_of_e2fsck_is_called_damage(code in proptest::option::of(any::<i32>()), spoken in ".{0,40}") {
            let damaged = FilesystemType::check_result(code, &spoken) == CheckResult::Damaged;
            prop_assert_eq!(damaged, matches!(code, Some(4..=7)));
        }
    }

    /// The size would lose bits, or be 0, and leave room for signatures of another owner.
    #[test]
    fn a_superblock_with_a_block_size_of_no_filesystem_is_none() {
        let mut xfs = vec![0_u8; SUPERBLOCK_BYTES];
        xfs[..4].copy_from_slice(b"XFSB");
        xfs[8..16].copy_from_slice(&16_384_u64.to_be_bytes());
        for (block, is_one) in [
            (512_u32, true),
            (4096, true),
            (65_536, true),
            (0, false),
            (256, false),
            (131_072, false),
            (4097, false),
        ] {
            xfs[4..8].copy_from_slice(&block.to_be_bytes());
            let bytes = FilesystemType::Xfs.superblock(&xfs).map(|superblock| superblock.bytes);
            assert_eq!(bytes, is_one.then(|| 16_384 * u64::from(block)), "{block}");
        }
        let mut ext = vec![0_u8; SUPERBLOCK_BYTES];
        ext[1024 + 0x38..1024 + 0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
        ext[1024 + 4..1024 + 8].copy_from_slice(&16_384_u32.to_le_bytes());
        for (shift, is_one) in [(0_u32, true), (2, true), (6, true), (7, false), (54, false), (64, false)] {
            ext[1024 + 0x18..1024 + 0x1c].copy_from_slice(&shift.to_le_bytes());
            let bytes = FilesystemType::Ext4.superblock(&ext).map(|superblock| superblock.bytes);
            assert_eq!(bytes, is_one.then(|| 16_384 * (1024_u64 << shift.min(6))), "{shift}");
        }
    }

    #[test]
    fn an_xfs_that_mkfs_left_in_the_middle_is_not_finished() {
        let mut head = vec![0_u8; SUPERBLOCK_BYTES];
        head[..4].copy_from_slice(b"XFSB");
        head[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        head[8..16].copy_from_slice(&1000_u64.to_be_bytes());
        head[48..56].copy_from_slice(&8_u64.to_be_bytes());
        head[96..100].copy_from_slice(&10_u32.to_be_bytes());
        let completion = Completion::Finished;
        let uuid = FilesystemUuid([0; 16]);
        let whole = Superblock {
            bytes: 4_096_000,
            completion,
            log_bytes: 40_960,
            has_errors: false,
            uuid,
            made_at: None,
        };
        assert_eq!(FilesystemType::Xfs.superblock(&head), Some(whole));
        head[126] = 1;
        assert_eq!(
            FilesystemType::Xfs.superblock(&head),
            Some(Superblock { completion: Completion::Unfinished, ..whole })
        );
        assert_eq!(FilesystemType::Ext4.superblock(&head), None);
    }

    #[test]
    fn an_ext_that_was_never_mounted_is_unused_until_its_first_mount() {
        let mut head = vec![0_u8; SUPERBLOCK_BYTES];
        head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
        let stage =
            |head: &[u8]| FilesystemType::Ext4.superblock(head).map(|superblock| superblock.completion);
        assert_eq!(stage(&head), Some(Completion::Unused));
        for field in [0x2c, 0x34] {
            let mut used = head.clone();
            used[1024 + field] = 1;
            assert_eq!(stage(&used), Some(Completion::Finished), "{field:#x}");
        }
    }

    #[test]
    fn errors_on_record_are_one_bit_of_the_state() {
        let mut head = vec![0_u8; SUPERBLOCK_BYTES];
        head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
        for (state, has_errors) in [(0_u8, false), (1, false), (2, true), (3, true), (4, false), (7, true)] {
            head[1024 + 0x3a] = state;
            let read = FilesystemType::Ext3.superblock(&head).unwrap();
            assert_eq!(read.has_errors, has_errors, "{state}");
        }
    }

    #[rstest]
    #[case("resize2fs: No space left on device While trying to add group #9", "delete files")]
    #[case("xfs_growfs: XFS_IOC_FSGROWFSDATA xfsctl failed: No space left on device", "delete files")]
    #[case("resize2fs: Filesystem has unsupported feature(s) while trying to open /dev/sdb", "newer one")]
    #[case("resize2fs: Permission denied to resize filesystem", "privileged")]
    #[case("resize2fs: Device or resource busy while trying to add group", "repeated")]
    #[case("", "repeated")]
    fn a_failed_growth_is_told_apart_by_its_words(#[case] spoken: &str, #[case] advice: &str) {
        let given = FilesystemType::growth_advice(spoken);
        assert!(given.contains(advice), "{given}");
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_superblock_readers(
            mut head in proptest::collection::vec(any::<u8>(), 0..SUPERBLOCK_BYTES),
            magic in any::<bool>(),
        ) {
            if magic && head.len() > 1084 {
                head[..4].copy_from_slice(b"XFSB");
                head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
            }
            for filesystem in ALL {
                let _: Option<Superblock> = filesystem.superblock(&head);
            }
        }
    }
}
