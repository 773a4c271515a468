//! `NodePublishVolume` and `NodeUnpublishVolume`: what was requested and what is there → the steps that are still
//! needed.
//!
//! Decides only. A filesystem is published by binding its staging mount, a block volume by binding its device node.
//! Unpublishing also serves the older layout, in which the disk itself is mounted at the target.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::path::{Path, PathBuf};

use crate::{
    device_number::DeviceNumber,
    error::{Error, Result},
    mount_options::MountOptions,
    mount_table::{Mount, MountTable},
    path_state::PathState,
    step::Step,
};

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The filesystem that is mounted at this staging path.
    Staging(PathBuf),
    /// The disk with this device node.
    Node {
        /// Path of the node.
        path: PathBuf,
        /// Its number.
        number: DeviceNumber,
    },
}

/// The request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What.
    pub source: Source,
    /// Where.
    pub target: PathBuf,
    /// The pod may only read. A read-only bind does not keep anyone from writing to a device node: for block volumes
    /// the kubelet withholds the right in the pod's device cgroup.
    pub read_only: bool,
    /// The volume's capability is read-only, so its staging mount is: a writable target cannot be more.
    pub staged_read_only: bool,
    /// `SINGLE_NODE_SINGLE_WRITER`: no second target.
    pub exclusive: bool,
}

impl Wanted {
    /// The pod must be able to write to the filesystem.
    pub fn writes(&self) -> bool {
        matches!(self.source, Source::Staging(_)) && !self.read_only && !self.staged_read_only
    }
}

/// What was observed.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The whole mount table.
    pub mounts: MountTable,
    /// The target path itself.
    pub target: PathState,
    /// The topmost mount at the target belongs to a disk that is gone, or answers with an error.
    pub stale: bool,
    /// The topmost mount at the target, or the device node that it shows, is the volume's.
    pub target_is_ours: bool,
    /// Why the filesystem takes no writes although its mount is writable.
    pub write_refusal: Option<String>,
}

/// Plans the next steps. Empty when the volume is published as asked.
///
/// # Errors
/// The target has another mount; a second target of an exclusive volume; nothing is mounted at the staging path.
pub fn plan(wanted: &Wanted, observed: &Observed) -> Result<Vec<Step>> {
    let here = observed.mounts.at(&wanted.target);
    if let Some(top) = here.last() {
        if observed.stale {
            return Ok(vec![Step::Unmount { target: wanted.target.clone() }; here.len()]);
        }
        return mounted(wanted, observed, top);
    }
    refuse_unwritable(wanted, observed)?;
    if wanted.exclusive {
        refuse_second_target(wanted, &observed.mounts)?;
    }
    let mut steps: Vec<Step> = create(wanted, observed)?.into_iter().collect();
    let (source, keep) = match &wanted.source {
        Source::Staging(staging) => {
            let staged = observed.mounts.at(staging).pop().ok_or(Error::NotSettled("the staging mount"))?;
            (staging.clone(), MountOptions::flags_in(&staged.options))
        }
        Source::Node { path, .. } => (path.clone(), node_flags(&observed.mounts, path)),
    };
    steps.push(Step::Bind { source, target: wanted.target.clone() });
    if wanted.read_only {
        steps.push(Step::RemountReadOnly { target: wanted.target.clone(), keep });
    }
    Ok(steps)
}

/// A bind has the flags of the mount that its source is on: for a device node, that of the deepest mount above it.
fn node_flags(mounts: &MountTable, node: &Path) -> std::collections::BTreeSet<crate::mount_options::Flag> {
    let above = mounts.0.iter().filter(|mount| node.starts_with(&mount.point));
    above
        .max_by_key(|mount| mount.point.components().count())
        .map(|mount| MountOptions::flags_in(&mount.options))
        .unwrap_or_default()
}

/// The target is a mount point: it is what was requested, half of it, or a conflict.
fn mounted(wanted: &Wanted, observed: &Observed, top: &Mount) -> Result<Vec<Step>> {
    let conflict = |found: &str, wanted_text: &str| {
        Err(Error::MountConflict {
            path: wanted.target.clone(),
            found: found.to_owned(),
            wanted: wanted_text.to_owned(),
        })
    };
    if !observed.target_is_ours {
        return conflict(&format!("device {} ({})", top.number, top.root.display()), "this volume");
    }
    refuse_unwritable(wanted, observed)?;
    match (wanted.read_only, top.read_only()) {
        // A call that ended between the bind and the remount; the same target is the same pod, so nothing is taken
        // away.
        (true, false) => {
            let keep = MountOptions::flags_in(&top.options);
            Ok(vec![Step::RemountReadOnly { target: wanted.target.clone(), keep }])
        }
        (false, true) if !source_is_read_only(wanted, observed) => conflict("read-only", "writable"),
        _ => Ok(Vec::new()),
    }
}

/// A target that a pod cannot write to as it asks is not published: the kernel refuses all writes after an error, and
/// only a new mount, before which the filesystem is checked, ends that.
fn refuse_unwritable(wanted: &Wanted, observed: &Observed) -> Result<()> {
    let (Source::Staging(staging), true) = (&wanted.source, wanted.writes()) else { return Ok(()) };
    let probed = observed.write_refusal.as_deref();
    let staged = observed.mounts.at(staging).pop();
    match staged.map_or_else(|| probed.map(str::to_owned), |mount| mount.write_refusal(probed)) {
        Some(reason) => Err(Error::NotWritable { path: staging.clone(), reason }),
        None => Ok(()),
    }
}

/// What is bound is read-only itself, so no target can be more.
fn source_is_read_only(wanted: &Wanted, observed: &Observed) -> bool {
    match &wanted.source {
        Source::Staging(staging) => observed.mounts.at(staging).last().is_some_and(Mount::read_only),
        Source::Node { .. } => false,
    }
}

fn create(wanted: &Wanted, observed: &Observed) -> Result<Option<Step>> {
    let target = wanted.target.clone();
    match (&wanted.source, &observed.target) {
        (Source::Staging(_), PathState::Missing) => Ok(Some(Step::CreateDirectory(target))),
        (Source::Node { .. }, PathState::Missing) => Ok(Some(Step::CreateFile(target))),
        (Source::Staging(_), PathState::Directory) | (Source::Node { .. }, PathState::File { .. }) => {
            Ok(None)
        }
        (source, found) => Err(Error::MountConflict {
            path: target,
            found: found.to_string(),
            wanted: if matches!(source, Source::Staging(_)) { "a directory" } else { "a file" }.to_owned(),
        }),
    }
}

/// Only whole mounts count: the kubelet binds subpaths of a published volume for the same pod.
fn refuse_second_target(wanted: &Wanted, mounts: &MountTable) -> Result<()> {
    let published: Vec<PathBuf> = match &wanted.source {
        Source::Staging(staging) => mounts
            .at(staging)
            .last()
            .map(|staged| mounts.of(staged.number))
            .unwrap_or_default()
            .into_iter()
            .filter(|mount| mount.root == Path::new("/") && mount.point != *staging)
            .map(|mount| mount.point)
            .collect(),
        Source::Node { path, .. } => path
            .file_name()
            .map(|name| mounts.of_node(&name.to_string_lossy()))
            .unwrap_or_default()
            .into_iter()
            .map(|mount| mount.point)
            .collect(),
    };
    match published.first() {
        None => Ok(()),
        Some(elsewhere) => Err(Error::AlreadyPublished { elsewhere: elsewhere.display().to_string() }),
    }
}

/// Plans the removal of a target: each mount on it, then the empty directory or file. Empty when nothing is left.
pub fn plan_removal(target: &Path, mounts: &MountTable, state: &PathState) -> Result<Vec<Step>> {
    let depth = mounts.at(target).len();
    let refused = |why: String| Err(Error::NotRemovable { path: target.to_owned(), why });
    let remove = Step::RemoveTarget(target.to_owned());
    if depth > 0 {
        let unmount = Step::Unmount { target: target.to_owned() };
        return Ok(std::iter::repeat_n(unmount, depth).chain([remove]).collect());
    }
    match state {
        PathState::Missing => Ok(Vec::new()),
        PathState::Directory | PathState::File { bytes: 0 } => Ok(vec![remove]),
        PathState::File { bytes } => {
            refused(format!("it is a file with {bytes} bytes, which this driver did not make"))
        }
        PathState::Node(_) | PathState::Other(_) => {
            refused(format!("it is {state}, which this driver did not make"))
        }
        PathState::Corrupted(reason) => {
            refused(format!("it cannot be read ({reason}) although nothing is mounted there"))
        }
    }
}

#[cfg(test)]
mod tests;
