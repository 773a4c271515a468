//! What is on a disk: from the evidence of blkid and of our own reads to one conclusion.
//!
//! Decides only. The rule: *blank* is proved, never assumed. blkid answers 2 both for
//! "nothing found" and for "could not read" (kubernetes/kubernetes#142243), so its answer alone proves nothing.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::{fmt, iter::once, ops::Range};

use crate::{
    filesystem::{Completion, FilesystemType, Superblock, xfs_made_at},
    origin::Making,
    own_signature::{Finding, is_md_member, own_signatures},
};

/// How much of the beginning and of the end is read whole. Partition tables, and the superblocks of all filesystems,
/// RAIDs and volume managers that blkid knows, begin within this distance of an end.
pub const EDGE_BYTES: u64 = 1 << 20;
/// Number of samples between the ends.
pub const SAMPLES: u64 = 64;
/// Size of each sample.
pub const SAMPLE_BYTES: u64 = 64 << 10;

/// A disk of at most this size is read whole before it is called blank; of a larger one as much is read, in pieces.
pub const SURVEY_BYTES: u64 = 1 << 30;
/// Size of each piece.
pub const PIECE_BYTES: u64 = 256 << 10;
/// Positions and sizes of the survey are multiples of this, so that it may bypass the page cache: the largest logical
/// block of disks.
pub const SURVEY_ALIGNMENT: u64 = 4096;

/// The exit codes of blkid(8) with `-p`.
const BLKID_FOUND: i32 = 0;
const BLKID_NOTHING: i32 = 2;
const BLKID_AMBIVALENT: i32 = 8;

/// Everything that was read about a disk, under one exclusive open.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// What blkid answers.
    pub blkid: Answer,
    /// What it answers if it does not look for the signatures of [`own_kinds`]; `None`: it was not run again.
    pub without_own: Option<Answer>,
    /// Our own reads, or why one failed.
    pub samples: Result<Samples, String>,
}

/// How one run of `blkid -p -o export` ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its output.
    pub output: String,
    /// Its messages.
    pub errors: String,
}

/// What our own reads found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// Where the first byte that is not zero was read; `None`: all were zero.
    pub first_data: Option<u64>,
    /// Changes with any of the bytes of [`sample_ranges`]; compared right before mkfs.
    pub fingerprint: u64,
    /// The first bytes, for the superblock.
    pub head: Vec<u8>,
    /// The inode of the root directory of an xfs, which has its age.
    pub root_inode: Vec<u8>,
}

impl Evidence {
    /// What a filesystem of this type shows of its making.
    pub fn making(&self, filesystem: FilesystemType) -> Making {
        let Ok(samples) = &self.samples else { return Making::default() };
        let Some(superblock) = filesystem.superblock(&samples.head) else { return Making::default() };
        Making {
            uuid: Some(superblock.uuid),
            at: superblock.made_at.or_else(|| xfs_made_at(&samples.root_inode)),
        }
    }
}

/// What the disk contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing known is on it, and each byte read was zero.
    Blank {
        /// Of the bytes read.
        fingerprint: u64,
    },
    /// One filesystem.
    Filesystem {
        /// blkid's name for it.
        kind: String,
        /// How far mkfs came.
        completion: Completion,
        /// Of the bytes read.
        fingerprint: u64,
    },
    /// Its filesystem is mounted on this node already, so it cannot be opened exclusively and need not be probed.
    Mounted {
        /// As the mount table names it.
        kind: String,
    },
    /// A partition table.
    Partitioned {
        /// `gpt`, `dos`, …
        table: String,
    },
    /// Something that is no filesystem: LUKS, LVM, RAID, swap, …
    Foreign {
        /// blkid's name for it.
        kind: String,
    },
    /// Several signatures that contradict each other.
    Ambiguous {
        /// As text.
        detail: String,
    },
    /// No signature, but not all bytes are zero.
    UnknownData {
        /// Where the first of them was read.
        at: u64,
        /// Of the bytes read.
        fingerprint: u64,
    },
    /// It could not be read, so nothing is known.
    Unreadable {
        /// As text.
        reason: String,
    },
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank { .. } => f.write_str("nothing"),
            Self::Filesystem { kind, completion: Completion::Unfinished, .. } => {
                write!(f, "an unfinished {kind}")
            }
            Self::Filesystem { kind, .. } | Self::Mounted { kind } | Self::Foreign { kind } => {
                f.write_str(kind)
            }
            Self::Partitioned { table } => write!(f, "a {table} partition table"),
            Self::Ambiguous { detail } => write!(f, "contradicting signatures: {detail}"),
            Self::UnknownData { at, .. } => write!(f, "no known signature, but data at byte {at}"),
            Self::Unreadable { reason } => write!(f, "unreadable: {reason}"),
        }
    }
}

/// Weighs the evidence. Only an answer that is fully understood leads to [`Content::Blank`].
pub fn judge(evidence: &Evidence) -> Content {
    let samples = match &evidence.samples {
        Ok(samples) => samples,
        Err(reason) => return Content::Unreadable { reason: reason.clone() },
    };
    let content = read(&evidence.blkid, samples);
    let outvoted = matches!(content, Content::Foreign { .. } | Content::Ambiguous { .. });
    match evidence.without_own.as_ref().filter(|_| outvoted).map(|answer| read(answer, samples)) {
        // It has the signature of something else too, so it counts as finished: it is never formatted.
        Some(Content::Filesystem {
            kind,
            completion: Completion::Finished | Completion::Unused,
            fingerprint,
        }) if FilesystemType::parse(&kind).is_some() => {
            Content::Filesystem { kind, completion: Completion::Finished, fingerprint }
        }
        _ => content,
    }
}

/// The signatures that blkid must not look for, so that it finds the filesystem whose own data shows them. Empty: the
/// answer stands as it is.
pub fn own_kinds(answer: &Answer, samples: &Samples, disk_bytes: u64) -> Vec<&'static str> {
    if is_md_member(&samples.head) {
        return Vec::new();
    }
    let Some(superblock) = only_superblock(&samples.head) else { return Vec::new() };
    let value = |name: &str| answer.value(name);
    let (kind, version) = (value("TYPE"), value("VERSION"));
    let finding = match (answer.code, &kind, value("USAGE").as_deref(), value("PTTYPE")) {
        (Some(BLKID_AMBIVALENT), ..) => Finding::Several,
        (Some(BLKID_FOUND), Some(kind), usage, None) if usage != Some(FILESYSTEM) => {
            Finding::One { kind, version: version.as_deref() }
        }
        _ => return Vec::new(),
    };
    own_signatures(finding, &superblock, disk_bytes)
}

/// The superblock at the beginning of a disk, if there is exactly one of those that this driver reads.
fn only_superblock(head: &[u8]) -> Option<Superblock> {
    match (FilesystemType::Ext4.superblock(head), FilesystemType::Xfs.superblock(head)) {
        (Some(only), None) | (None, Some(only)) => Some(only),
        _ => None,
    }
}

fn read(answer: &Answer, samples: &Samples) -> Content {
    let fingerprint = samples.fingerprint;
    match answer.code {
        Some(BLKID_FOUND) => signature(answer, samples),
        Some(BLKID_NOTHING) if answer.output.trim().is_empty() => match samples.first_data {
            None => Content::Blank { fingerprint },
            Some(at) => Content::UnknownData { at, fingerprint },
        },
        Some(BLKID_AMBIVALENT) => Content::Ambiguous { detail: answer.words() },
        Some(code) => Content::Unreadable { reason: format!("blkid ended with {code} {}", answer.words()) },
        None => Content::Unreadable { reason: "blkid was killed".to_owned() },
    }
}

/// blkid's USAGE of filesystems.
const FILESYSTEM: &str = "filesystem";

impl Answer {
    /// Everything that it printed, on one line.
    pub fn words(&self) -> String {
        let all = format!("{} {}", self.output.trim(), self.errors.trim());
        all.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn value(&self, name: &str) -> Option<String> {
        export_values(&self.output).find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

fn signature(answer: &Answer, samples: &Samples) -> Content {
    match (answer.value("TYPE"), answer.value("PTTYPE"), answer.value("USAGE").as_deref()) {
        (Some(kind), None, Some(FILESYSTEM)) => {
            let superblock = FilesystemType::parse(&kind).and_then(|known| known.superblock(&samples.head));
            // A filesystem that we cannot read ourselves counts as finished: it is never formatted.
            let completion = superblock.map_or(Completion::Finished, |superblock| superblock.completion);
            Content::Filesystem { kind, completion, fingerprint: samples.fingerprint }
        }
        (Some(kind), None, _) => Content::Foreign { kind },
        (None, Some(table), _) => Content::Partitioned { table },
        (Some(kind), Some(table), _) => {
            Content::Ambiguous { detail: format!("{kind} and a {table} partition table") }
        }
        (None, None, _) => Content::Unreadable {
            reason: format!("blkid found something without a name: {}", answer.output.trim()),
        },
    }
}

/// The `NAME=value` lines of `blkid -o export`; it puts a backslash before characters that a shell would take.
pub fn export_values(output: &str) -> impl Iterator<Item = (&str, String)> {
    output.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let mut plain = String::with_capacity(value.len());
        let mut characters = value.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => plain.extend(characters.next()),
                other => plain.push(other),
            }
        }
        Some((name, plain))
    })
}

/// The ranges that are read of a disk of this size: both edges whole, samples at even distances between them.
pub fn sample_ranges(bytes: u64) -> Vec<Range<u64>> {
    let middle = EDGE_BYTES..bytes.saturating_sub(EDGE_BYTES);
    if middle.is_empty() {
        return once(0..bytes).collect();
    }
    let stride = (middle.end - middle.start) / SAMPLES;
    let between: Vec<Range<u64>> = if stride <= SAMPLE_BYTES {
        once(middle.clone()).collect()
    } else {
        (0..SAMPLES).map(|index| middle.start + index * stride).map(|at| at..at + SAMPLE_BYTES).collect()
    };
    once(0..EDGE_BYTES).chain(between).chain(once(middle.end..bytes)).collect()
}

/// The ranges that are read of a disk whose samples are all zero, before it is called blank: the whole disk, or pieces
/// at even distances over all of it and one at each place where filesystems keep copies of their superblocks.
pub fn survey_ranges(bytes: u64) -> Vec<Range<u64>> {
    if bytes <= SURVEY_BYTES {
        return once(0..bytes).collect();
    }
    let piece = |index| bytes / PIECES * index + bytes % PIECES * index / PIECES;
    let places = (0..PIECES).map(piece).chain(landmarks(bytes));
    let mut starts: Vec<u64> = places.map(|at| at - at % SURVEY_ALIGNMENT).collect();
    starts.sort_unstable();
    starts.into_iter().map(|start| start..bytes.min(start + PIECE_BYTES)).collect()
}

/// Data of at least this length is read by the survey wherever it lies; of data that is shorter, some may be missed.
pub fn survey_gap(bytes: u64) -> u64 {
    if bytes <= SURVEY_BYTES { 1 } else { bytes.div_ceil(PIECES) + SURVEY_ALIGNMENT - PIECE_BYTES + 1 }
}

/// Number of pieces of a survey.
const PIECES: u64 = SURVEY_BYTES / PIECE_BYTES;

/// Where filesystems keep copies of their superblock, which remain when the beginning was lost or overwritten.
fn landmarks(bytes: u64) -> Vec<u64> {
    // ext2/3/4 (`sparse_super`): the groups 1 and powers of 3, 5, 7; a group has 8 blocks for each byte of a block.
    const EXT_BLOCKS: [u64; 3] = [1 << 10, 2 << 10, 4 << 10];
    const EXT_GROUPS: [u64; 5] = [1, 3, 5, 7, 9];
    // btrfs: `btrfs_sb_offset`. Ceph's BlueStore: `BDEV_LABEL_POSITIONS`.
    const BTRFS: [u64; 2] = [64 << 20, 256 << 30];
    const BLUESTORE: [u64; 4] = [1 << 30, 10 << 30, 100 << 30, 1000 << 30];
    // xfs: mkfs makes four allocation groups, of 1 TiB at most, each with a superblock at its beginning.
    const XFS_GROUPS: u64 = 4;
    const XFS_BLOCK: u64 = 4 << 10;
    const XFS_LARGEST_GROUP: u64 = 1 << 40;
    let ext = EXT_BLOCKS.iter().flat_map(|block| EXT_GROUPS.map(|group| group * 8 * block * block));
    let xfs_group = ((bytes / XFS_BLOCK).div_ceil(XFS_GROUPS) * XFS_BLOCK).min(XFS_LARGEST_GROUP);
    let xfs = (1..XFS_GROUPS).map(|group| group * xfs_group);
    ext.chain(BTRFS).chain(BLUESTORE).chain(xfs).filter(|at| *at < bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::SUPERBLOCK_BYTES;
    use proptest::prelude::*;
    use rstest::rstest;

    fn samples(zero: bool) -> Samples {
        Samples {
            first_data: (!zero).then_some(9),
            fingerprint: 7,
            head: vec![0; SUPERBLOCK_BYTES],
            root_inode: Vec::new(),
        }
    }

    fn evidence(code: Option<i32>, output: &str, samples: Result<Samples, String>) -> Evidence {
        Evidence { blkid: answer(code, output), without_own: None, samples }
    }

    fn answer(code: Option<i32>, output: &str) -> Answer {
        Answer { code, output: output.into(), errors: String::new() }
    }

    const EXT4: &str = "DEVNAME=/dev/sda\nUUID=a\nTYPE=ext4\nUSAGE=filesystem\n";
    const GPT: &str = "DEVNAME=/dev/sda\nPTUUID=a\nPTTYPE=gpt\n";

    #[rstest]
    #[case(Some(2), "", samples(true), Content::Blank { fingerprint: 7 })]
    #[case(Some(2), "", samples(false), Content::UnknownData { at: 9, fingerprint: 7 })]
    #[case(Some(0), EXT4, samples(false), Content::Filesystem { kind: "ext4".into(), completion: Completion::Finished, fingerprint: 7 })]
    #[case(Some(0), GPT, samples(false), Content::Partitioned { table: "gpt".into() })]
    #[case(Some(0), "TYPE=LVM2_member\nUSAGE=raid\n", samples(false), Content::Foreign { kind: "LVM2_member".into() })]
    #[case(Some(0), "TYPE=crypto_LUKS\nUSAGE=crypto\n", samples(true), Content::Foreign { kind: "crypto_LUKS".into() })]
    #[case(Some(0), "TYPE=swap\nUSAGE=other\n", samples(true), Content::Foreign { kind: "swap".into() })]
    fn verdicts(
        #[case] code: Option<i32>,
        #[case] output: &str,
        #[case] samples: Samples,
        #[case] content: Content,
    ) {
        assert_eq!(judge(&evidence(code, output, Ok(samples))), content);
    }

    #[rstest]
    #[case(Some(8), "")]
    #[case(Some(0), "TYPE=ext4\nUSAGE=filesystem\nPTTYPE=dos\n")]
    fn contradictions_are_ambiguous(#[case] code: Option<i32>, #[case] output: &str) {
        assert!(matches!(judge(&evidence(code, output, Ok(samples(true)))), Content::Ambiguous { .. }));
    }

    #[test]
    fn a_read_error_outweighs_all_else() {
        for code in [Some(2), Some(0), None] {
            let verdict = judge(&evidence(code, EXT4, Err("Input/output error".into())));
            assert!(matches!(verdict, Content::Unreadable { .. }), "{verdict:?}");
        }
    }

    const JMICRON: &str = "DEVNAME=/dev/sda\nVERSION=0.0\nTYPE=jmicron_raid_member\nUSAGE=raid\n";
    const DISK: u64 = 64 << 20;

    /// The head of an ext4 with blocks of 1 KiB.
    fn ext4_of(bytes: u64) -> Samples {
        let mut samples = samples(false);
        let blocks = u32::try_from(bytes >> 10).unwrap();
        samples.head[1024 + 4..1024 + 8].copy_from_slice(&blocks.to_le_bytes());
        samples.head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
        samples
    }

    const MD_AT_END: &str = "DEVNAME=/dev/sda\nVERSION=1.0\nTYPE=linux_raid_member\nUSAGE=raid\n";

    /// The head of an ext4 with md's magic at this place.
    fn ext4_with_md(at: usize) -> Samples {
        let mut samples = ext4_of(DISK);
        samples.head[at..at + 4].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9]);
        samples
    }

    #[rstest]
    #[case::weak(JMICRON, ext4_of(DISK), true)]
    #[case::no_superblock(JMICRON, samples(false), false)]
    #[case::blank(JMICRON, samples(true), false)]
    #[case::luks("TYPE=crypto_LUKS\nUSAGE=crypto\n", ext4_of(DISK), false)]
    #[case::with_a_partition_table(
        "TYPE=jmicron_raid_member\nUSAGE=raid\nPTTYPE=dos\n",
        ext4_of(DISK),
        false
    )]
    #[case::filesystem(EXT4, ext4_of(DISK), false)]
    #[case::too_large(JMICRON, ext4_of(2 * DISK), false)]
    #[case::md_1_0(MD_AT_END, ext4_of(DISK), true)]
    #[case::md_1_2_and_1_0(MD_AT_END, ext4_with_md(4096), false)]
    #[case::md_1_1_and_1_0(MD_AT_END, ext4_with_md(0), false)]
    #[case::md_1_1(JMICRON, ext4_with_md(0), false)]
    #[case::md_1_2(JMICRON, ext4_with_md(4096), false)]
    fn blkid_is_run_again_only_over_a_good_superblock(
        #[case] output: &str,
        #[case] samples: Samples,
        #[case] is_run: bool,
    ) {
        assert_eq!(!own_kinds(&answer(Some(0), output), &samples, DISK).is_empty(), is_run);
    }

    #[rstest]
    #[case::good(Some(0), EXT4, true)]
    #[case::another_filesystem(Some(0), "TYPE=btrfs\nUSAGE=filesystem\n", false)]
    #[case::nothing(Some(2), "", false)]
    #[case::still_several(Some(8), "", false)]
    #[case::something_stronger(Some(0), "TYPE=crypto_LUKS\nUSAGE=crypto\n", false)]
    #[case::killed(None, EXT4, false)]
    fn a_good_superblock_outvotes_a_signature_in_its_own_data_and_is_never_formatted(
        #[case] code: Option<i32>,
        #[case] output: &str,
        #[case] is_used: bool,
    ) {
        for (first, content) in [
            (answer(Some(0), JMICRON), Content::Foreign { kind: "jmicron_raid_member".into() }),
            (answer(Some(8), ""), Content::Ambiguous { detail: String::new() }),
        ] {
            let without_own = Some(answer(code, output));
            let verdict = judge(&Evidence { blkid: first, without_own, samples: Ok(ext4_of(DISK)) });
            let used =
                Content::Filesystem { kind: "ext4".into(), completion: Completion::Finished, fingerprint: 7 };
            assert_eq!(verdict, if is_used { used } else { content });
        }
    }

    #[test]
    fn several_signatures_never_hide_md_at_the_beginning() {
        for (samples, is_run) in
            [(ext4_of(DISK), true), (ext4_with_md(0), false), (ext4_with_md(4096), false)]
        {
            assert_eq!(!own_kinds(&answer(Some(8), ""), &samples, DISK).is_empty(), is_run);
        }
    }

    #[test]
    fn a_second_answer_never_makes_a_disk_blank() {
        let second = Some(answer(Some(0), EXT4));
        for first in [answer(Some(2), ""), answer(Some(0), GPT), answer(None, "")] {
            let alone = Evidence { blkid: first, without_own: None, samples: Ok(samples(true)) };
            let both = Evidence { without_own: second.clone(), ..alone.clone() };
            assert_eq!(judge(&both), judge(&alone));
        }
    }

    #[test]
    fn samples_cover_both_edges_and_stay_inside() {
        assert_eq!(sample_ranges(4096), once(0..4096).collect::<Vec<_>>());
        let small = sample_ranges(4 << 20);
        assert_eq!(small, vec![0..1 << 20, 1 << 20..3 << 20, 3 << 20..4 << 20], "a small disk is read whole");
        assert_eq!(sample_ranges(1 << 40).len(), 66);
    }

    #[test]
    fn a_small_disk_is_surveyed_whole_and_a_large_one_at_its_landmarks() {
        assert_eq!(survey_ranges(SURVEY_BYTES), once(0..SURVEY_BYTES).collect::<Vec<_>>());
        for bytes in [10 << 30, 2 << 40] {
            let ranges = survey_ranges(bytes);
            // ext4's first backup, btrfs's first mirror, xfs's second group.
            for at in [128 << 20, (64 << 20) + 64, bytes / 4] {
                assert!(ranges.iter().any(|range| range.contains(&at)), "{at} of {bytes}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_survey_stays_inside_is_bounded_and_meets_all_that_is_longer_than_its_gap(
            bytes in 1_u64..(64 << 30),
            large in any::<bool>(),
            place in 0.0..1.0_f64,
        ) {
            let bytes = if large { bytes * 1024 } else { bytes } / 512 * 512 + 512;
            let ranges = survey_ranges(bytes);
            let read: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            prop_assert!(read <= SURVEY_BYTES + 64 * PIECE_BYTES);
            for range in &ranges {
                prop_assert!(range.start < range.end && range.end <= bytes);
                prop_assert!(range.start % SURVEY_ALIGNMENT == 0);
            }
            let gap = survey_gap(bytes);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                     reason = "any place will do")]
            let start = (place * (bytes.saturating_sub(gap)) as f64) as u64;
            let data = start..(start + gap).min(bytes);
            // The edges are read whole by the samples.
            let edges = [0..EDGE_BYTES.min(bytes), bytes.saturating_sub(EDGE_BYTES)..bytes];
            let meets = |range: &Range<u64>| range.start < data.end && data.start < range.end;
            prop_assert!(ranges.iter().chain(&edges).any(meets), "{data:?} of {bytes} is missed");
        }

        #[test]
        fn only_an_understood_answer_over_zeros_is_blank(
            code in proptest::option::of(-1_i32..20),
            output in prop_oneof![Just(String::new()), "[ -~\n]{0,80}"],
            zero in any::<bool>(),
            readable in any::<bool>(),
        ) {
            let own = if readable { Ok(samples(zero)) } else { Err("EIO".into()) };
            let verdict = judge(&evidence(code, &output, own));
            if let Content::Blank { .. } = verdict {
                prop_assert!(code == Some(2) && zero && readable && output.trim().is_empty());
            }
        }

        #[test]
        fn exported_values_come_back(name in "[A-Z_]{1,12}", value in "[ -~]{0,40}") {
            let escaped: String =
                value.chars().flat_map(|c| if c.is_ascii_alphanumeric() { vec![c] } else { vec!['\\', c] }).collect();
            let line = format!("{name}={escaped}\n");
            prop_assert_eq!(export_values(&line).collect::<Vec<_>>(), vec![(name.as_str(), value)]);
        }

        #[test]
        fn ranges_are_ordered_disjoint_and_reach_both_ends(bytes in 1_u64..(64 << 40)) {
            let ranges = sample_ranges(bytes);
            prop_assert_eq!(ranges[0].start, 0);
            prop_assert_eq!(ranges[ranges.len() - 1].end, bytes);
            for range in &ranges {
                prop_assert!(range.start < range.end);
            }
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start);
            }
        }
    }
}
