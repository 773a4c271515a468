use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::{
    device::Partition,
    disk_record::{DiskRecord, RecordedDisk},
    model::{DISK_BYTES, disk, mount},
    mount_table::DEVTMPFS,
};

const BOOT: &str = "boot-1";
const STAGING: &str = "/stage";
const TARGET: &str = "/pods/a/mount";

fn wanted() -> Wanted {
    Wanted {
        volume: "pvc-1".into(),
        path: TARGET.into(),
        staging: Some(STAGING.into()),
        required: DISK_BYTES,
        block: false,
        read_only: false,
    }
}

fn record(disks: &[Disk]) -> DiskRecordFile {
    let disks = disks
        .iter()
        .map(|disk| RecordedDisk { number: disk.number, identity: disk.identity.clone() })
        .collect();
    DiskRecordFile::Read(DiskRecord { volume: "pvc-1".into(), boot_id: BOOT.into(), disks })
}

fn other(minor: u64) -> Disk {
    let unit_serial = crate::device::Serial::new("another");
    Disk { identity: DiskIdentity::Scsi { unit_serial, designators: Vec::new() }, ..disk(minor) }
}

/// Staged and published as this driver does it.
fn published(kind: &str) -> Observed {
    let at = |point: &str| mount(disk(16).number, "/", point.as_ref(), kind, false);
    Observed {
        mounts: MountTable(vec![at(STAGING), at(TARGET)]),
        shown: Some(Shown::Mounted(disk(16).number)),
        record: record(&[disk(16)]),
        boot_id: BOOT.into(),
        disks: vec![disk(16)],
    }
}

fn grown_through(observed: &Observed) -> PathBuf {
    match locate(&wanted(), observed).unwrap().content {
        Content::Filesystem { mount, .. } => mount.point,
        Content::Block => panic!("a filesystem is mounted there"),
    }
}

#[test]
fn a_filesystem_is_grown_through_its_staging_mount_or_else_a_writable_one() {
    assert_eq!(grown_through(&published("xfs")), Path::new(STAGING));
    let mut remounted = published("xfs");
    remounted.mounts.0[0].options = ["ro".to_owned()].into();
    assert_eq!(grown_through(&remounted), Path::new(TARGET));

    // kubevirt/csi-driver: the disk itself at the target of each pod, nothing staged, no record.
    let mut reference = published("ext4");
    reference.mounts.0.remove(0);
    reference.mounts.0.push(mount(disk(16).number, "/", "/pods/b/mount".as_ref(), "ext4", false));
    reference.record = DiskRecordFile::Missing;
    assert_eq!(grown_through(&reference), Path::new(TARGET));
    reference.mounts.0[0].options = ["ro".to_owned()].into();
    assert_eq!(grown_through(&reference), Path::new("/pods/b/mount"));
}

#[rstest]
#[case::nothing_is_there(|o: &mut Observed| o.shown = None, "NotFound")]
#[case::the_disk_is_gone(|o: &mut Observed| o.disks.clear(), "Unavailable")]
#[case::another_disk(|o: &mut Observed| o.disks = vec![other(16)], "NotFound")]
#[case::another_disk_of_another_boot(|o: &mut Observed| {
    o.boot_id = "boot-2".into();
    o.disks = vec![other(16)];
}, "NotFound")]
#[case::a_partition(|o: &mut Observed| {
    o.shown = Some(Shown::Mounted(DeviceNumber::new(8, 17)));
    o.disks[0].partitions = vec![Partition { name: "sdb1".into(), number: DeviceNumber::new(8, 17) }];
}, "NotFound")]
#[case::no_record_and_no_serial(|o: &mut Observed| {
    o.record = DiskRecordFile::Missing;
    o.disks[0].identity = DiskIdentity::None;
}, "NotFound")]
#[case::a_folder_of_a_filesystem(|o: &mut Observed| o.mounts.0.iter_mut().for_each(|m| m.root = "/sub".into()), "NotFound")]
#[case::the_systems_own_disk(|o: &mut Observed| {
    o.mounts.0.insert(0, mount(disk(16).number, "/", "/".as_ref(), "ext4", false));
}, "FailedPrecondition")]
#[case::another_filesystem(|o: &mut Observed| o.mounts.0.iter_mut().for_each(|m| m.fs_type = "btrfs".into()), "FailedPrecondition")]
fn what_is_not_the_volume_is_not_expanded(#[case] spoil: fn(&mut Observed), #[case] code: &str) {
    let mut observed = published("ext4");
    spoil(&mut observed);
    let error = locate(&wanted(), &observed).unwrap_err();
    assert_eq!(format!("{:?}", error.code()), code, "{error}");
}

#[test]
fn a_block_volume_is_its_node_or_what_its_record_names() {
    let block = Wanted { block: true, ..wanted() };
    let node = mount(DeviceNumber::new(0, 5), "/sdb", TARGET.as_ref(), DEVTMPFS, false);
    let bound = Observed {
        mounts: MountTable(vec![node]),
        shown: Some(Shown::Node(disk(16).number)),
        ..published("ext4")
    };
    let volume = Volume { disk: disk(16), content: Content::Block };
    assert_eq!(locate(&block, &bound).unwrap(), volume);
    // The caller need not say that it is one.
    assert_eq!(locate(&wanted(), &bound).unwrap(), volume);

    let staged = Observed { mounts: MountTable::default(), shown: None, ..bound };
    assert_eq!(locate(&block, &staged).unwrap(), volume);
    for (record, disks) in [
        (DiskRecordFile::Missing, vec![disk(16)]),
        (DiskRecordFile::Unreadable("/r".into()), vec![disk(16)]),
        (record(&[disk(16)]), vec![]),
        (record(&[disk(16)]), vec![other(16)]),
        (record(&[disk(16)]), vec![disk(16), disk(32)]),
    ] {
        let unknown = Observed { record, disks, ..staged.clone() };
        assert!(matches!(locate(&block, &unknown), Err(Error::VolumeNotFound { .. })), "{unknown:?}");
    }
}

fn volume(kind: FilesystemType) -> Volume {
    let mount = mount(disk(16).number, "/", STAGING.as_ref(), kind.name(), false);
    Volume { disk: disk(16), content: Content::Filesystem { filesystem: kind, mount } }
}

fn half() -> Condition {
    Condition { bytes: Some(DISK_BYTES / 2), ..Condition::default() }
}

#[rstest]
#[case::whole(Some(DISK_BYTES), false, 0)]
#[case::larger_than_its_disk(Some(DISK_BYTES + 1), false, 0)]
#[case::a_tail_that_nothing_uses(Some(DISK_BYTES - LEAST_GROWTH_BYTES + 1), false, 0)]
#[case::one_mib(Some(DISK_BYTES - LEAST_GROWTH_BYTES), false, 1)]
#[case::half(Some(DISK_BYTES / 2), false, 1)]
#[case::not_understood(None, false, 1)]
#[case::grown_just_now(None, true, 0)]
fn a_filesystem_that_is_smaller_than_its_disk_is_grown(
    #[case] bytes: Option<u64>,
    #[case] grown: bool,
    #[case] steps: usize,
) {
    for kind in [FilesystemType::Ext2, FilesystemType::Ext3, FilesystemType::Ext4, FilesystemType::Xfs] {
        let condition = Condition { bytes, grown, ..Condition::default() };
        let planned = plan(&wanted(), &volume(kind), &condition).unwrap();
        assert_eq!(planned.len(), steps, "{kind}");
        assert!(
            planned.iter().all(|step| matches!(step, Step::Grow { filesystem, .. } if *filesystem == kind))
        );
    }
}

#[test]
fn a_block_volume_has_nothing_to_grow() {
    let block = Volume { disk: disk(16), content: Content::Block };
    assert_eq!(plan(&wanted(), &block, &Condition::default()).unwrap(), []);
}

#[test]
fn what_can_not_be_grown_says_why_unless_it_is_large_enough() {
    let whole = Condition { bytes: Some(DISK_BYTES), ..Condition::default() };
    let check = |spoil: fn(&mut Wanted, &mut Volume, &mut Condition)| {
        let refused = |condition: Condition| {
            let (mut wanted, mut volume, mut condition) = (wanted(), volume(FilesystemType::Ext4), condition);
            spoil(&mut wanted, &mut volume, &mut condition);
            plan(&wanted, &volume, &condition)
        };
        assert_eq!(refused(whole.clone()).unwrap(), []);
        refused(half()).unwrap_err()
    };
    let remount = |volume: &mut Volume| {
        if let Content::Filesystem { mount, .. } = &mut volume.content {
            mount.super_options = ["ro".to_owned()].into();
        }
    };
    let locked = check(|_, volume, _| volume.disk.read_only = true);
    assert!(matches!(locked, Error::ReadOnlyNotGrown { .. }), "{locked}");
    let refused = check(|_, _, condition| condition.write_refusal = Some("EROFS".into()));
    assert!(matches!(refused, Error::NotWritable { .. }), "{refused}");
    let damaged = check(|_, _, condition| condition.has_errors = true);
    assert!(matches!(damaged, Error::GrowthNeedsCheck { .. }), "{damaged}");

    let mut remounted = volume(FilesystemType::Ext4);
    remount(&mut remounted);
    let reader = Wanted { read_only: true, ..wanted() };
    assert!(matches!(plan(&reader, &remounted, &half()), Err(Error::ReadOnlyNotGrown { .. })));
    // Nobody asked for readers only: the kernel or somebody by hand made it so.
    assert!(matches!(plan(&wanted(), &remounted, &half()), Err(Error::NotWritable { .. })));
}

proptest! {
    /// Whatever else is the case: success is never answered for a disk that is too small, nor is such a disk touched, and
    /// no code is one that the kubelet takes for infeasible.
    #[test]
    fn a_disk_that_is_too_small_is_waited_for(
        bytes in 0_u64..4,
        required in 0_u64..4,
        filesystem_bytes in proptest::option::of(0_u64..4),
        has_errors in any::<bool>(),
        grown in any::<bool>(),
        block in any::<bool>(),
    ) {
        let mib = |count: u64| count << 20;
        let mut volume = volume(FilesystemType::Ext4);
        volume.disk.bytes = mib(bytes);
        if block {
            volume.content = Content::Block;
        }
        let wanted = Wanted { required: mib(required), block, ..wanted() };
        let condition = Condition { bytes: filesystem_bytes.map(mib), has_errors, write_refusal: None, grown };
        let planned = plan(&wanted, &volume, &condition);
        if bytes < required {
            prop_assert!(matches!(planned, Err(Error::DiskNotGrown { .. })), "{planned:?}");
        }
        if let Err(error) = planned {
            prop_assert_eq!(error.code(), tonic::Code::Unavailable);
        }
    }
}
