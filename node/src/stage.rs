//! `NodeStageVolume` of a filesystem: what was requested and what is there → the steps that are still needed.
//!
//! Decides only, and never formats on anything but proof. A plan after its own steps is empty.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::path::PathBuf;

use crate::{
    device::{Disk, DiskUse, Serial, check},
    disk_record::DiskRecord,
    error::{Error, Result},
    filesystem::{Completion, FilesystemType, GROW_THRESHOLD_BYTES},
    mount_options::{Flag, MountOptions},
    mount_table::{Mount, MountTable},
    origin::{Making, Origin},
    path_state::PathState,
    probe::Content,
    step::{MkfsRecord, Step},
};

/// The request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Volume id.
    pub volume: String,
    /// Serial of the volume.
    pub serial: Serial,
    /// Where to mount.
    pub staging: PathBuf,
    /// As what; made when the disk is blank.
    pub filesystem: FilesystemType,
    /// How; read-only is one of the flags.
    pub options: MountOptions,
    /// What the controller role says of its content.
    pub origin: Origin,
}

/// What was observed.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The volume's disk.
    pub disk: Disk,
    /// The whole mount table.
    pub mounts: MountTable,
    /// The staging path itself.
    pub path: PathState,
    /// The topmost mount at the staging path belongs to a disk that is gone, or answers with an error.
    pub stale: bool,
    /// The record of the disk, where it is not written yet.
    pub disk_record: Option<DiskRecord>,
    /// Record of a mkfs that was started from here; only readable while nothing is mounted.
    pub record: Option<MkfsRecord>,
    /// What the disk holds; probed only while nothing is mounted at the staging path.
    pub content: Option<Content>,
    /// What the filesystem on the disk shows of its making; probed with the content.
    pub making: Making,
    /// Size of the mounted filesystem, where it is known.
    pub filesystem_bytes: Option<u64>,
    /// Why the mounted filesystem takes no writes although its mount is writable.
    pub write_refusal: Option<String>,
}

/// What to do with the disk's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Mount what is there.
    Use,
    /// Another mount on this node has it already: no check, no mkfs.
    Share,
    /// Proved blank: format.
    FormatBlank(u64),
    /// Left by a mkfs of ours: format.
    FormatResumed(u64),
    /// Left by a mkfs of ours with a superblock: clear that first.
    ClearResumed(u64),
    /// Data of an unknown kind, and the operator allows to format it.
    FormatAllowed(u64),
}

impl Decision {
    /// Every value of the metric's label.
    pub const LABELS: [&str; 5] =
        ["use_existing", "use_mounted", "format_blank", "format_resumed", "format_nonzero_allowed"];

    /// Value of the metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Use => "use_existing",
            Self::Share => "use_mounted",
            Self::FormatBlank(_) => "format_blank",
            Self::FormatResumed(_) | Self::ClearResumed(_) => "format_resumed",
            Self::FormatAllowed(_) => "format_nonzero_allowed",
        }
    }
}

/// Advice to the user on data of an unknown kind. No advice tells to destroy what is on the disk: who follows it may
/// not know whose data it is. The troubleshooting guide has the steps in their order.
const UNKNOWN_DATA_REMEDY: &str = "find out whose data it is; if this infra storage does not zero its new volumes, the \
     StorageClass can allow to format such disks (allowFormatNonzero), or the node role (--allow-format-nonzero)";
/// Advice to the user on what an unrecorded mkfs has left.
const UNFINISHED_REMEDY: &str =
    "its mkfs did not end, on another node or by another program; find out whose it is";
/// Advice to the user on known content that is no filesystem of ours.
const FOREIGN_REMEDY: &str = "find out whose data it is (blkid -p and wipefs --no-act show what is on it); if it is \
     not a filesystem, use it as a block volume";

/// Advice to the user on data that could be formatted, on a disk that is too small for it.
const TOO_SMALL_REMEDY: &str = "it is too small for the filesystem that was asked for; find out whose data it is, and \
     create a larger volume";

/// Decides what to do with a disk's content.
///
/// # Errors
/// Each content that is neither the wanted filesystem nor proved free to be formatted.
pub fn decide(
    wanted: &Wanted,
    observed: &Observed,
    content: &Content,
    allow_nonzero: bool,
) -> Result<Decision> {
    let name = || observed.disk.name.clone();
    let not_blank = |remedy| Err(Error::NotBlank { name: name(), what: content.to_string(), remedy });
    let resumed = observed.record.as_ref().is_some_and(|record| {
        record.serial == wanted.serial.as_str() && record.filesystem == wanted.filesystem
    });
    // A mkfs that an earlier version of the node role began on a copy is brought to its end.
    let is_copy = wanted.origin.copied && !resumed;
    let allow_nonzero = (allow_nonzero || wanted.origin.format_nonzero) && !is_copy;
    let decision = match content {
        Content::Mounted { kind } if kind == wanted.filesystem.name() => Decision::Share,
        // The record shows that mkfs did not end, and the superblock shows that nothing was written since.
        Content::Filesystem {
            kind,
            completion: Completion::Unfinished | Completion::Unused,
            fingerprint,
        } if resumed && kind == wanted.filesystem.name() => Decision::ClearResumed(*fingerprint),
        Content::Filesystem { completion: Completion::Unfinished, .. } => {
            return not_blank(UNFINISHED_REMEDY);
        }
        Content::Filesystem { kind, .. } if kind == wanted.filesystem.name() => {
            if let Some(blank) = wanted.origin.made_blank
                && !resumed
                && !blank.is_own(&observed.making)
            {
                let (found, uuid) = (kind.clone(), blank.uuid.to_string());
                return Err(Error::ForeignFilesystem { name: name(), found, uuid });
            }
            Decision::Use
        }
        Content::Filesystem { kind, .. } | Content::Mounted { kind } => {
            let (found, wanted) = (kind.clone(), wanted.filesystem.to_string());
            return Err(Error::OtherFilesystem { name: name(), found, wanted });
        }
        Content::Blank { .. } if is_copy => {
            return Err(Error::BlankCopy { name: name(), filesystem: wanted.filesystem.name() });
        }
        Content::Blank { fingerprint } => Decision::FormatBlank(*fingerprint),
        Content::UnknownData { fingerprint, .. } if resumed => Decision::FormatResumed(*fingerprint),
        Content::UnknownData { fingerprint, .. } if allow_nonzero => Decision::FormatAllowed(*fingerprint),
        Content::UnknownData { .. } => return not_blank(UNKNOWN_DATA_REMEDY),
        Content::Partitioned { .. } | Content::Foreign { .. } | Content::Ambiguous { .. } => {
            return not_blank(FOREIGN_REMEDY);
        }
        Content::Unreadable { reason } => {
            return Err(Error::DiskUnreadable { name: name(), reason: reason.clone() });
        }
    };
    let formats = !matches!(decision, Decision::Use | Decision::Share);
    if formats && (wanted.options.read_only() || observed.disk.read_only) {
        return Err(Error::ReadOnlyBlank { name: name() });
    }
    let (bytes, least) = (observed.disk.bytes, wanted.filesystem.least_bytes());
    if formats && bytes < least {
        // Only a blank disk is named too small: of any other, the data on it is what the user must hear of first.
        return match decision {
            Decision::FormatBlank(_) => {
                Err(Error::DiskTooSmall { name: name(), bytes, filesystem: wanted.filesystem.name(), least })
            }
            _ => not_blank(TOO_SMALL_REMEDY),
        };
    }
    Ok(decision)
}

/// Plans the next steps. Empty when the volume is staged as asked.
pub fn plan(wanted: &Wanted, observed: &Observed, allow_nonzero: bool) -> Result<Vec<Step>> {
    let here = observed.mounts.at(&wanted.staging);
    if let Some(top) = here.last() {
        if observed.stale {
            return Ok(vec![Step::Unmount { target: wanted.staging.clone() }; here.len()]);
        }
        return mounted(wanted, observed, top);
    }
    check(&observed.disk, DiskUse::Filesystem, &observed.mounts, &wanted.staging)?;
    let content = observed.content.as_ref().ok_or(Error::NotSettled("the probe of the disk"))?;
    let decision = decide(wanted, observed, content, allow_nonzero)?;
    let mut steps = directory(wanted, observed)?;
    steps.extend(prepare(wanted, observed, decision));
    if !matches!(decision, Decision::ClearResumed(_)) {
        steps.extend(observed.disk_record.clone().map(Step::WriteDiskRecord));
        steps.push(mount(wanted, observed));
    }
    Ok(steps)
}

fn directory(wanted: &Wanted, observed: &Observed) -> Result<Vec<Step>> {
    match &observed.path {
        PathState::Missing => Ok(vec![Step::CreateDirectory(wanted.staging.clone())]),
        PathState::Directory => Ok(Vec::new()),
        other => Err(Error::MountConflict {
            path: wanted.staging.clone(),
            found: other.to_string(),
            wanted: "a directory".to_owned(),
        }),
    }
}

/// The steps between the decision and the mount.
fn prepare(wanted: &Wanted, observed: &Observed, decision: Decision) -> Vec<Step> {
    let (disk, filesystem, staging) = (observed.disk.clone(), wanted.filesystem, wanted.staging.clone());
    let record = MkfsRecord { serial: wanted.serial.as_str().to_owned(), filesystem };
    let remove = observed.record.as_ref().map(|_| Step::RemoveMkfsRecord { staging: staging.clone() });
    match decision {
        Decision::Share => remove.into_iter().collect(),
        Decision::Use if wanted.options.read_only() || disk.read_only => remove.into_iter().collect(),
        Decision::Use => remove.into_iter().chain([Step::Check { disk, filesystem }]).collect(),
        // The bytes change, so the disk is probed again before it is formatted.
        Decision::ClearResumed(fingerprint) => vec![Step::ClearUnfinished { disk, fingerprint }],
        Decision::FormatBlank(fingerprint)
        | Decision::FormatResumed(fingerprint)
        | Decision::FormatAllowed(fingerprint) => vec![
            Step::WriteMkfsRecord { staging: staging.clone(), record },
            Step::Format {
                disk,
                filesystem,
                fingerprint,
                uuid: wanted.origin.made_blank.map(|blank| blank.uuid),
            },
            Step::RemoveMkfsRecord { staging },
        ],
    }
}

fn mount(wanted: &Wanted, observed: &Observed) -> Step {
    Step::Mount {
        disk: observed.disk.clone(),
        filesystem: wanted.filesystem,
        options: wanted.options.clone().with_defaults(wanted.filesystem.mount_defaults()),
        target: wanted.staging.clone(),
    }
}

/// Something is mounted at the staging path: it is what was requested, or a conflict.
fn mounted(wanted: &Wanted, observed: &Observed, top: &Mount) -> Result<Vec<Step>> {
    let conflict = |found: String, wanted_text: String| {
        Err(Error::MountConflict { path: wanted.staging.clone(), found, wanted: wanted_text })
    };
    if top.number != observed.disk.number {
        let ours = format!("{} ({})", observed.disk.name, observed.disk.number);
        return conflict(format!("device {}", top.number), ours);
    }
    if top.fs_type != wanted.filesystem.name() {
        return conflict(top.fs_type.clone(), wanted.filesystem.to_string());
    }
    if !top.read_only() && wanted.options.read_only() {
        return conflict("a writable mount".to_owned(), "a read-only one".to_owned());
    }
    if !wanted.options.read_only()
        && let Some(reason) = top.write_refusal(observed.write_refusal.as_deref())
    {
        return Err(Error::NotWritable { path: wanted.staging.clone(), reason });
    }
    if let Some(flag) = wanted.options.difference(&top.words()) {
        let has = top.words().contains(flag);
        let with = |set: bool| if set { format!("with {flag}") } else { format!("without {flag}") };
        return conflict(with(has), with(!has));
    }
    let record = observed.disk_record.clone().map(Step::WriteDiskRecord);
    Ok(record.into_iter().chain(grow(wanted, observed)).collect())
}

fn grow(wanted: &Wanted, observed: &Observed) -> Option<Step> {
    if wanted.options.flags.contains(&Flag::ReadOnly) || observed.disk.read_only {
        return None;
    }
    let unused = observed.disk.bytes.saturating_sub(observed.filesystem_bytes?);
    (unused > GROW_THRESHOLD_BYTES).then(|| Step::Grow {
        disk: observed.disk.clone(),
        filesystem: wanted.filesystem,
        mount_point: wanted.staging.clone(),
    })
}

#[cfg(test)]
mod tests;
