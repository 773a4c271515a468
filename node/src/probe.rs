//! What is on a disk: the evidence of blkid and of our own reads → one verdict.
//!
//! Decides only. The one rule that everything else serves: *blank* is proved, never assumed. blkid answers 2 both for
//! "nothing found" and for "could not read" (kubernetes/kubernetes#142243), so its answer alone proves nothing.

use std::fmt;
use std::iter::once;
use std::ops::Range;

use crate::filesystem::FilesystemType;

/// How much of the beginning and of the end is read whole. Partition tables, and the superblocks of all filesystems,
/// RAIDs and volume managers that blkid knows, begin within this distance of an end.
pub const EDGE_BYTES: u64 = 1 << 20;
/// Number of samples between the ends.
pub const SAMPLES: u64 = 64;
/// Size of each sample.
pub const SAMPLE_BYTES: u64 = 64 << 10;

/// The exit codes of blkid(8) with `-p`.
const BLKID_FOUND: i32 = 0;
const BLKID_NOTHING: i32 = 2;
const BLKID_AMBIVALENT: i32 = 8;

/// Everything that was read about a disk, under one exclusive open.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// Exit code of `blkid -p -o export`; `None` when a signal ended it.
    pub blkid_code: Option<i32>,
    /// Its output.
    pub blkid_output: String,
    /// Its messages.
    pub blkid_errors: String,
    /// Our own reads, or why one failed.
    pub samples: Result<Samples, String>,
}

/// What our own reads found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// Each byte read was zero.
    pub zero: bool,
    /// Changes with any of the bytes read; compared right before mkfs.
    pub fingerprint: u64,
    /// The first bytes, for the superblock.
    pub head: Vec<u8>,
}

/// The verdict.
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
        /// Its mkfs came to the end, as far as the superblock tells.
        finished: bool,
        /// Of the bytes read.
        fingerprint: u64,
    },
    /// Its filesystem is mounted on this node already, so it can not be opened exclusively and need not be probed.
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
        /// In words.
        detail: String,
    },
    /// No signature, but not all bytes are zero.
    UnknownData {
        /// Of the bytes read.
        fingerprint: u64,
    },
    /// It could not be read, so nothing is known.
    Unreadable {
        /// In words.
        reason: String,
    },
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank { .. } => f.write_str("nothing"),
            Self::Filesystem { kind, finished: true, .. }
            | Self::Mounted { kind }
            | Self::Foreign { kind } => f.write_str(kind),
            Self::Filesystem { kind, finished: false, .. } => write!(f, "an unfinished {kind}"),
            Self::Partitioned { table } => write!(f, "a {table} partition table"),
            Self::Ambiguous { detail } => write!(f, "contradicting signatures: {detail}"),
            Self::UnknownData { .. } => f.write_str("no known signature, but data"),
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
    let fingerprint = samples.fingerprint;
    match evidence.blkid_code {
        Some(BLKID_FOUND) => signature(&evidence.blkid_output, samples),
        Some(BLKID_NOTHING) if evidence.blkid_output.trim().is_empty() => {
            if samples.zero {
                Content::Blank { fingerprint }
            } else {
                Content::UnknownData { fingerprint }
            }
        }
        Some(BLKID_AMBIVALENT) => Content::Ambiguous { detail: words(evidence) },
        Some(code) => Content::Unreadable { reason: format!("blkid ended with {code} {}", words(evidence)) },
        None => Content::Unreadable { reason: "blkid was killed".to_owned() },
    }
}

fn words(evidence: &Evidence) -> String {
    let all = format!("{} {}", evidence.blkid_output.trim(), evidence.blkid_errors.trim());
    all.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn signature(output: &str, samples: &Samples) -> Content {
    let value = |name: &str| export_values(output).find(|(key, _)| *key == name).map(|(_, value)| value);
    match (value("TYPE"), value("PTTYPE"), value("USAGE").as_deref()) {
        (Some(kind), None, Some("filesystem")) => {
            let superblock = FilesystemType::parse(&kind).and_then(|known| known.superblock(&samples.head));
            // A filesystem that we can not read ourselves counts as finished: it is never formatted.
            let finished = superblock.is_none_or(|superblock| superblock.finished);
            Content::Filesystem { kind, finished, fingerprint: samples.fingerprint }
        }
        (Some(kind), None, _) => Content::Foreign { kind },
        (None, Some(table), _) => Content::Partitioned { table },
        (Some(kind), Some(table), _) => {
            Content::Ambiguous { detail: format!("{kind} and a {table} partition table") }
        }
        (None, None, _) => {
            Content::Unreadable { reason: format!("blkid found something without a name: {}", output.trim()) }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn samples(zero: bool) -> Samples {
        Samples { zero, fingerprint: 7, head: vec![0; 4096] }
    }

    fn evidence(code: Option<i32>, output: &str, samples: Result<Samples, String>) -> Evidence {
        Evidence { blkid_code: code, blkid_output: output.into(), blkid_errors: String::new(), samples }
    }

    const EXT4: &str = "DEVNAME=/dev/sda\nUUID=a\nTYPE=ext4\nUSAGE=filesystem\n";
    const GPT: &str = "DEVNAME=/dev/sda\nPTUUID=a\nPTTYPE=gpt\n";

    #[rstest]
    #[case(Some(2), "", samples(true), Content::Blank { fingerprint: 7 })]
    #[case(Some(2), "", samples(false), Content::UnknownData { fingerprint: 7 })]
    #[case(Some(0), EXT4, samples(false), Content::Filesystem { kind: "ext4".into(), finished: true, fingerprint: 7 })]
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

    #[test]
    fn samples_cover_both_edges_and_stay_inside() {
        assert_eq!(sample_ranges(4096), once(0..4096).collect::<Vec<_>>());
        let small = sample_ranges(4 << 20);
        assert_eq!(small, vec![0..1 << 20, 1 << 20..3 << 20, 3 << 20..4 << 20], "a small disk is read whole");
        assert_eq!(sample_ranges(1 << 40).len(), 66);
    }

    proptest! {
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
