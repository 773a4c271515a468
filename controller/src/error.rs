//! Every result with which an RPC can fail, and its gRPC code.
//!
//! external-provisioner and external-attacher take `CANCELLED`, `DEADLINE_EXCEEDED`, `UNAVAILABLE` and `ABORTED` as
//! "may still be in progress" and every other code as final. So an RPC returns a final code only after a successful
//! read proved it; whatever could not be observed is `UNAVAILABLE`.

use csi_call::{Busy, Unanswered};
use infra::{Class, Foreign, ForeignSnapshot, ObjectName};
use kubevirt::NotThisGuest;
use serving::{MAX_TEXT, cut};
use tonic::{Code, Status};

use crate::{
    attach::Refusal,
    content::TooSmallForSource,
    expand::CannotExpand,
    request::Invalid,
    serial::OtherSerial,
    snapshot::BadToken,
    storage_class_policy::{NotAllowed, SnapshotClassNotAllowed},
    volume::Incompatible,
};

/// Why an RPC failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The operator does not allow the storage class.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// The infra API refused the volume because of its content; nothing was created.
    #[error("the infra cluster refuses the volume: {0}")]
    RefusedVolume(infra::Error),
    /// The infra quota is used up; nothing was created.
    #[error("the infra quota does not allow the volume: {0}")]
    Quota(infra::Error),
    /// The volume does not exist, or it is not ours: the guest can't distinguish the two.
    #[error(transparent)]
    NoSuchVolume(#[from] Foreign),
    /// A volume that is not ours must not be deleted or detached.
    #[error("{Foreign}")]
    NotOurs,
    /// The name is taken by a volume that is not ours.
    #[error("{Foreign}: {0} exists in the infra cluster and is not this guest's")]
    NameTaken(ObjectName),
    /// The name is taken by a volume of ours with other properties.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// The node id is not one that this driver gives.
    #[error("node {0:?} is not known; node ids are <namespace>/<vm>")]
    NoSuchNode(String),
    /// The VM's labels do not allow it to be this guest's.
    #[error("VM {vm} gets no volume of this guest: {reason}")]
    OtherGuestsVm {
        /// `<namespace>/<vm>`.
        vm: String,
        /// Why.
        reason: NotThisGuest,
    },
    /// The PV names a serial that is not its volume's.
    #[error(transparent)]
    OtherSerial(#[from] OtherSerial),
    /// A volume for one node is on another.
    #[error("volume is attached to another VM: {holder}")]
    HeldElsewhere {
        /// `<namespace>/<vm>`.
        holder: String,
    },
    /// A volume can't be deleted while VMs have it.
    #[error("volume is attached to {holders}; detach it first")]
    InUse {
        /// `<namespace>/<vm>`, separated by commas.
        holders: String,
    },
    /// The `DataVolume` was deleted without the claim, and the claim may not be deleted.
    #[error(
        "the volume's DataVolume is gone and its PVC is left in the infra cluster; the administrator of the infra cluster must delete PVC {claim}, or grant the driver delete on persistentvolumeclaims and restart its controller{answer}"
    )]
    ClaimLeft {
        /// The claim.
        claim: ObjectName,
        /// The infra API's answer, as the end of a sentence.
        answer: String,
    },
    /// KubeVirt has moved the volume to another claim, and its own may have older data.
    #[error(
        "KubeVirt has moved the volume to PVC {claim}, so PVC {volume} may have older data and is not used; the administrator of the infra cluster must bring the data back to PVC {volume} and then remove its annotation {annotation}",
        annotation = crate::keys::MOVED_ANNOTATION
    )]
    Moved {
        /// Volume, and its own claim.
        volume: ObjectName,
        /// The claim with the newer data.
        claim: String,
    },
    /// The planner refused.
    #[error("VM {vm}: {refusal}")]
    Refused {
        /// `<namespace>/<vm>`.
        vm: String,
        /// Why.
        refusal: RefusalReason,
    },
    /// KubeVirt reports that the VM has no place for one more disk.
    #[error(
        "VM {vm} can not have one more disk; detach others, or move pods with volumes to other nodes{complaint}"
    )]
    NoFreeSlot {
        /// `<namespace>/<vm>`.
        vm: String,
        /// KubeVirt's report, as the end of a sentence.
        complaint: String,
    },
    /// The volume is being deleted.
    #[error("volume {0} is being deleted")]
    Deleting(ObjectName),
    /// CDI has given up on the volume.
    #[error("volume {volume} has failed in the infra cluster: {progress}")]
    Failed {
        /// Volume.
        volume: ObjectName,
        /// What CDI reports.
        progress: String,
    },
    /// CDI has not made the volume's claim; the next try may find it.
    #[error(
        "the volume has no infra claim yet (infra storage class {}): {progress}",
        class.as_deref().unwrap_or("infra's default")
    )]
    Unclaimed {
        /// The requested infra storage class; CDI does not name one that is missing.
        class: Option<String>,
        /// What CDI reports.
        progress: String,
    },
    /// A volume that was created for one node is requested on many.
    #[error("volume {0} was not created for ReadWriteMany")]
    NotShared(ObjectName),
    /// The infra API refuses the hotplug call because of its content.
    #[error("the infra cluster refuses the change of the VM: {0}")]
    RefusedChange(infra::Error),
    /// The operator's mapping has no such snapshot class for the volume.
    #[error(transparent)]
    SnapshotClassNotAllowed(#[from] SnapshotClassNotAllowed),
    /// The infra API refused the snapshot because of its content or a quota; nothing was created.
    #[error("the infra cluster refuses the snapshot: {0}")]
    RefusedSnapshot(infra::Error),
    /// The snapshot does not exist, or it is not ours: the guest can't distinguish the two.
    #[error(transparent)]
    NoSuchSnapshot(#[from] ForeignSnapshot),
    /// A snapshot that is not ours must not be deleted.
    #[error("{ForeignSnapshot}")]
    NotOurSnapshot,
    /// The name is taken by a snapshot that is not ours.
    #[error("{ForeignSnapshot}: {0} exists in the infra cluster and is not this guest's")]
    SnapshotNameTaken(ObjectName),
    /// The snapshot is being deleted.
    #[error("snapshot {0} is being deleted")]
    SnapshotDeleting(ObjectName),
    /// The snapshot was deleted while its creation was waited for.
    #[error("snapshot {0} was deleted in the infra cluster meanwhile, try again")]
    SnapshotGone(ObjectName),
    /// The infra cluster could not ask its storage for the snapshot; the object with the error is deleted.
    #[error("the infra cluster has not taken snapshot {snapshot}: {message}")]
    SnapshotFailed {
        /// Snapshot.
        snapshot: ObjectName,
        /// The infra cluster's message.
        message: String,
    },
    /// The infra cluster reports an error of its storage; it tries again by itself.
    #[error("snapshot {snapshot} is not ready in the infra cluster: {message}")]
    SnapshotNotReady {
        /// Snapshot.
        snapshot: ObjectName,
        /// The infra cluster's message.
        message: String,
    },
    /// A snapshot can't be restored before it is ready.
    #[error("snapshot {snapshot} can't be restored yet: {message}")]
    SnapshotPending {
        /// Snapshot.
        snapshot: ObjectName,
        /// The infra cluster's message, if there is one.
        message: String,
    },
    /// The volume has no content yet: nobody has used it, or it is being filled.
    #[error("volume {volume} has nothing to copy yet, its disk is made at its first use: {progress}")]
    NothingToCopy {
        /// Volume.
        volume: ObjectName,
        /// What the infra cluster reports.
        progress: String,
    },
    /// The requested size is below that of the source.
    #[error(transparent)]
    TooSmallForSource(#[from] TooSmallForSource),
    /// The token of a list is not ours.
    #[error(transparent)]
    BadToken(#[from] BadToken),
    /// The right to list snapshots is missing.
    #[error(
        "snapshots can't be listed without the right to list volumesnapshots in the infra namespace; ask for one by its id, or grant it: {0}"
    )]
    MayNotListSnapshots(infra::Error),
    /// The infra quota does not allow the larger claim; nothing was changed.
    #[error("the infra quota does not allow the expansion: {0}")]
    ExpansionQuota(infra::Error),
    /// The infra API refuses the larger claim; nothing was changed.
    #[error("the infra cluster refuses the expansion: {0}")]
    RefusedExpansion(infra::Error),
    /// The planner refused.
    #[error("volume {volume} is not expanded: {refusal}")]
    CannotExpand {
        /// Volume.
        volume: ObjectName,
        /// Why.
        refusal: CannotExpand,
    },
    /// Another call has the volume.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The volume changed during the operation.
    #[error("volume {0} changed meanwhile, try again")]
    Changed(ObjectName),
    /// The operation has no answer of its own.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// A call to the infra API failed.
    #[error("the infra API request failed: {0}")]
    Infra(#[from] infra::Error),
}

/// Why the planner refused; see the error's text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RefusalReason(pub(crate) Refusal);

impl Error {
    /// Whether external-provisioner takes the error for the end: it does not ask again by the same name, and deletes
    /// nothing. `RESOURCE_EXHAUSTED` may mean either to it.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self.code(), Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted)
    }

    /// The gRPC code (CSI specification, error schemes of each RPC). Exhaustive on purpose: a new error chooses its
    /// code here.
    pub fn code(&self) -> Code {
        match self {
            // For csi-resizer RESOURCE_EXHAUSTED means that the expansion may be in progress, and the guest's user could
            // not go back to a smaller size. OUT_OF_RANGE: it can't be done; tried again slowly.
            Self::ExpansionQuota(_)
            | Self::RefusedExpansion(_)
            | Self::Invalid(Invalid::TooSmall { .. })
            | Self::TooSmallForSource(_) => Code::OutOfRange,
            Self::RefusedSnapshot(error) if error.is_quota() => Code::ResourceExhausted,
            Self::Invalid(_)
            | Self::NotAllowed(_)
            | Self::RefusedVolume(_)
            | Self::SnapshotClassNotAllowed(_)
            | Self::RefusedSnapshot(_) => Code::InvalidArgument,
            Self::Quota(_) | Self::NoFreeSlot { .. } => Code::ResourceExhausted,
            Self::CannotExpand { refusal, .. } => match refusal {
                CannotExpand::OverLimit { .. }
                | CannotExpand::TooLarge { .. }
                | CannotExpand::Infeasible { .. } => Code::OutOfRange,
                // Passes with the first attach. FAILED_PRECONDITION would make csi-resizer wait until no pod uses it.
                CannotExpand::NotBound { .. } => Code::Aborted,
                // Final and not infeasible: tried again soon, and the guest's user may go back to a smaller size.
                CannotExpand::Failing { .. } => Code::Internal,
            },
            // Final: the sidecar tries again, and the guest's user may delete the snapshot.
            Self::SnapshotFailed { .. } => Code::Internal,
            Self::NoSuchVolume(_) | Self::NoSuchNode(_) | Self::NoSuchSnapshot(_) => Code::NotFound,
            Self::NameTaken(_) | Self::SnapshotNameTaken(_) | Self::Incompatible(_) => Code::AlreadyExists,
            Self::NotOurs
            | Self::NotOurSnapshot
            | Self::SnapshotDeleting(_)
            | Self::NothingToCopy { .. }
            | Self::HeldElsewhere { .. }
            | Self::OtherGuestsVm { .. }
            | Self::OtherSerial(_)
            | Self::InUse { .. }
            | Self::ClaimLeft { .. }
            | Self::Moved { .. }
            | Self::Deleting(_)
            | Self::Failed { .. }
            | Self::NotShared(_)
            | Self::RefusedChange(_) => Code::FailedPrecondition,
            Self::Refused { refusal, .. } => match refusal.0 {
                Refusal::NoSuchVm => Code::NotFound,
                Refusal::VmDeleting | Refusal::Halted(_) | Refusal::Fixed(_) | Refusal::Moved { .. } => {
                    Code::FailedPrecondition
                }
                Refusal::InstanceOutlivesVm => Code::Aborted,
            },
            Self::Busy(_)
            | Self::Changed(_)
            | Self::Unclaimed { .. }
            | Self::SnapshotGone(_)
            | Self::SnapshotNotReady { .. }
            | Self::SnapshotPending { .. }
            | Self::BadToken(_) => Code::Aborted,
            Self::MayNotListSnapshots(_) => Code::Unavailable,
            Self::Unanswered(unanswered) => unanswered.code(),
            Self::Infra(error) => match error.class() {
                Class::Conflict => Code::Aborted,
                Class::NotFound
                | Class::Invalid
                | Class::BadRequest
                | Class::Forbidden
                | Class::Unauthorized
                | Class::Throttled
                | Class::Server
                | Class::Timeout
                | Class::Transport => Code::Unavailable,
            },
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        // Some texts quote what the caller sent. A status travels in a header, and stands in the events of the guest.
        Self::new(error.code(), cut(&error.to_string(), MAX_TEXT))
    }
}

#[cfg(test)]
mod tests;
