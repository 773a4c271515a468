//! A guest snapshot in the infra cluster: its name, its object, whether an existing object is the requested one, how far
//! it is, and pages of a list of them.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::{collections::BTreeMap, time::Duration};

use infra::{NewVolumeSnapshot, ObjectName, VolumeSnapshot};

use crate::{
    keys::{GUEST_SIZE_ANNOTATION, NAME_ANNOTATION},
    request::CreateSnapshot,
    volume::{self, Incompatible},
};

/// Prefix of snapshot names: the default of csi-snapshotter's `--snapshot-name-prefix`.
const PREFIX: &str = "snapshot";
/// The infra cluster's snapshot controller writes an error to the status for each conflict of its own too, and removes it at
/// its next try. An error that lasts this long is reported to the guest.
const ERROR_PATIENCE: Duration = Duration::from_secs(5);
/// Begins the token of a page: the last name of the page before follows. So a page is right also where snapshots were deleted
/// since, the one that the token names included.
const TOKEN: &str = "after:";

/// The object name of a guest's snapshot.
pub(crate) fn object_name(name: &str) -> ObjectName {
    volume::object_name(name, PREFIX)
}

/// The object for a request. `guest_size` is the size in bytes that the guest knows its volume by.
pub(crate) fn desired(
    request: &CreateSnapshot,
    volume: &ObjectName,
    class: Option<String>,
    guest_size: Option<u64>,
) -> NewVolumeSnapshot {
    let name = object_name(&request.name);
    let original =
        (name.as_str() != request.name).then(|| (NAME_ANNOTATION.to_owned(), request.name.clone()));
    let size = guest_size.map(|size| (GUEST_SIZE_ANNOTATION.to_owned(), size.to_string()));
    let annotations: BTreeMap<String, String> = original.into_iter().chain(size).collect();
    NewVolumeSnapshot { name, annotations, claim: volume.clone(), class }
}

/// Whether an existing snapshot is the requested one.
pub(crate) fn compatible(existing: &VolumeSnapshot, request: &CreateSnapshot) -> Result<(), Incompatible> {
    let differs = |what, has: &str, asked: &str| {
        Err(Incompatible::of_snapshot(&existing.metadata.name, what, has, asked))
    };
    let original = existing.metadata.annotations.get(NAME_ANNOTATION);
    let original = original.map_or(existing.metadata.name.as_str(), String::as_str);
    if original != request.name {
        return differs("original name", original, &request.name);
    }
    match existing.claim.as_deref() {
        Some(claim) if claim == request.volume => Ok(()),
        claim => differs("source volume", claim.unwrap_or("none"), &request.volume),
    }
}

/// The size in bytes that the guest knows the snapshot by: a volume of this size can be restored from it. Infra's
/// `restoreSize` is larger where the disk is a file on a filesystem, and the guest's provisioner would refuse to restore
/// to a claim of the size of the source. Only kubevirt/csi-driver's snapshots have no other.
pub(crate) fn guest_size(snapshot: &VolumeSnapshot) -> Option<u64> {
    let annotated = snapshot.metadata.annotations.get(GUEST_SIZE_ANNOTATION);
    annotated.and_then(|size| size.parse().ok()).or(snapshot.restore_size)
}

/// The moment that the data is of, or, until the storage system reports it, when the object was made (RFC 3339).
pub(crate) fn taken_at(snapshot: &VolumeSnapshot) -> Option<&str> {
    snapshot.taken_at.as_deref().or(snapshot.metadata.creation_timestamp.as_deref())
}

/// What is next for a snapshot that is being taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is ready.
    Ready,
    /// The infra cluster works on it.
    Wait,
    /// The caller has waited long enough; it asks again.
    Later,
    /// The infra cluster can't take it, and why; it tries again all the same.
    Failed(String),
}

/// Plans for a snapshot whose error, if any, has been there for `failing`. `out_of_time`: the caller must be answered.
pub(crate) fn next(snapshot: &VolumeSnapshot, failing: Duration, out_of_time: bool) -> Step {
    match &snapshot.error {
        _ if snapshot.is_ready => Step::Ready,
        Some(error) if out_of_time || failing >= ERROR_PATIENCE => Step::Failed(error.clone()),
        None if out_of_time => Step::Later,
        _ => Step::Wait,
    }
}

/// A token that no page ended with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("starting_token {0:?} is not one that ListSnapshots gave; begin without one")]
pub struct BadToken(String);

/// A page of snapshots, and the token of the next one; empty = there is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page<T> {
    pub snapshots: Vec<T>,
    pub next: String,
}

/// The page of `snapshots` that begins at `token`, with at most `most` entries.
pub(crate) fn page<T>(
    mut snapshots: Vec<T>,
    name: impl Fn(&T) -> &str,
    token: Option<&str>,
    most: Option<usize>,
) -> Result<Page<T>, BadToken> {
    if let Some(token) = token {
        let last = token.strip_prefix(TOKEN).and_then(ObjectName::parse);
        let last = last.ok_or_else(|| BadToken(token.to_owned()))?;
        snapshots.retain(|snapshot| name(snapshot) > last.as_str());
    }
    snapshots.sort_by(|one, other| name(one).cmp(name(other)));
    let is_whole = most.is_none_or(|most| snapshots.len() <= most);
    snapshots.truncate(most.unwrap_or(usize::MAX));
    let last = snapshots.last().filter(|_| !is_whole);
    let next = last.map(|last| format!("{TOKEN}{}", name(last))).unwrap_or_default();
    Ok(Page { snapshots, next })
}

#[cfg(test)]
mod tests;
