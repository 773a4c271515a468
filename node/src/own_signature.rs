//! Signatures that a filesystem's own data can show.
//!
//! blkid takes a disk for a member of a RAID by a few bytes at places that belong to the data of an ordinary filesystem:
//! two bytes in the last sector are enough (libblkid, `superblocks/jmicron_raid.c`). Each file can put them there, and
//! the filesystem is healthy all the same. So a good superblock outvotes such a signature, where the signature lies
//! within the filesystem.
//!
//! Decides only what may be read; a disk with such a signature is never formatted.

use crate::filesystem::Superblock;

/// Where blkid looks for a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At this byte of the disk.
    At(u64),
    /// This many bytes before the disk's end, or further away from it. A real member keeps this space from the
    /// filesystem within, so a filesystem that reaches into it is not within one.
    BeforeEnd(u64),
    /// In the last sector, and so short that any data beyond the filesystem has it by chance.
    Anywhere,
}

const SECTOR: u64 = 512;
/// blkid's name for md; its versions 1.1 and 1.2 are at the beginning.
const MD: &str = "linux_raid_member";
/// The first bytes of its superblock (`linux/raid/md_p.h`: 0xa92b4efc, little endian).
const MD_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
/// Where its versions 1.1 and 1.2 have their superblock.
const MD_AT_BEGINNING: [usize; 2] = [0, 4096];
/// Versions of md whose superblock is at the end, as blkid writes them.
const MD_AT_END: [&str; 2] = ["1.0", "0.90"];

/// blkid's names, and where it looks (libblkid 2.38 to 2.41, `superblocks/*.c`).
///
/// Not in the table: all that is at the beginning of a disk, where a filesystem has only its own metadata (LUKS, LVM2,
/// md 1.1 and 1.2, bcache, VDO), and ZFS, whose labels are at both ends.
const SIGNATURES: [(&str, Place); 14] = [
    ("jmicron_raid_member", Place::Anywhere),
    ("via_raid_member", Place::Anywhere),
    ("lsi_mega_raid_member", Place::BeforeEnd(SECTOR)),
    ("silicon_medley_raid_member", Place::BeforeEnd(SECTOR)),
    ("adaptec_raid_member", Place::BeforeEnd(SECTOR)),
    ("ddf_raid_member", Place::BeforeEnd(SECTOR)),
    ("isw_raid_member", Place::BeforeEnd(2 * SECTOR)),
    ("nvidia_raid_member", Place::BeforeEnd(2 * SECTOR)),
    ("hpt45x_raid_member", Place::BeforeEnd(11 * SECTOR)),
    ("promise_fasttrack_raid_member", Place::BeforeEnd(16 * SECTOR)),
    (MD, Place::BeforeEnd(16 * SECTOR)),
    ("drbd", Place::BeforeEnd(8 * SECTOR)),
    ("VMFS_volume_member", Place::At(1 << 20)),
    ("VMFS", Place::At(2 << 20)),
];

/// What blkid found on a disk that may be a filesystem's own data.
#[derive(Debug, Clone, Copy)]
pub enum Finding<'a> {
    /// One signature that is not a filesystem's.
    One {
        /// blkid's name for it.
        kind: &'a str,
        /// Its version, if blkid names one.
        version: Option<&'a str>,
    },
    /// Several filesystems. blkid names none of them; it has found no RAID.
    Several,
}

/// The signatures that may be data of the filesystem with this superblock, and that therefore prove nothing about the
/// disk. Empty: what blkid found is no such signature.
pub fn own_signatures(finding: Finding<'_>, superblock: &Superblock, disk_bytes: u64) -> Vec<&'static str> {
    if superblock.bytes > disk_bytes {
        return Vec::new();
    }
    let within = |place: Place| match place {
        Place::At(at) => at < superblock.bytes,
        Place::BeforeEnd(distance) => disk_bytes - superblock.bytes < distance,
        Place::Anywhere => true,
    };
    let md_at_end = match finding {
        Finding::One { kind: MD, version: Some(version) } => {
            MD_AT_END.iter().any(|known| version.starts_with(known))
        }
        Finding::One { .. } | Finding::Several => false,
    };
    let own: Vec<_> = SIGNATURES
        .iter()
        .filter(|(kind, place)| within(*place) && (*kind != MD || md_at_end))
        .map(|(kind, _)| *kind)
        .collect();
    match finding {
        Finding::One { kind, .. } if !own.contains(&kind) => Vec::new(),
        Finding::One { .. } | Finding::Several => own,
    }
}

/// Whether md 1.1 or 1.2 has its superblock in these first bytes of a disk. A filesystem has only its own metadata
/// there, so this disk is a member, also where blkid names a signature at the end: it looks for md 1.0 first, and told
/// not to look for md at all it would hide the member.
pub fn is_md_member(head: &[u8]) -> bool {
    MD_AT_BEGINNING.iter().any(|at| head.get(*at..).is_some_and(|rest| rest.starts_with(&MD_MAGIC)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        filesystem::{Completion, SUPERBLOCK_BYTES},
        origin::FilesystemUuid,
    };
    use proptest::prelude::*;
    use rstest::rstest;

    const DISK: u64 = 64 << 20;

    fn filesystem(bytes: u64) -> Superblock {
        let uuid = FilesystemUuid([0; 16]);
        Superblock {
            bytes,
            completion: Completion::Finished,
            log_bytes: 0,
            has_errors: false,
            uuid,
            made_at: None,
        }
    }

    #[rstest]
    #[case::weak("jmicron_raid_member", None, 0, true)]
    #[case::weak_beyond_the_filesystem("jmicron_raid_member", None, 4 << 20, true)]
    #[case::in_the_last_sector("lsi_mega_raid_member", None, 0, true)]
    #[case::in_a_sector_of_no_filesystem("lsi_mega_raid_member", None, 512, false)]
    #[case::md_at_the_end("linux_raid_member", Some("1.0"), 0, true)]
    #[case::old_md("linux_raid_member", Some("0.90.0"), 0, true)]
    #[case::filesystem_in_a_mirror("linux_raid_member", Some("1.0"), 8192, false)]
    #[case::md_at_the_beginning("linux_raid_member", Some("1.2"), 0, false)]
    #[case::md_of_no_version("linux_raid_member", None, 0, false)]
    #[case::filesystem_in_drbd("drbd", Some("v08"), 36 << 10, false)]
    #[case::in_the_midst("VMFS_volume_member", Some("0"), 32 << 20, true)]
    #[case::luks("crypto_LUKS", Some("1"), 0, false)]
    #[case::lvm("LVM2_member", Some("LVM2 001"), 0, false)]
    #[case::zfs("zfs_member", None, 0, false)]
    fn a_signature_is_the_filesystems_own_where_the_filesystem_is(
        #[case] kind: &str,
        #[case] version: Option<&str>,
        #[case] beyond: u64,
        #[case] is_own: bool,
    ) {
        let own = own_signatures(Finding::One { kind, version }, &filesystem(DISK - beyond), DISK);
        assert_eq!(own.contains(&kind), is_own, "{own:?}");
        assert_eq!(own.is_empty(), !is_own, "{own:?}");
    }

    #[test]
    fn several_filesystems_never_hide_md() {
        let own = own_signatures(Finding::Several, &filesystem(DISK), DISK);
        assert!(own.contains(&"VMFS") && !own.contains(&MD), "{own:?}");
    }

    #[test]
    fn a_version_of_another_raid_never_hides_md() {
        let finding = Finding::One { kind: "jmicron_raid_member", version: Some("1.0") };
        let own = own_signatures(finding, &filesystem(DISK), DISK);
        assert!(own.contains(&"jmicron_raid_member") && !own.contains(&MD), "{own:?}");
    }

    #[rstest]
    #[case::md_1_1(Some(0), true)]
    #[case::md_1_2(Some(4096), true)]
    #[case::elsewhere(Some(512), false)]
    #[case::none(None, false)]
    fn a_member_is_known_by_its_superblock_at_the_beginning(
        #[case] at: Option<usize>,
        #[case] is_member: bool,
    ) {
        let mut head = vec![0; SUPERBLOCK_BYTES];
        if let Some(at) = at {
            head[at..at + 4].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9]);
        }
        assert_eq!(is_md_member(&head), is_member);
        // A disk that ends within the superblock has none.
        assert!(!is_md_member(&head[..3]));
    }

    proptest! {
        #[test]
        fn a_filesystem_larger_than_its_disk_is_not_good(beyond in 1_u64..(1 << 40), index in 0..SIGNATURES.len()) {
            let (kind, version) = (SIGNATURES[index].0, Some("1.0"));
            let larger = filesystem(DISK + beyond);
            for finding in [Finding::One { kind, version }, Finding::Several] {
                prop_assert_eq!(own_signatures(finding, &larger, DISK), Vec::<&str>::new());
            }
        }
    }
}
