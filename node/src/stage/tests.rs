use rstest::rstest;

use super::*;
use crate::{
    model::{DISK_BYTES, disk, mount, serial},
    origin::{FilesystemUuid, MadeBlank},
};

const STAGING: &str = "/stage";

fn wanted(filesystem: FilesystemType, flags: &[&str]) -> Wanted {
    let options = MountOptions::parse(flags).unwrap();
    let origin = Origin::default();
    Wanted { volume: "pvc-1".into(), serial: serial(), staging: STAGING.into(), filesystem, options, origin }
}

fn observed(content: Content) -> Observed {
    Observed {
        disk: disk(16),
        mounts: MountTable::default(),
        path: PathState::Directory,
        stale: false,
        disk_record: None,
        record: None,
        content: Some(content),
        making: Making::default(),
        filesystem_bytes: None,
        write_refusal: None,
    }
}

fn record(filesystem: FilesystemType) -> MkfsRecord {
    MkfsRecord { serial: serial().as_str().to_owned(), filesystem }
}

fn found(kind: &str, completion: Completion) -> Content {
    Content::Filesystem { kind: kind.into(), completion, fingerprint: 1 }
}

const BLANK: Content = Content::Blank { fingerprint: 1 };
const BYTES: Content = Content::UnknownData { at: 0, fingerprint: 1 };
use Completion::{Finished, Unfinished, Unused};
use FilesystemType::{Ext4, Xfs};

#[rstest]
#[case::blank(Ext4, BLANK, None, false, Ok("format_blank"))]
#[case::same(Ext4, found("ext4", Finished), None, false, Ok("use_existing"))]
#[case::mounted(Xfs, Content::Mounted { kind: "xfs".into() }, None, false, Ok("use_mounted"))]
#[case::bytes(Ext4, BYTES, None, false, Err("FailedPrecondition"))]
#[case::bytes_allowed(Ext4, BYTES, None, true, Ok("format_nonzero_allowed"))]
#[case::bytes_recorded(Ext4, BYTES, Some(record(Ext4)), false, Ok("format_resumed"))]
#[case::bytes_recorded_as_another(Xfs, BYTES, Some(record(Ext4)), false, Err("FailedPrecondition"))]
#[case::bytes_of_another_volume(
    Ext4, BYTES, Some(MkfsRecord { serial: "other".into(), filesystem: Ext4 }), false, Err("FailedPrecondition"))]
#[case::unfinished(Xfs, found("xfs", Unfinished), None, false, Err("FailedPrecondition"))]
#[case::unfinished_allowed(Xfs, found("xfs", Unfinished), None, true, Err("FailedPrecondition"))]
#[case::unfinished_recorded(Xfs, found("xfs", Unfinished), Some(record(Xfs)), false, Ok("format_resumed"))]
#[case::unused(Ext4, found("ext4", Unused), None, false, Ok("use_existing"))]
#[case::unused_recorded(Ext4, found("ext4", Unused), Some(record(Ext4)), false, Ok("format_resumed"))]
#[case::unused_of_another_volume(Ext4, found("ext4", Unused),
    Some(MkfsRecord { serial: "other".into(), filesystem: Ext4 }), false, Ok("use_existing"))]
#[case::other_unused_recorded(Xfs, found("ext4", Unused), Some(record(Xfs)), true, Err("FailedPrecondition"))]
#[case::finished_recorded(Xfs, found("xfs", Finished), Some(record(Xfs)), false, Ok("use_existing"))]
#[case::other(Ext4, found("xfs", Finished), None, true, Err("FailedPrecondition"))]
#[case::other_recorded(Ext4, found("xfs", Finished), Some(record(Ext4)), true, Err("FailedPrecondition"))]
#[case::unknown_filesystem(Ext4, found("btrfs", Finished), None, true, Err("FailedPrecondition"))]
#[case::gpt(Ext4, Content::Partitioned { table: "gpt".into() }, Some(record(Ext4)), true, Err("FailedPrecondition"))]
#[case::luks(Ext4, Content::Foreign { kind: "crypto_LUKS".into() }, Some(record(Ext4)), true, Err("FailedPrecondition"))]
#[case::ambiguous(Ext4, Content::Ambiguous { detail: "x".into() }, Some(record(Ext4)), true, Err("FailedPrecondition"))]
#[case::unreadable(Ext4, Content::Unreadable { reason: "EIO".into() }, Some(record(Ext4)), true, Err("Unavailable"))]
fn the_content_decides(
    #[case] filesystem: FilesystemType,
    #[case] content: Content,
    #[case] record: Option<MkfsRecord>,
    #[case] allow_nonzero: bool,
    #[case] decision: Result<&str, &str>,
) {
    let observed = Observed { record, ..observed(content.clone()) };
    let made = decide(&wanted(filesystem, &[]), &observed, &content, allow_nonzero);
    let code = made.as_ref().map_err(|error| format!("{:?}", error.code()));
    assert_eq!(code.map(|d| d.label()).map_err(|c| c.clone()), decision.map_err(str::to_owned), "{made:?}");
}

const OWN: FilesystemUuid = FilesystemUuid([1; 16]);
const OTHER: FilesystemUuid = FilesystemUuid([2; 16]);

/// Recycled blocks: infra storage that does not wipe hands an earlier owner's filesystem to a volume that was made blank.
#[rstest]
#[case::marked(Some(OWN), None, None, true)]
#[case::marked_whatever_the_clock(Some(OWN), Some(1), None, true)]
#[case::by_an_earlier_node_role(Some(OTHER), Some(100), None, true)]
#[case::an_earlier_owners(Some(OTHER), Some(99), None, false)]
#[case::an_earlier_owners_of_unknown_time(Some(OTHER), None, None, false)]
#[case::a_superblock_that_is_not_read(None, None, None, false)]
#[case::of_a_mkfs_from_here(Some(OTHER), None, Some(()), true)]
fn a_volume_that_was_made_blank_takes_no_earlier_owners_filesystem(
    #[case] uuid: Option<FilesystemUuid>,
    #[case] at: Option<u64>,
    #[case] recorded: Option<()>,
    #[case] own: bool,
    #[values(Ext4, Xfs)] filesystem: FilesystemType,
    #[values(&[], &["ro"])] flags: &[&str],
    #[values(Finished, Unused)] completion: Completion,
) {
    let blank = MadeBlank { since: 100, uuid: OWN };
    let mut made = wanted(filesystem, flags);
    made.origin.made_blank = Some(blank);
    let record = recorded.filter(|()| completion == Finished).map(|()| record(filesystem));
    let own = own && !(recorded.is_some() && completion != Finished);
    let there =
        Observed { making: Making { uuid, at }, record, ..observed(found(filesystem.name(), completion)) };
    // No permission to format makes somebody else's filesystem ours.
    match plan(&made, &there, true) {
        Ok(steps) => {
            assert!(own, "{steps:?}");
            assert!(!steps.iter().any(|step| matches!(step, Step::Format { .. })), "{steps:?}");
        }
        Err(error) => {
            assert!(!own && matches!(error, Error::ForeignFilesystem { .. }), "{error}");
            assert!(error.to_string().contains("01010101-0101-0101-0101-010101010101"), "{error}");
        }
    }
    // A volume of an earlier version, a restored one and a clone do not say that they were blank.
    plan(&wanted(filesystem, flags), &there, false).unwrap();
    // One that is mounted on this node is in use, and is not judged again.
    let mounted = Observed { content: Some(Content::Mounted { kind: filesystem.name().into() }), ..there };
    plan(&made, &mounted, false).unwrap();
}

#[test]
fn a_blank_volume_gets_a_filesystem_that_carries_its_uuid() {
    let mut made = wanted(Ext4, &[]);
    made.origin.made_blank = Some(MadeBlank { since: 100, uuid: OWN });
    let marks = |wanted: &Wanted| {
        let steps = plan(wanted, &observed(BLANK), false).unwrap();
        steps.into_iter().find_map(|step| match step {
            Step::Format { uuid, .. } => Some(uuid),
            _ => None,
        })
    };
    assert_eq!(marks(&made), Some(Some(OWN)));
    assert_eq!(marks(&wanted(Ext4, &[])), Some(None));
}

/// A copy has its filesystem from its source. Where it has none, a new one would hide that.
#[rstest]
#[case::blank(Content::Blank { fingerprint: 7 }, None, false, Err(true))]
#[case::blank_where_unknown_data_may_be_formatted(Content::Blank { fingerprint: 7 }, None, true, Err(true))]
#[case::unknown_data(BYTES, None, false, Err(false))]
#[case::unknown_data_that_may_be_formatted(BYTES, None, true, Err(false))]
#[case::the_sources_filesystem(found("ext4", Finished), None, false, Ok("use_existing"))]
#[case::a_mkfs_of_an_earlier_version(Content::Blank { fingerprint: 7 }, Some(record(Ext4)), false, Ok("format_blank"))]
fn a_copy_is_never_formatted(
    #[case] content: Content,
    #[case] record: Option<MkfsRecord>,
    #[case] allow_nonzero: bool,
    #[case] decision: Result<&str, bool>,
) {
    let mut copy = wanted(Ext4, &[]);
    copy.origin.copied = true;
    let observed = Observed { record, ..observed(content.clone()) };
    let made = decide(&copy, &observed, &content, allow_nonzero);
    let shown = made
        .as_ref()
        .map(|decision| decision.label())
        .map_err(|error| matches!(error, Error::BlankCopy { .. }));
    assert_eq!(shown, decision, "{made:?}");
    let not_a_copy = decide(&wanted(Ext4, &[]), &observed, &content, true);
    assert!(not_a_copy.is_ok(), "{not_a_copy:?}");
}

/// Encrypted infra storage shows noise where nothing was written.
#[test]
fn a_class_may_allow_to_format_unknown_data_and_nothing_else() {
    let mut allowed = wanted(Ext4, &[]);
    allowed.origin.format_nonzero = true;
    let decided =
        |wanted: &Wanted, content: Content| decide(wanted, &observed(content.clone()), &content, false);
    assert!(matches!(decided(&allowed, BYTES), Ok(Decision::FormatAllowed(_))));
    assert!(decided(&wanted(Ext4, &[]), BYTES).is_err(), "another class keeps its protection");
    for content in [
        found("xfs", Finished),
        found("ext4", Unfinished),
        Content::Foreign { kind: "crypto_LUKS".into() },
        Content::Partitioned { table: "gpt".into() },
        Content::Ambiguous { detail: "x".into() },
        Content::Unreadable { reason: "EIO".into() },
    ] {
        assert!(decided(&allowed, content.clone()).is_err(), "{content:?}");
    }
    assert!(matches!(decided(&allowed, found("ext4", Finished)), Ok(Decision::Use)));
}

#[test]
fn a_read_only_volume_or_disk_is_never_formatted() {
    let blank = observed(BLANK);
    let reader = wanted(Ext4, &["ro"]);
    assert!(matches!(plan(&reader, &blank, true), Err(Error::ReadOnlyBlank { .. })));
    let mut locked = observed(BLANK);
    locked.disk.read_only = true;
    assert!(matches!(plan(&wanted(Ext4, &[]), &locked, true), Err(Error::ReadOnlyBlank { .. })));
    let steps = plan(&reader, &observed(found("ext4", Finished)), false).unwrap();
    assert!(
        matches!(steps.as_slice(), [Step::Mount { options, .. }] if options.read_only()),
        "no check, {steps:?}"
    );
}

#[rstest]
#[case::xfs(Xfs, (300 << 20) - 512, false)]
#[case::xfs_at_its_least(Xfs, 300 << 20, true)]
#[case::ext3_without_its_journal(FilesystemType::Ext3, 1 << 20, false)]
#[case::ext4(Ext4, 1 << 20, true)]
fn a_disk_that_is_too_small_is_not_formatted(
    #[case] filesystem: FilesystemType,
    #[case] bytes: u64,
    #[case] fits: bool,
) {
    let mut small = observed(BLANK);
    small.disk.bytes = bytes;
    match plan(&wanted(filesystem, &[]), &small, false) {
        Ok(_) => assert!(fits),
        Err(error) => assert!(!fits && matches!(error, Error::DiskTooSmall { .. }), "{error}"),
    }
    // What is not blank is named so, also where it could be formatted.
    for (content, record) in [
        (BYTES, None),
        (BYTES, Some(record(filesystem))),
        (found(filesystem.name(), Unused), Some(record(filesystem))),
    ] {
        let not_blank = Observed { content: Some(content), record, ..small.clone() };
        match plan(&wanted(filesystem, &[]), &not_blank, true) {
            Ok(_) => assert!(fits),
            Err(error) => assert!(!fits && matches!(error, Error::NotBlank { .. }), "{error}"),
        }
    }
    // One that exists is used as it is.
    small.content = Some(found(filesystem.name(), Finished));
    plan(&wanted(filesystem, &[]), &small, false).unwrap();
}

#[test]
fn the_record_is_there_from_before_mkfs_until_before_the_mount() {
    let steps = plan(&wanted(Xfs, &["noatime"]), &observed(BLANK), false).unwrap();
    assert!(
        matches!(
            steps.as_slice(),
            [
                Step::WriteMkfsRecord { .. },
                Step::Format { filesystem: Xfs, fingerprint: 1, .. },
                Step::RemoveMkfsRecord { .. },
                Step::Mount { options, .. },
            ] if options.to_string() == "noatime,nouuid"
        ),
        "{steps:?}"
    );
    let left = Observed { record: Some(record(Ext4)), ..observed(found("ext4", Finished)) };
    let steps = plan(&wanted(Ext4, &[]), &left, false).unwrap();
    assert!(
        matches!(steps.as_slice(), [Step::RemoveMkfsRecord { .. }, Step::Check { .. }, Step::Mount { .. }]),
        "{steps:?}"
    );
}

#[test]
fn a_filesystem_that_is_mounted_elsewhere_is_not_checked() {
    let shared = observed(Content::Mounted { kind: "ext4".into() });
    let steps = plan(&wanted(Ext4, &[]), &shared, false).unwrap();
    assert!(matches!(steps.as_slice(), [Step::Mount { .. }]), "{steps:?}");
}

fn staged(number_minor: u64, kind: &str, read_only: bool) -> Observed {
    let number = disk(number_minor).number;
    Observed {
        mounts: MountTable(vec![mount(number, "/", STAGING.as_ref(), kind, read_only)]),
        content: None,
        filesystem_bytes: Some(DISK_BYTES),
        ..observed(BLANK)
    }
}

#[test]
fn what_is_staged_is_done_grown_or_in_conflict() {
    let as_asked = wanted(Ext4, &[]);
    assert_eq!(plan(&as_asked, &staged(16, "ext4", false), false).unwrap(), []);

    let conflict = |wanted: &Wanted, observed: &Observed| match plan(wanted, observed, false) {
        Err(Error::MountConflict { found, wanted, .. }) => format!("{found} / {wanted}"),
        other => panic!("no conflict: {other:?}"),
    };
    assert_eq!(conflict(&as_asked, &staged(32, "ext4", false)), "device 8:32 / sdb (8:16)");
    assert_eq!(conflict(&as_asked, &staged(16, "xfs", false)), "xfs / ext4");
    let read_only = plan(&as_asked, &staged(16, "ext4", true), false).unwrap_err();
    assert!(matches!(&read_only, Error::NotWritable { reason, .. } if reason == "its mount is read-only"));
    assert!(conflict(&wanted(Ext4, &["ro"]), &staged(16, "ext4", false)).contains("writable"));
    assert_eq!(
        conflict(&wanted(Ext4, &["noexec"]), &staged(16, "ext4", false)),
        "without noexec / with noexec"
    );

    let small = Observed { filesystem_bytes: Some(DISK_BYTES / 2), ..staged(16, "ext4", false) };
    assert!(matches!(plan(&as_asked, &small, false).unwrap().as_slice(), [Step::Grow { .. }]));
    let tail =
        Observed { filesystem_bytes: Some(DISK_BYTES - GROW_THRESHOLD_BYTES), ..staged(16, "ext4", false) };
    assert_eq!(plan(&as_asked, &tail, false).unwrap(), []);
}

#[test]
fn a_filesystem_that_takes_no_writes_is_staged_for_readers_only() {
    let refused = |read_only| Observed {
        write_refusal: Some("Read-only file system (os error 30)".into()),
        filesystem_bytes: Some(DISK_BYTES / 2),
        ..staged(16, "ext4", read_only)
    };
    let error = plan(&wanted(Ext4, &[]), &refused(false), false).unwrap_err();
    assert!(
        matches!(&error, Error::NotWritable { path, .. } if path == std::path::Path::new(STAGING)),
        "{error}"
    );
    assert_eq!(plan(&wanted(Ext4, &["ro"]), &refused(true), false).unwrap(), [], "and is not grown");
}

#[test]
fn a_broken_mount_is_taken_off_first_all_of_it() {
    let mut stacked = staged(32, "ext4", false);
    stacked.mounts.0.push(stacked.mounts.0[0].clone());
    stacked.stale = true;
    let unmount = Step::Unmount { target: STAGING.into() };
    assert_eq!(plan(&wanted(Ext4, &[]), &stacked, false).unwrap(), [unmount.clone(), unmount]);
}

#[test]
fn a_file_in_the_place_of_the_directory_is_a_conflict() {
    let blocked = Observed { path: PathState::File { bytes: 0 }, ..observed(BLANK) };
    assert!(matches!(plan(&wanted(Ext4, &[]), &blocked, false), Err(Error::MountConflict { .. })));
    let missing = Observed { path: PathState::Missing, ..observed(BLANK) };
    assert!(matches!(plan(&wanted(Ext4, &[]), &missing, false).unwrap()[0], Step::CreateDirectory(_)));
}
