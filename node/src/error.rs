//! Every way in which a call can fail, and the gRPC code of each.
//!
//! The codes decide what the kubelet does next: `ABORTED`, `DEADLINE_EXCEEDED`, `UNAVAILABLE`, `CANCELLED` and
//! `RESOURCE_EXHAUSTED` leave a volume *uncertain*, so that it is unstaged before it is forgotten; every other code
//! means that nothing was mounted. A failed observation is therefore never final, and nor is a failure after the mount.
//!
//! Of an expansion, the kubelet takes `INVALID_ARGUMENT`, `OUT_OF_RANGE` and `NOT_FOUND` for *infeasible*, and waits for
//! the user to ask for another size; after `FAILED_PRECONDITION` it does not try again on this node while the volume is
//! mounted (`pkg/volume/csi/expander.go`). So a disk that is not large enough yet is `UNAVAILABLE`.

use std::{error::Error as StdError, fmt::Write as _, io, path::PathBuf, time::Duration};

use csi_call::{Busy, Unanswered};
use tonic::{Code, Status};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant says in its message what it is, and its fields are named in it")]
pub enum Error {
    #[error("{0}")]
    InvalidRequest(String),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    #[error(
        "all {size} {pool} threads are busy, which points to storage that does not answer; retry, and look for hung devices on this node"
    )]
    PoolExhausted { pool: &'static str, size: usize },
    #[error("{what} has not answered in time; the filesystem or its disk seems to hang")]
    Hung { what: String },
    #[error("a worker thread ended unexpectedly; see the log of the node role")]
    JobLost,

    #[error("no disk with serial {serial} after {}s; {seen}; check that the volume is attached to this VM (VMI volumeStatus Ready)", waited.as_secs())]
    DiskNotFound { serial: String, waited: Duration, seen: String },
    #[error("serial {serial} matches several disks ({names}); none is used until only one is left")]
    DiskAmbiguous { serial: String, names: String },
    #[error("disk {name} is not the disk that was found: {detail}; retry")]
    DiskChanged { name: String, detail: String },
    #[error("disk {name} is not used: {reason}")]
    DiskRefused { name: String, reason: String },
    #[error(
        "disk {name} is not used: {on} is stacked on it; exclude the disk there (multipath blacklist, lvm filter)"
    )]
    DiskStacked { name: String, on: String },
    #[error("disk {name} cannot be read, so it is not known to be blank: {reason}")]
    DiskUnreadable { name: String, reason: String },
    #[error("disk {name} is in use: {by}; release it first")]
    DiskBusy { name: String, by: String },

    #[error(
        "disk {name} holds {found}, but {wanted} was asked for; it is not formatted again: use a StorageClass with fsType {found}"
    )]
    OtherFilesystem { name: String, found: String, wanted: String },
    #[error(
        "disk {name} holds an {found} that was not made on this volume: its UUID is not {uuid}, and it was not made since the volume exists. The volume was made blank, so this can be an earlier owner's data, which the infra storage did not wipe. It is not mounted and nothing is changed; find out whose data it is"
    )]
    ForeignFilesystem { name: String, found: String, uuid: String },
    #[error("disk {name} is not blank ({what}) and is not formatted; {remedy}")]
    NotBlank { name: String, what: String, remedy: &'static str },
    #[error(
        "disk {name} is blank, but the volume was restored or cloned and should have its source's {filesystem}; it is not formatted, because that would hide the loss. If the source was never mounted, create a claim without a source in the place of this one; else check the snapshot, or the source, in the infra cluster"
    )]
    BlankCopy { name: String, filesystem: &'static str },
    #[error(
        "disk {name} is blank and the volume is read-only, so there is nothing to mount; write to it first"
    )]
    ReadOnlyBlank { name: String },
    #[error(
        "disk {name} has {bytes} bytes and {filesystem} needs {least} at least; create a larger volume, or use another filesystem"
    )]
    DiskTooSmall { name: String, bytes: u64, filesystem: &'static str, least: u64 },
    #[error(
        "{tool} found damage on {name} that it does not repair by itself: {detail}; copy the volume before you repair it (troubleshooting guide: a filesystem is damaged)"
    )]
    FilesystemDamaged { name: String, tool: &'static str, detail: String },
    #[error(
        "{tool} did not finish its check of {name} ({detail}); that is no verdict on the data, and nothing is mounted before it: the check is repeated with the request. If it was killed, give this node or the node role more memory; if it names a read or write error, check the disk"
    )]
    NotChecked { name: String, tool: &'static str, detail: String },

    #[error(
        "{tool} is too old to check {name} ({detail}), and the filesystem has errors on record, so it is not mounted; use an image with a newer {tool}, or check it by hand with one"
    )]
    CheckTooOld { name: String, tool: &'static str, detail: String },

    #[error(
        "the filesystem at {path} takes no writes: {reason}; the kernel refuses them after an error (see the kernel log of this node). Scale the workload down, or cordon this node and delete the pods, until no pod on this node uses the volume: then it is unmounted. Start the workload again: the volume is checked before it is mounted",
        path = path.display()
    )]
    NotWritable { path: PathBuf, reason: String },
    #[error("{path} already has another mount: {found}, wanted {wanted}", path = path.display())]
    MountConflict { path: PathBuf, found: String, wanted: String },
    #[error("the request has no staging path, but the volume is a filesystem, which is staged first")]
    StagingPathMissing,
    #[error("the volume is published at {elsewhere} and its access mode allows one target only")]
    AlreadyPublished { elsewhere: String },
    #[error("{path} is not removed: {why}", path = path.display())]
    NotRemovable { path: PathBuf, why: String },
    #[error("{path} is busy: {holders}; it stays mounted until they let go", path = path.display())]
    MountBusy { path: PathBuf, holders: String },
    #[error(
        "disk {name} of {path} is still in use: {holders}; it must not be detached yet: end what uses it, or restart this node",
        path = path.display()
    )]
    StillInUse { name: String, path: PathBuf, holders: String },
    #[error(
        "{record} does not say which disk the volume was on, and disk {name} is in use: {holders}; if {name} is not this volume's disk, remove that file",
        record = record.display()
    )]
    ReleaseUnknown { record: PathBuf, name: String, holders: String },
    #[error("no volume at {path}", path = path.display())]
    VolumeNotFound { path: PathBuf },

    #[error("{path} shows disk {name}, which is not the disk that volume {volume} was staged from", path = path.display())]
    OtherVolume { path: PathBuf, name: String, volume: String },
    #[error(
        "disk {name} has {bytes} bytes and not {wanted} yet; wait for KubeVirt to grow it in the VM. KubeVirt up to 1.8.1 without the feature gate ExpandDisks grows a disk only when it is detached and attached again: end the pods on this node that use the volume, and start them again"
    )]
    DiskNotGrown { name: String, bytes: u64, wanted: u64 },
    #[error(
        "the filesystem at {path} is mounted read-only, so it is not grown; it is grown when the volume is mounted for writing",
        path = path.display()
    )]
    ReadOnlyNotGrown { path: PathBuf },
    #[error(
        "the filesystem at {path} has errors on record, and the kernel does not grow it before a check. Scale the workload down, or cordon this node and delete the pods, until no pod on this node uses the volume: then it is unmounted. Start the workload again: the volume is checked before it is mounted, and grown then",
        path = path.display()
    )]
    GrowthNeedsCheck { path: PathBuf },

    #[error("{0}; the node id is not known yet")]
    NotIdentified(String),
    #[error("cannot read this Node from the guest API")]
    IdentitySource(#[source] Box<dyn StdError + Send + Sync>),

    #[error("{tool} on {name} failed with {status}: {stderr}")]
    ToolFailed { tool: &'static str, name: String, status: String, stderr: String },
    #[error("{tool} on {name} did not end within {}s and was killed", limit.as_secs())]
    ToolTimedOut { tool: &'static str, name: String, limit: Duration },
    #[error("the volume is mounted, but growing its filesystem failed; {advice}")]
    GrowFailed {
        advice: &'static str,
        #[source]
        source: Box<Error>,
    },
    #[error("cannot {action}")]
    Observe {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot {action}")]
    Act {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("{0} did not settle; see the log of the node role")]
    NotSettled(&'static str),
}

impl Error {
    /// A failed read: nothing is concluded from it.
    pub fn observe(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Observe { action, source }
    }

    /// A failed change.
    pub fn act(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Act { action, source }
    }

    /// The gRPC code of this error (CSI 1.12, error tables; what is final and what is not: head of this module).
    pub fn code(&self) -> Code {
        match self {
            Self::InvalidRequest(_) => Code::InvalidArgument,
            Self::Busy(_) => Code::Aborted,
            Self::Unanswered(unanswered) => unanswered.code(),
            Self::PoolExhausted { .. }
            | Self::Hung { .. }
            | Self::JobLost
            | Self::DiskNotFound { .. }
            | Self::DiskAmbiguous { .. }
            | Self::DiskChanged { .. }
            | Self::DiskUnreadable { .. }
            // A lock of udev or of another program, or what has opened the disk at boot, may pass. After a final code the
            // kubelet forgets a volume that was mounted before it was restarted (kubernetes/kubernetes#136591).
            | Self::DiskBusy { .. }
            | Self::DiskStacked { .. }
            | Self::NotWritable { .. }
            | Self::NotChecked { .. }
            | Self::NotIdentified(_)
            | Self::IdentitySource(_)
            | Self::GrowFailed { .. }
            | Self::DiskNotGrown { .. }
            | Self::GrowthNeedsCheck { .. }
            | Self::Observe { .. }
            | Self::NotSettled(_) => Code::Unavailable,
            Self::DiskRefused { .. }
            | Self::ReadOnlyNotGrown { .. }
            | Self::OtherFilesystem { .. }
            | Self::NotBlank { .. }
            | Self::ForeignFilesystem { .. }
            | Self::BlankCopy { .. }
            | Self::ReadOnlyBlank { .. }
            | Self::DiskTooSmall { .. }
            | Self::StagingPathMissing
            | Self::AlreadyPublished { .. }
            | Self::NotRemovable { .. }
            | Self::MountBusy { .. }
            | Self::StillInUse { .. }
            | Self::ReleaseUnknown { .. } => Code::FailedPrecondition,
            Self::MountConflict { .. } => Code::AlreadyExists,
            Self::VolumeNotFound { .. } | Self::OtherVolume { .. } => Code::NotFound,
            Self::FilesystemDamaged { .. }
            | Self::CheckTooOld { .. }
            | Self::ToolFailed { .. }
            | Self::ToolTimedOut { .. }
            | Self::Act { .. } => Code::Internal,
        }
    }

    /// The message with the messages of all its causes.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(text, ": {error}").expect("writing to a String cannot fail");
            cause = error.source();
        }
        text
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), error.chain())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io() -> io::Error {
        io::Error::other("no")
    }

    fn table() -> Vec<(Error, Code)> {
        let name = || "sda".to_owned();
        let text = || "x".to_owned();
        let path = || PathBuf::from("/p");
        let second = Duration::from_secs(1);
        vec![
            (Error::InvalidRequest(text()), Code::InvalidArgument),
            (Busy { volume: text(), rpc: "o", age: second, last_report: text() }.into(), Code::Aborted),
            (Unanswered::Late(text()).into(), Code::DeadlineExceeded),
            (Error::PoolExhausted { pool: "p", size: 1 }, Code::Unavailable),
            (Error::Hung { what: text() }, Code::Unavailable),
            (Error::JobLost, Code::Unavailable),
            (Error::DiskNotFound { serial: text(), waited: second, seen: text() }, Code::Unavailable),
            (Error::DiskAmbiguous { serial: text(), names: text() }, Code::Unavailable),
            (Error::DiskChanged { name: name(), detail: text() }, Code::Unavailable),
            (Error::DiskRefused { name: name(), reason: text() }, Code::FailedPrecondition),
            (Error::DiskUnreadable { name: name(), reason: text() }, Code::Unavailable),
            (Error::DiskBusy { name: name(), by: text() }, Code::Unavailable),
            (Error::DiskStacked { name: name(), on: text() }, Code::Unavailable),
            (
                Error::ForeignFilesystem { name: name(), found: text(), uuid: text() },
                Code::FailedPrecondition,
            ),
            (
                Error::OtherFilesystem { name: name(), found: text(), wanted: text() },
                Code::FailedPrecondition,
            ),
            (Error::NotBlank { name: name(), what: text(), remedy: "r" }, Code::FailedPrecondition),
            (Error::BlankCopy { name: name(), filesystem: "ext4" }, Code::FailedPrecondition),
            (Error::ReadOnlyBlank { name: name() }, Code::FailedPrecondition),
            (
                Error::DiskTooSmall { name: name(), bytes: 1, filesystem: "xfs", least: 2 },
                Code::FailedPrecondition,
            ),
            (Error::FilesystemDamaged { name: name(), tool: "t", detail: text() }, Code::Internal),
            (Error::NotChecked { name: name(), tool: "t", detail: text() }, Code::Unavailable),
            (Error::NotWritable { path: path(), reason: text() }, Code::Unavailable),
            (Error::MountConflict { path: path(), found: text(), wanted: text() }, Code::AlreadyExists),
            (Error::StagingPathMissing, Code::FailedPrecondition),
            (Error::AlreadyPublished { elsewhere: text() }, Code::FailedPrecondition),
            (Error::NotRemovable { path: path(), why: text() }, Code::FailedPrecondition),
            (Error::MountBusy { path: path(), holders: text() }, Code::FailedPrecondition),
            (Error::StillInUse { name: name(), path: path(), holders: text() }, Code::FailedPrecondition),
            (
                Error::ReleaseUnknown { record: path(), name: name(), holders: text() },
                Code::FailedPrecondition,
            ),
            (Error::VolumeNotFound { path: path() }, Code::NotFound),
            (Error::OtherVolume { path: path(), name: name(), volume: text() }, Code::NotFound),
            (Error::DiskNotGrown { name: name(), bytes: 1, wanted: 2 }, Code::Unavailable),
            (Error::ReadOnlyNotGrown { path: path() }, Code::FailedPrecondition),
            (Error::GrowthNeedsCheck { path: path() }, Code::Unavailable),
            (Error::CheckTooOld { name: name(), tool: "t", detail: text() }, Code::Internal),
            (Error::NotIdentified(text()), Code::Unavailable),
            (Error::IdentitySource("x".into()), Code::Unavailable),
            (Error::ToolFailed { tool: "t", name: name(), status: text(), stderr: text() }, Code::Internal),
            (Error::ToolTimedOut { tool: "t", name: name(), limit: second }, Code::Internal),
            (Error::GrowFailed { advice: "a", source: Box::new(Error::JobLost) }, Code::Unavailable),
            (Error::Observe { action: text(), source: io() }, Code::Unavailable),
            (Error::Act { action: text(), source: io() }, Code::Internal),
            (Error::NotSettled("o"), Code::Unavailable),
        ]
    }

    #[test]
    fn each_error_has_its_code_and_a_lower_case_message_without_a_final_dot() {
        let mut seen = std::collections::HashSet::new();
        for (error, code) in table() {
            assert_eq!(error.code(), code, "{error:?}");
            let text = error.chain();
            assert!(!text.ends_with('.'), "{text}");
            assert!(!text.starts_with(char::is_uppercase) || text.starts_with("NodeStage"), "{text}");
            assert!(seen.insert(std::mem::discriminant(&error)), "listed twice: {error:?}");
        }
        // A new variant must come into the table: this number is the number of variants.
        assert_eq!(seen.len(), 43);
    }

    #[test]
    fn the_chain_names_each_cause_once() {
        let error = Error::Act { action: "mount /dev/sda".into(), source: io::Error::other("refused") };
        assert_eq!(error.chain(), "cannot mount /dev/sda: refused");
        assert_eq!(
            Error::GrowFailed { advice: "retry", source: Box::new(error) }.chain(),
            "the volume is mounted, but growing its filesystem failed; retry: cannot mount /dev/sda: refused"
        );
    }
}
