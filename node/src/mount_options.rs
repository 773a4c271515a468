//! Mount flags of a volume capability → what mount(2) takes: generic flags, and the rest as text for the filesystem.
//!
//! Decides only how an option is classed. Whether a filesystem knows an option is the kernel's answer at mount time.

use std::{collections::BTreeSet, fmt};

use csi_call::mount_flags;

/// A generic flag of mount(2), named as `/proc/self/mountinfo` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are those of mount(8)")]
pub enum Flag {
    ReadOnly,
    NoSuid,
    NoDev,
    NoExec,
    Synchronous,
    DirSync,
    NoAtime,
    NoDirAtime,
    RelAtime,
    StrictAtime,
    LazyTime,
}

/// Option, its flag, and whether the option sets or clears it. mount(8) lists them as filesystem-independent options.
const WORDS: &[(&str, Flag, bool)] = &[
    ("ro", Flag::ReadOnly, true),
    ("rw", Flag::ReadOnly, false),
    ("nosuid", Flag::NoSuid, true),
    ("suid", Flag::NoSuid, false),
    ("nodev", Flag::NoDev, true),
    ("dev", Flag::NoDev, false),
    ("noexec", Flag::NoExec, true),
    ("exec", Flag::NoExec, false),
    ("sync", Flag::Synchronous, true),
    ("async", Flag::Synchronous, false),
    ("dirsync", Flag::DirSync, true),
    ("noatime", Flag::NoAtime, true),
    ("atime", Flag::NoAtime, false),
    ("nodiratime", Flag::NoDirAtime, true),
    ("diratime", Flag::NoDirAtime, false),
    ("relatime", Flag::RelAtime, true),
    ("norelatime", Flag::RelAtime, false),
    ("strictatime", Flag::StrictAtime, true),
    ("nostrictatime", Flag::StrictAtime, false),
    ("lazytime", Flag::LazyTime, true),
    ("nolazytime", Flag::LazyTime, false),
];

/// Options for mount(8) or fstab, which never reach the kernel.
const FOR_MOUNT_PROGRAM: &[&str] =
    &["defaults", "auto", "noauto", "_netdev", "nofail", "user", "nouser", "users", "group", "owner"];

/// Flags whose difference makes a mount another mount. The atime family but `noatime` is left out: the kernel adds
/// `relatime` by itself. Read-only is compared apart.
const COMPARED: &[Flag] =
    &[Flag::NoSuid, Flag::NoDev, Flag::NoExec, Flag::Synchronous, Flag::DirSync, Flag::NoAtime];

impl Flag {
    /// The option that sets the flag; `mountinfo` prints the same.
    pub fn word(self) -> &'static str {
        match self {
            Self::ReadOnly => "ro",
            Self::NoSuid => "nosuid",
            Self::NoDev => "nodev",
            Self::NoExec => "noexec",
            Self::Synchronous => "sync",
            Self::DirSync => "dirsync",
            Self::NoAtime => "noatime",
            Self::NoDirAtime => "nodiratime",
            Self::RelAtime => "relatime",
            Self::StrictAtime => "strictatime",
            Self::LazyTime => "lazytime",
        }
    }
}

/// The options of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Generic flags.
    pub flags: BTreeSet<Flag>,
    /// Options of the filesystem itself, in their order.
    pub data: Vec<String>,
}

impl MountOptions {
    /// Classes the `mount_flags` of a capability; an element may hold several options, split by commas.
    ///
    /// # Errors
    /// The option that would change what is mounted (`bind`, `remount`, …).
    pub fn parse<S: AsRef<str>>(given: &[S]) -> Result<Self, String> {
        let mut options = Self::default();
        for word in mount_flags::options(given) {
            if word.is_empty() || FOR_MOUNT_PROGRAM.contains(&word) || word.starts_with("x-") {
                continue;
            }
            if mount_flags::is_refused(word) {
                return Err(word.to_owned());
            }
            match WORDS.iter().find(|(known, _, _)| *known == word) {
                Some((_, flag, true)) => drop(options.flags.insert(*flag)),
                Some((_, flag, false)) => drop(options.flags.remove(flag)),
                None => options.data.push(word.to_owned()),
            }
        }
        Ok(options)
    }

    /// With these options of the filesystem in front, unless they are there already.
    #[must_use]
    pub fn with_defaults(mut self, defaults: &[&str]) -> Self {
        for option in defaults.iter().rev() {
            if !self.data.iter().any(|given| given == option) {
                self.data.insert(0, (*option).to_owned());
            }
        }
        self
    }

    /// Read-only was asked for.
    pub fn read_only(&self) -> bool {
        self.flags.contains(&Flag::ReadOnly)
    }

    /// The first compared flag in which `shown` (options in mountinfo) differs from this; `None` when they agree.
    pub fn difference(&self, shown: &BTreeSet<String>) -> Option<&'static str> {
        COMPARED
            .iter()
            .find(|flag| self.flags.contains(flag) != shown.contains(flag.word()))
            .map(|flag| flag.word())
    }

    /// The flags among the options in mountinfo.
    pub fn flags_in(shown: &BTreeSet<String>) -> BTreeSet<Flag> {
        WORDS
            .iter()
            .filter(|(word, _, sets)| *sets && shown.contains(*word))
            .map(|(_, flag, _)| *flag)
            .collect()
    }
}

impl fmt::Display for MountOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> =
            self.flags.iter().map(|flag| flag.word()).chain(self.data.iter().map(String::as_str)).collect();
        f.write_str(&if words.is_empty() { "defaults".to_owned() } else { words.join(",") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&["noatime"], &[Flag::NoAtime], &[])]
    #[case(&["ro", "rw"], &[], &[])]
    #[case(&["noexec,discard", "commit=30"], &[Flag::NoExec], &["discard", "commit=30"])]
    #[case(&["defaults", "_netdev", "x-systemd.automount", ""], &[], &[])]
    #[case(&["context=\"u:r:t:s0:c1,c2\",nosuid"], &[Flag::NoSuid], &["context=\"u:r:t:s0:c1,c2\""])]
    fn words_are_classed(#[case] given: &[&str], #[case] flags: &[Flag], #[case] data: &[&str]) {
        let options = MountOptions::parse(given).unwrap();
        assert_eq!(options.flags, flags.iter().copied().collect());
        assert_eq!(options.data, data);
    }

    #[rstest]
    #[case("bind")]
    #[case("remount")]
    #[case("loop=/dev/loop3")]
    fn words_that_change_what_is_mounted_are_refused(#[case] word: &str) {
        assert_eq!(MountOptions::parse(&[word]), Err(word.to_owned()));
    }

    #[test]
    fn a_difference_counts_both_ways_but_not_for_what_the_kernel_adds() {
        let shown = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<BTreeSet<_>>();
        let options = MountOptions::parse(&["noexec", "discard"]).unwrap();
        assert_eq!(options.difference(&shown(&["rw", "noexec", "relatime"])), None);
        assert_eq!(options.difference(&shown(&["rw", "relatime"])), Some("noexec"));
        assert_eq!(options.difference(&shown(&["noexec", "nosuid"])), Some("nosuid"));
    }

    #[test]
    fn each_flag_is_set_by_its_own_word() {
        for (word, flag, sets) in WORDS {
            assert_eq!(flag.word() == *word, *sets, "{word}");
        }
    }

    #[test]
    fn defaults_come_once() {
        let options = MountOptions::parse(&["nouuid"]).unwrap().with_defaults(&["nouuid"]);
        assert_eq!(options.data, ["nouuid"]);
    }
}
