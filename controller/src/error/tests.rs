//! The whole table of errors and codes.

use std::time::Duration;

use infra::Failure;

use super::*;
use crate::{
    content,
    request::{Capacity, Create, Sharing},
    snapshot,
    storage_class_policy::StorageClassPolicy,
    volume,
};

fn name() -> ObjectName {
    ObjectName::parse("pvc-1").unwrap()
}

fn infra_error(code: u16) -> infra::Error {
    let message = "words of the infra".to_owned();
    let failure = Failure::Answer {
        code,
        reason: String::new(),
        message,
        has_causes: false,
        proves_absence: false,
        retry_after: None,
    };
    infra::Error { verb: "get", resource: "datavolumes".into(), name: None, failure: Box::new(failure) }
}

fn quota() -> infra::Error {
    let failure = Failure::Answer {
        code: 403,
        reason: String::new(),
        message: "exceeded quota: q".to_owned(),
        has_causes: false,
        proves_absence: false,
        retry_after: None,
    };
    infra::Error { failure: Box::new(failure), ..infra_error(403) }
}

fn lost() -> infra::Error {
    infra::Error {
        verb: "get",
        resource: "datavolumes".into(),
        name: None,
        failure: Box::new(Failure::Timeout(Duration::from_secs(1))),
    }
}

fn refused(refusal: Refusal) -> Error {
    Error::Refused { vm: "infra/vm1".into(), refusal: RefusalReason(refusal) }
}

fn cannot(refusal: CannotExpand) -> Error {
    Error::CannotExpand { volume: name(), refusal }
}

fn incompatible() -> Error {
    let request = Create {
        name: "pvc-1".into(),
        capacity: Capacity { size: 1, required: 1, limit: None },
        sharing: Sharing::OneNode,
        storage_class: None,
        bus: crate::request::Bus::Scsi,
        filesystem: None,
        holds_filesystem: true,
        format_nonzero: false,
        source: None,
        clone_method: None,
    };
    let existing = infra::DataVolume::default();
    volume::compatible(&existing, &request).unwrap_err().into()
}

#[test]
fn every_error_has_its_code_and_text() {
    let not_allowed = StorageClassPolicy::parse("{}").unwrap().0.permit(None).unwrap_err();
    let holder = || "infra/vm2".to_owned();
    let table = [
        (
            Error::Invalid(Invalid::SharedFilesystem),
            Code::InvalidArgument,
            "non-block volume with RWX access mode is not supported",
        ),
        (
            Error::Invalid(Invalid::TooSmall { filesystem: "xfs", least: 2, limit: 1 }),
            Code::OutOfRange,
            "xfs needs a volume of 2 bytes",
        ),
        (
            Error::NotAllowed(not_allowed),
            Code::InvalidArgument,
            "infraStorageclass is not in the allowed list",
        ),
        (Error::RefusedVolume(infra_error(422)), Code::InvalidArgument, "words of the infra"),
        (Error::Quota(infra_error(403)), Code::ResourceExhausted, "words of the infra"),
        (
            Error::NoFreeSlot { vm: "infra/vm1".into(), complaint: "; KubeVirt reports: words".into() },
            Code::ResourceExhausted,
            "KubeVirt reports: words",
        ),
        (Error::NoSuchVolume(Foreign), Code::NotFound, "invalid volume name"),
        (Error::NotOurs, Code::FailedPrecondition, "invalid volume name"),
        (Error::NameTaken(name()), Code::AlreadyExists, "invalid volume name"),
        (incompatible(), Code::AlreadyExists, "exists with another"),
        (Error::NoSuchNode("x".into()), Code::NotFound, "not known"),
        (
            Error::HeldElsewhere { holder: holder() },
            Code::FailedPrecondition,
            "volume is attached to another VM: infra/vm2",
        ),
        (Error::InUse { holders: holder() }, Code::FailedPrecondition, "infra/vm2"),
        (
            Error::ClaimLeft { claim: name(), answer: ": no right".into() },
            Code::FailedPrecondition,
            "must delete PVC pvc-1, or grant the driver delete on persistentvolumeclaims and restart its controller: no right",
        ),
        (
            Error::Moved { volume: name(), claim: "faster".into() },
            Code::FailedPrecondition,
            "bring the data back to PVC pvc-1 and then remove its annotation csi.kubevirt.io/moved-to",
        ),
        (refused(Refusal::NoSuchVm), Code::NotFound, "no such VM"),
        (refused(Refusal::VmDeleting), Code::FailedPrecondition, "being deleted"),
        (refused(Refusal::Halted("Stopped".into())), Code::FailedPrecondition, "Stopped"),
        (refused(Refusal::Fixed("root".into())), Code::FailedPrecondition, "root"),
        (refused(Refusal::InstanceOutlivesVm), Code::Aborted, "not gone yet"),
        (Error::Deleting(name()), Code::FailedPrecondition, "being deleted"),
        (Error::Failed { volume: name(), progress: "why".into() }, Code::FailedPrecondition, "why"),
        (
            Error::Unclaimed { class: Some("fast".into()), progress: "why".into() },
            Code::Aborted,
            "no infra claim yet (infra storage class fast): why",
        ),
        (Error::ExpansionQuota(infra_error(403)), Code::OutOfRange, "words of the infra"),
        (Error::RefusedExpansion(infra_error(403)), Code::OutOfRange, "words of the infra"),
        (cannot(CannotExpand::OverLimit { largest: 3, limit: 2 }), Code::OutOfRange, "allows 2 at most"),
        (cannot(CannotExpand::TooLarge { disk: 7 }), Code::OutOfRange, "a disk of 7 bytes"),
        (cannot(CannotExpand::NotBound { phase: "Pending".into() }), Code::Aborted, "claim is Pending"),
        (cannot(CannotExpand::NotBound { phase: String::new() }), Code::Aborted, "claim is new"),
        (
            cannot(CannotExpand::Infeasible { size: 7, reason: "too big".into() }),
            Code::OutOfRange,
            "refuses 7 bytes: too big",
        ),
        (cannot(CannotExpand::Failing { reason: "pool is down".into() }), Code::Internal, "pool is down"),
        (Error::NotShared(name()), Code::FailedPrecondition, "ReadWriteMany"),
        (Error::RefusedChange(infra_error(422)), Code::FailedPrecondition, "words of the infra"),
        (
            Error::Busy(Busy {
                volume: "pvc-1".into(),
                rpc: "CreateVolume",
                age: Duration::from_secs(1),
                last_report: "phase Pending".into(),
            }),
            Code::Aborted,
            "phase Pending",
        ),
        (Unanswered::Stopping("phase Pending".into()).into(), Code::Unavailable, "phase Pending"),
        (Error::Changed(name()), Code::Aborted, "try again"),
        (Unanswered::Late("phase Pending".into()).into(), Code::DeadlineExceeded, "phase Pending"),
        (Unanswered::CallerGone("phase Pending".into()).into(), Code::Cancelled, "phase Pending"),
        (Error::Infra(infra_error(401)), Code::Unavailable, "words of the infra"),
        (Error::Infra(infra_error(403)), Code::Unavailable, "words of the infra"),
        (Error::Infra(infra_error(404)), Code::Unavailable, "words of the infra"),
        (Error::Infra(infra_error(409)), Code::Aborted, "words of the infra"),
        (Error::Infra(infra_error(500)), Code::Unavailable, "words of the infra"),
        (Error::Infra(infra_error(429)), Code::Unavailable, "words of the infra"),
        (Error::Infra(lost()), Code::Unavailable, "no answer within 1 s"),
        (Unanswered::Panicked("phase Pending".into()).into(), Code::Unavailable, "internal"),
    ];
    check(table);
}

#[test]
fn every_error_of_a_copy_has_its_code_and_text() {
    let class_not_allowed =
        StorageClassPolicy::parse("{}").unwrap().0.snapshot_class(Some("fast"), None).unwrap_err();
    let too_small = content::size(&Capacity { size: 1, required: 1, limit: None }, 2, 2).unwrap_err();
    let bad_token = snapshot::page(Vec::<String>::new(), String::as_str, Some("x"), None).unwrap_err();
    check([
        (
            class_not_allowed.into(),
            Code::InvalidArgument,
            "is not allowed for volumes of infra storage class",
        ),
        (Error::RefusedSnapshot(infra_error(422)), Code::InvalidArgument, "words of the infra"),
        (Error::RefusedSnapshot(quota()), Code::ResourceExhausted, "exceeded quota"),
        (Error::NoSuchSnapshot(ForeignSnapshot), Code::NotFound, "invalid snapshot name"),
        (Error::NotOurSnapshot, Code::FailedPrecondition, "invalid snapshot name"),
        (Error::SnapshotNameTaken(name()), Code::AlreadyExists, "invalid snapshot name"),
        (Error::SnapshotDeleting(name()), Code::FailedPrecondition, "is being deleted"),
        (Error::SnapshotGone(name()), Code::Aborted, "try again"),
        (Error::SnapshotFailed { snapshot: name(), message: "why".into() }, Code::Internal, "why"),
        (
            Error::SnapshotNotReady { snapshot: name(), message: "why".into() },
            Code::Aborted,
            "is not ready in the infra cluster: why",
        ),
        (Error::SnapshotPending { snapshot: name(), message: "why".into() }, Code::Aborted, "why"),
        (
            Error::NothingToCopy { volume: name(), progress: "why".into() },
            Code::FailedPrecondition,
            "has nothing to copy yet, its disk is made at its first use: why",
        ),
        (too_small.into(), Code::OutOfRange, "a volume of 1 bytes is too small for its source, which has 2"),
        (bad_token.into(), Code::Aborted, "starting_token \"x\""),
        (Error::MayNotListSnapshots(infra_error(403)), Code::Unavailable, "list volumesnapshots"),
    ]);
}

fn check<const N: usize>(table: [(Error, Code, &str); N]) {
    for (error, code, text) in table {
        let said = error.to_string();
        assert_eq!(error.code(), code, "{said}");
        assert!(said.contains(text), "{said:?} lacks {text:?}");
        let status = Status::from(error);
        assert_eq!((status.code(), status.message()), (code, said.as_str()));
        assert!(status.details().is_empty(), "CSI: details must be empty");
    }
}
