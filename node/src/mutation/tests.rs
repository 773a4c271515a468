//! The loops on the model machine: what they end in, and that being killed at any step does not change the result.

use std::time::Duration;

use proptest::{prelude::*, sample::select};

use super::*;
use csi_call::LastReport;

use crate::{
    disk_record::DiskRecordFile,
    metrics::Metrics,
    model::{DISK_BYTES, Fault, Held, Model, disk, mount, serial},
    mount_options::MountOptions,
    mount_table::DEVTMPFS,
    step::MkfsRecord,
};

const VOLUME: &str = "pvc-1";
const STAGING: &str = "/stage";
const TARGET: &str = "/pods/a/mount";

struct Setup {
    model: Model,
    metrics: Metrics,
    progress: LastReport,
    allow_format_nonzero: bool,
}

impl Setup {
    fn new(held: Held) -> Self {
        let model = Model::with_disk(held);
        model.state().paths.insert(STAGING.into(), None);
        Self {
            model,
            metrics: Metrics::default(),
            progress: LastReport::default(),
            allow_format_nonzero: false,
        }
    }

    fn context(&self) -> MutationContext<'_> {
        MutationContext {
            host: &self.model,
            allow_format_nonzero: self.allow_format_nonzero,
            release_wait: Duration::ZERO,
            metrics: &self.metrics,
            progress: &self.progress,
        }
    }

    fn stage(&self, filesystem: FilesystemType, flags: &[&str]) -> Result<()> {
        stage_filesystem(self.context(), &staged(filesystem, flags), &disk(16))
    }

    fn expand(&self, required: u64) -> Result<Capacity> {
        expand(self.context(), &expanded(required))
    }

    fn unpublish(&self, target: &str) -> Result<()> {
        unpublish(self.context(), VOLUME, target.as_ref())
    }

    fn unstage(&self) -> Result<()> {
        unstage(self.context(), VOLUME, STAGING.as_ref())
    }

    /// The text that names what keeps the volume from being unstaged.
    fn holders(&self) -> String {
        match self.unstage() {
            Err(Error::StillInUse { holders, .. }) => holders,
            other => panic!("released: {other:?}"),
        }
    }

    fn publish(&self, read_only: bool) -> Result<Published> {
        publish_filesystem(self.context(), &published(read_only), &serial())
    }
}

fn staged(filesystem: FilesystemType, flags: &[&str]) -> stage::Wanted {
    let options = MountOptions::parse(flags).unwrap();
    let origin = crate::origin::Origin::default();
    stage::Wanted {
        volume: VOLUME.into(),
        serial: serial(),
        staging: STAGING.into(),
        filesystem,
        options,
        origin,
    }
}

fn published(read_only: bool) -> publish::Wanted {
    let source = publish::Source::Staging(STAGING.into());
    let staged_read_only = false;
    publish::Wanted { source, target: TARGET.into(), read_only, staged_read_only, exclusive: false }
}

fn expanded(required: u64) -> expand::Wanted {
    let (path, staging) = (TARGET.into(), Some(STAGING.into()));
    expand::Wanted { volume: VOLUME.into(), path, staging, required, block: false, read_only: false }
}

fn ext4(bytes: u64) -> Held {
    Held::Filesystem { kind: "ext4".into(), bytes }
}

#[test]
fn a_blank_disk_goes_all_the_way_and_back() {
    let setup = Setup::new(Held::Blank);
    setup.stage(FilesystemType::Ext4, &["noexec"]).unwrap();
    setup.model.take_applied();
    setup.stage(FilesystemType::Ext4, &["noexec"]).unwrap();
    assert_eq!(setup.model.take_applied(), [], "staged already");

    assert_eq!(setup.publish(true).unwrap(), Published::Done);
    assert!(setup.model.state().mounts[1].read_only());
    assert!(setup.model.state().mounts[1].options.contains("noexec"));
    setup.model.take_applied();
    assert_eq!(setup.publish(true).unwrap(), Published::Done);
    assert_eq!(setup.model.take_applied(), [], "published already");

    assert_eq!(setup.model.state().disk_records.len(), 1);
    for _ in 0..2 {
        setup.unpublish(TARGET).unwrap();
    }
    for _ in 0..2 {
        setup.unstage().unwrap();
        assert!(setup.model.state().disk_records.is_empty());
    }
    assert!(setup.model.state().mounts.is_empty());
    assert!(!setup.model.state().paths.contains_key(Path::new(TARGET)));
    assert!(
        setup.model.state().paths.contains_key(Path::new(STAGING)),
        "the staging directory is the kubelet's"
    );
}

#[test]
fn a_restored_smaller_filesystem_is_grown_once_it_is_mounted() {
    let setup = Setup::new(ext4(DISK_BYTES / 2));
    setup.stage(FilesystemType::Ext4, &[]).unwrap();
    let kinds: Vec<String> = setup.model.take_applied().iter().map(ToString::to_string).collect();
    let expected = [
        "checking the ext4 on sdb",
        "recording the disk of volume pvc-1",
        "mounting sdb at /stage",
        "growing the ext4 on sdb",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(setup.model.state().disks[0].1, ext4(DISK_BYTES));
}

#[test]
fn a_volume_is_grown_where_it_is_mounted_and_once() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.stage(FilesystemType::Ext4, &[]).unwrap();
    setup.publish(false).unwrap();
    setup.model.state().disks[0].0.bytes = 3 * DISK_BYTES;
    setup.model.take_applied();
    assert_eq!(setup.expand(2 * DISK_BYTES).unwrap(), Capacity(3 * DISK_BYTES), "what the disk has");
    assert!(matches!(setup.model.take_applied().as_slice(),
        [Step::Grow { mount_point, .. }] if mount_point == Path::new(STAGING)));
    assert_eq!(setup.model.state().disks[0].1, ext4(3 * DISK_BYTES));
    for required in [0, DISK_BYTES, 3 * DISK_BYTES] {
        assert_eq!(setup.expand(required).unwrap(), Capacity(3 * DISK_BYTES));
        assert_eq!(setup.model.take_applied(), [], "it is large enough");
    }
    let short = setup.expand(4 * DISK_BYTES).unwrap_err();
    assert!(matches!(short, Error::DiskNotGrown { bytes, .. } if bytes == 3 * DISK_BYTES), "{short}");
    setup.unpublish(TARGET).unwrap();
    setup.unstage().unwrap();
    assert!(matches!(setup.expand(0), Err(Error::VolumeNotFound { .. })));
    assert_eq!(setup.model.state().disks[0].1, ext4(3 * DISK_BYTES));
}

#[test]
fn a_block_volume_has_the_size_of_its_disk_staged_or_published() {
    let setup = Setup::new(Held::Partitions);
    let block = expand::Wanted { block: true, ..expanded(DISK_BYTES) };
    assert!(matches!(expand(setup.context(), &block), Err(Error::VolumeNotFound { .. })));
    stage_block(setup.context(), VOLUME, &disk(16), STAGING.as_ref()).unwrap();
    let source = publish::Source::Node { path: "/dev/sdb".into(), number: disk(16).number };
    let wanted = publish::Wanted { source, ..published(false) };
    for published in [false, true] {
        if published {
            publish_block(setup.context(), VOLUME, &wanted, &disk(16)).unwrap();
        }
        setup.model.take_applied();
        assert_eq!(expand(setup.context(), &block).unwrap(), Capacity(DISK_BYTES));
        assert_eq!(setup.model.take_applied(), []);
    }
}

#[test]
fn a_mount_whose_disk_is_gone_is_replaced_and_one_of_a_living_disk_is_not() {
    let gone = Setup::new(ext4(DISK_BYTES));
    gone.model.state().mounts.push(mount(disk(32).number, "/", STAGING.as_ref(), "ext4", false));
    gone.stage(FilesystemType::Ext4, &[]).unwrap();
    assert_eq!(gone.model.state().mounts.len(), 1);
    assert_eq!(gone.model.state().mounts[0].number, disk(16).number);

    let alive = Setup::new(ext4(DISK_BYTES));
    let mut other = disk(32);
    other.identity = crate::device::DiskIdentity::None;
    alive.model.state().disks.push((other, ext4(DISK_BYTES)));
    alive.model.state().mounts.push(mount(disk(32).number, "/", STAGING.as_ref(), "ext4", false));
    assert!(matches!(alive.stage(FilesystemType::Ext4, &[]), Err(Error::MountConflict { .. })));
    assert_eq!(alive.model.take_applied(), []);
}

#[test]
fn a_filesystem_that_the_kernel_made_read_only_is_neither_staged_nor_published_again_for_a_writer() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.stage(FilesystemType::Ext4, &[]).unwrap();
    assert_eq!(setup.publish(false).unwrap(), Published::Done);
    setup.model.take_applied();
    setup.model.state().write_refusal = Some("Read-only file system (os error 30)".into());
    let second = publish::Wanted { target: "/pods/b/mount".into(), ..published(false) };
    for failed in [
        setup.stage(FilesystemType::Ext4, &[]).unwrap_err(),
        setup.publish(false).unwrap_err(),
        publish_filesystem(setup.context(), &second, &serial()).unwrap_err(),
    ] {
        assert!(matches!(failed, Error::NotWritable { .. }), "{failed}");
    }
    assert_eq!(setup.model.take_applied(), [], "and nothing is taken from the pod that has it");
    let reader = publish::Wanted { read_only: true, ..second };
    assert_eq!(publish_filesystem(setup.context(), &reader, &serial()).unwrap(), Published::Done);
    setup.unpublish("/pods/b/mount").unwrap();
    setup.unpublish(TARGET).unwrap();
    setup.unstage().unwrap();
    setup.model.state().write_refusal = None;
    setup.stage(FilesystemType::Ext4, &[]).unwrap();
}

#[test]
fn the_older_layout_is_served() {
    // kubevirt/csi-driver mounts the disk itself at the target and nothing at the staging path.
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.model.state().paths.insert(TARGET.into(), None);
    setup.model.state().mounts.push(mount(disk(16).number, "/", TARGET.as_ref(), "ext4", false));

    assert_eq!(setup.publish(false).unwrap(), Published::Done, "its target is published");
    let second = publish::Wanted { target: "/pods/b/mount".into(), ..published(false) };
    let outcome = publish_filesystem(setup.context(), &second, &serial()).unwrap();
    assert_eq!(outcome, Published::NotStaged);
    setup.stage(FilesystemType::Ext4, &[]).unwrap();
    assert!(
        matches!(setup.model.take_applied().as_slice(), [Step::WriteDiskRecord(_), Step::Mount { .. }]),
        "no check of what is mounted"
    );
    let outcome = publish_filesystem(setup.context(), &second, &serial()).unwrap();
    assert_eq!(outcome, Published::Done);

    setup.unpublish(TARGET).unwrap();
    setup.unpublish("/pods/b/mount").unwrap();
    setup.unstage().unwrap();
    assert!(setup.model.state().mounts.is_empty());
}

#[test]
fn a_staging_mount_of_another_volume_is_not_published() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.model.state().disks[0].0.identity = crate::device::DiskIdentity::None;
    setup.model.state().mounts.push(mount(disk(16).number, "/", STAGING.as_ref(), "ext4", false));
    assert!(matches!(setup.publish(false), Err(Error::MountConflict { .. })));
    assert_eq!(setup.model.take_applied(), []);
}

#[test]
fn a_staging_mount_whose_disk_is_gone_is_not_published_until_it_is_staged_again() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.stage(FilesystemType::Ext4, &[]).unwrap();
    let lost = setup.model.state().disks.remove(0);
    setup.model.take_applied();
    assert_eq!(setup.publish(false).unwrap(), Published::NotStaged);
    assert_eq!(setup.model.take_applied(), []);

    let back = Disk { name: "sdc".into(), number: disk(32).number, ..lost.0 };
    setup.model.state().disks.push((back.clone(), lost.1));
    stage_filesystem(setup.context(), &staged(FilesystemType::Ext4, &[]), &back).unwrap();
    assert_eq!(setup.publish(false).unwrap(), Published::Done);
    assert!(setup.model.state().mounts.iter().all(|mount| mount.number == back.number));
}

#[test]
fn a_block_volume_is_bound_and_taken_back() {
    let setup = Setup::new(Held::Partitions);
    let source = publish::Source::Node { path: "/dev/sdb".into(), number: disk(16).number };
    let (read_only, staged_read_only) = (false, false);
    let wanted =
        publish::Wanted { source, target: TARGET.into(), read_only, staged_read_only, exclusive: true };
    stage_block(setup.context(), VOLUME, &disk(16), STAGING.as_ref()).unwrap();
    publish_block(setup.context(), VOLUME, &wanted, &disk(16)).unwrap();
    assert_eq!(setup.model.state().mounts[0].fs_type, DEVTMPFS);
    setup.model.take_applied();
    publish_block(setup.context(), VOLUME, &wanted, &disk(16)).unwrap();
    assert_eq!(setup.model.take_applied(), []);
    let second = publish::Wanted { target: "/pods/b/block".into(), ..wanted };
    assert!(matches!(
        publish_block(setup.context(), VOLUME, &second, &disk(16)),
        Err(Error::AlreadyPublished { .. })
    ));
    setup.unpublish(TARGET).unwrap();
    assert!(setup.model.state().mounts.is_empty());
    setup.model.state().used_elsewhere = true;
    assert_eq!(setup.holders(), "process 7 (leak)");
    setup.model.state().used_elsewhere = false;
    setup.unstage().unwrap();
    assert!(setup.model.state().disk_records.is_empty());
}

#[test]
fn what_is_still_used_is_not_released() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.stage(FilesystemType::Ext4, &[]).unwrap();
    setup.model.state().busy.insert(STAGING.into());
    assert!(matches!(setup.unstage(), Err(Error::MountBusy { .. })));
    setup.model.state().busy.clear();
    setup.publish(false).unwrap();
    assert_eq!(setup.holders(), format!("mounted at {TARGET}"));
    setup.unpublish(TARGET).unwrap();
    setup.model.state().used_elsewhere = true;
    assert_eq!(setup.holders(), "process 7 (leak)");
    setup.model.state().disks.clear();
    setup.unstage().unwrap();
    assert!(setup.model.state().disk_records.is_empty());
}

#[test]
fn a_volume_that_was_never_here_is_unstaged_without_a_disk() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.model.state().used_elsewhere = true;
    setup.unstage().unwrap();
    assert_eq!(setup.model.take_applied(), []);
}

#[test]
fn without_a_record_a_mount_at_the_staging_path_elsewhere_is_found() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.model.state().used_elsewhere = true;
    setup.model.state().mounted_elsewhere = vec![disk(16).number];
    assert_eq!(setup.holders(), "process 7 (leak)");
    setup.model.state().disks.clear();
    setup.unstage().unwrap();
}

#[test]
fn a_record_that_can_not_be_read_accuses_each_named_disk_in_use_that_no_mount_explains() {
    let setup = Setup::new(ext4(DISK_BYTES));
    let unreadable = DiskRecordFile::Unreadable("/csi/disk-records/pvc-1.json".into());
    setup.model.state().disk_records.insert(VOLUME.into(), unreadable);
    setup.model.state().used_elsewhere = true;
    let error = setup.unstage().unwrap_err();
    assert!(matches!(&error, Error::ReleaseUnknown { name, .. } if name == "sdb"), "{error:?}");

    setup.model.state().mounts.push(mount(disk(16).number, "/", "/".as_ref(), "ext4", false));
    setup.model.state().used_elsewhere = false;
    setup.unstage().unwrap();
    assert!(setup.model.state().disk_records.is_empty());
}

#[test]
fn the_record_of_an_earlier_boot_names_its_disk_by_serial_only() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.stage(FilesystemType::Ext4, &[]).unwrap();
    setup.model.state().mounts.clear();
    setup.model.state().boot_id = "the next boot".into();
    setup.model.state().used_elsewhere = true;
    assert_eq!(setup.holders(), "process 7 (leak)");
    // The number went to a disk without a name.
    setup.model.state().disks[0].0.identity = crate::device::DiskIdentity::None;
    setup.model.state().used_elsewhere = false;
    setup.unstage().unwrap();
    assert!(setup.model.state().disk_records.is_empty());
}

#[test]
fn what_an_older_driver_published_is_recorded_before_it_is_taken_away() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.model.state().paths.insert(TARGET.into(), None);
    setup.model.state().mounts.push(mount(disk(16).number, "/", TARGET.as_ref(), "ext4", false));
    setup.model.state().used_elsewhere = true;
    setup.unpublish(TARGET).unwrap();
    assert_eq!(setup.holders(), "process 7 (leak)");

    let block = Setup::new(Held::Partitions);
    block.model.state().paths.insert(TARGET.into(), Some(0));
    block.model.state().mounts.push(mount(DeviceNumber::new(0, 5), "/sdb", TARGET.as_ref(), DEVTMPFS, false));
    block.model.state().used_elsewhere = true;
    block.unpublish(TARGET).unwrap();
    assert_eq!(block.holders(), "process 7 (leak)");
}

#[test]
fn unstage_needs_no_disk() {
    let setup = Setup::new(ext4(DISK_BYTES));
    setup.stage(FilesystemType::Ext4, &[]).unwrap();
    setup.model.state().disks.clear();
    setup.model.state().corrupted.insert(STAGING.into());
    setup.unstage().unwrap();
    assert!(setup.model.state().mounts.is_empty());
}

fn any_held() -> impl Strategy<Value = Held> {
    prop_oneof![
        Just(Held::Blank),
        select(vec!["ext4", "xfs", "btrfs"]).prop_flat_map(|kind| {
            (DISK_BYTES / 2..=DISK_BYTES)
                .prop_map(move |bytes| Held::Filesystem { kind: kind.to_owned(), bytes })
        }),
        Just(Held::UnfinishedXfs),
        Just(Held::FreshExt4),
        Just(Held::TornExt4),
        Just(Held::Bytes),
        Just(Held::Partitions),
        Just(Held::Luks),
        Just(Held::Unreadable),
    ]
}

fn any_filesystem() -> impl Strategy<Value = FilesystemType> {
    select(vec![FilesystemType::Ext3, FilesystemType::Ext4, FilesystemType::Xfs])
}

fn any_faults() -> impl Strategy<Value = Vec<(usize, Fault)>> {
    let fault = select(vec![Fault::Before, Fault::Within, Fault::After]);
    proptest::collection::btree_map(0_usize..12, fault, 0..4).prop_map(|faults| faults.into_iter().collect())
}

/// Nothing may be written to a disk that holds this.
fn is_precious(held: &Held, record: bool, allow_nonzero: bool) -> bool {
    match held {
        Held::Blank => false,
        Held::Bytes => !record && !allow_nonzero,
        Held::UnfinishedXfs | Held::FreshExt4 | Held::TornExt4 => !record,
        Held::Filesystem { .. } | Held::Partitions | Held::Luks | Held::Unreadable => true,
    }
}

/// Runs until a run meets no fault, as the kubelet does; then the outcome is what it would have been without faults.
fn until_unkilled(setup: &Setup, mut run: impl FnMut() -> Result<()>) -> Result<()> {
    loop {
        let before = setup.model.state().applied.len();
        let result = run();
        let after = setup.model.state().applied.len();
        let killed = setup.model.state().faults.iter().any(|(at, _)| (before..after).contains(at));
        if !killed {
            return result;
        }
    }
}

proptest! {
    #[test]
    fn staging_formats_nothing_precious_and_settles_however_often_it_is_killed(
        held in any_held(),
        filesystem in any_filesystem(),
        with_record in any::<bool>(),
        allow_nonzero in any::<bool>(),
        read_only in any::<bool>(),
        faults in any_faults(),
    ) {
        let mut setup = Setup::new(held.clone());
        setup.allow_format_nonzero = allow_nonzero;
        if with_record {
            let record = MkfsRecord { serial: serial().as_str().to_owned(), filesystem };
            setup.model.state().records.insert(STAGING.into(), record);
        }
        setup.model.state().faults = faults;
        let flags: &[&str] = if read_only { &["ro"] } else { &[] };
        let result = until_unkilled(&setup, || setup.stage(filesystem, flags));

        let record_fits = with_record
            && match held {
                Held::UnfinishedXfs => filesystem == FilesystemType::Xfs,
                Held::FreshExt4 | Held::TornExt4 => filesystem == FilesystemType::Ext4,
                _ => true,
            };
        let usable = match &held {
            Held::Filesystem { kind, .. } => kind == filesystem.name(),
            // With the record the filesystem is not trusted, and a read-only volume is not formatted.
            Held::FreshExt4 => filesystem == FilesystemType::Ext4 && !(with_record && read_only),
            _ => false,
        };
        let precious = is_precious(&held, record_fits, allow_nonzero);
        prop_assert_eq!(result.is_ok(), usable || (!precious && !read_only), "{:?}", result);

        let applied = setup.model.take_applied();
        let wrote = |step: &Step| matches!(step, Step::Format { .. } | Step::ClearUnfinished { .. });
        if precious || read_only {
            prop_assert!(!applied.iter().any(wrote), "{applied:?}");
        }
        if result.is_err() {
            prop_assert!(setup.model.state().mounts.is_empty());
        } else {
            prop_assert!(setup.model.state().records.is_empty(), "the record outlived the mount");
            setup.model.state().faults.clear();
            setup.stage(filesystem, flags).unwrap();
            prop_assert_eq!(setup.model.take_applied(), vec![]);
        }
    }

    #[test]
    fn an_expansion_settles_however_often_it_is_killed(
        older_layout in any::<bool>(),
        is_short in any::<bool>(),
        faults in any_faults(),
    ) {
        let setup = Setup::new(ext4(DISK_BYTES));
        if older_layout {
            setup.model.state().mounts.push(mount(disk(16).number, "/", TARGET.as_ref(), "ext4", false));
        } else {
            setup.stage(FilesystemType::Ext4, &[]).unwrap();
            setup.publish(false).unwrap();
        }
        let before = setup.model.state().mounts.clone();
        setup.model.take_applied();
        setup.model.state().faults = faults;
        setup.model.state().disks[0].0.bytes = 2 * DISK_BYTES;
        let required = if is_short { 2 * DISK_BYTES + 1 } else { 2 * DISK_BYTES };
        let result = until_unkilled(&setup, || setup.expand(required).map(drop));
        let is_grown = setup.model.state().disks[0].1 == ext4(2 * DISK_BYTES);
        prop_assert_eq!((result.is_ok(), is_grown), (!is_short, !is_short), "{:?}", result);
        prop_assert_eq!(&setup.model.state().mounts, &before);
    }

    #[test]
    fn publishing_and_its_end_settle_however_often_they_are_killed(
        read_only in any::<bool>(),
        there in proptest::option::of(Just(None::<u64>)),
        faults in any_faults(),
        end_faults in any_faults(),
    ) {
        let setup = Setup::new(ext4(DISK_BYTES));
        setup.stage(FilesystemType::Ext4, &[]).unwrap();
        setup.model.take_applied();
        if let Some(kind) = there {
            setup.model.state().paths.insert(TARGET.into(), kind);
        }
        setup.model.state().faults = faults;
        until_unkilled(&setup, || setup.publish(read_only).map(drop)).unwrap();
        prop_assert_eq!(setup.model.state().mounts.len(), 2);
        prop_assert_eq!(setup.model.state().mounts[1].read_only(), read_only);

        setup.model.take_applied();
        setup.model.state().faults.clear();
        setup.publish(read_only).unwrap();
        prop_assert_eq!(setup.model.take_applied(), vec![]);

        setup.model.state().faults = end_faults;
        until_unkilled(&setup, || setup.unpublish(TARGET)).unwrap();
        prop_assert_eq!(setup.model.state().mounts.len(), 1, "the staging mount stays");
        prop_assert!(!setup.model.state().paths.contains_key(Path::new(TARGET)));

        setup.model.take_applied();
        setup.model.state().faults.clear();
        setup.unpublish(TARGET).unwrap();
        prop_assert_eq!(setup.model.take_applied(), vec![]);
    }

    #[test]
    fn unstaging_never_succeeds_while_the_disk_is_used_elsewhere_however_often_it_is_killed(
        staged_by_older_version in any::<bool>(),
        faults in any_faults(),
        end_faults in any_faults(),
    ) {
        let setup = Setup::new(ext4(DISK_BYTES));
        setup.stage(FilesystemType::Ext4, &[]).unwrap();
        if staged_by_older_version {
            setup.model.state().disk_records.clear();
        }
        setup.model.take_applied();
        setup.model.state().used_elsewhere = true;
        setup.model.state().faults = faults;
        let refused = until_unkilled(&setup, || setup.unstage());
        prop_assert!(matches!(refused, Err(Error::StillInUse { .. })), "{refused:?}");
        prop_assert!(setup.model.state().mounts.is_empty());
        prop_assert_eq!(setup.model.state().disk_records.len(), 1);

        setup.model.take_applied();
        setup.model.state().used_elsewhere = false;
        setup.model.state().faults = end_faults;
        until_unkilled(&setup, || setup.unstage()).unwrap();
        prop_assert!(setup.model.state().disk_records.is_empty());
    }
}
