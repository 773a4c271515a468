use rstest::rstest;

use super::*;
use crate::{
    model::{disk, mount},
    mount_table::DEVTMPFS,
};

const STAGING: &str = "/stage";
const TARGET: &str = "/pods/a/mount";

fn wanted(read_only: bool, exclusive: bool) -> Wanted {
    let source = Source::Staging(STAGING.into());
    Wanted { source, target: TARGET.into(), read_only, staged_read_only: false, exclusive }
}

fn wanted_node(exclusive: bool) -> Wanted {
    let source = Source::Node { path: "/dev/sdb".into(), number: disk(16).number };
    Wanted { source, target: TARGET.into(), read_only: false, staged_read_only: false, exclusive }
}

fn staged() -> Observed {
    let mounts = MountTable(vec![mount(disk(16).number, "/", STAGING.as_ref(), "ext4", false)]);
    Observed { mounts, target: PathState::Missing, stale: false, target_is_ours: false, write_refusal: None }
}

fn also(mut observed: Observed, point: &str, root: &str, fs_type: &str, read_only: bool) -> Observed {
    let number = if fs_type == DEVTMPFS { DeviceNumber::new(0, 5) } else { disk(16).number };
    observed.mounts.0.push(mount(number, root, point.as_ref(), fs_type, read_only));
    observed
}

#[test]
fn a_filesystem_is_bound_and_made_read_only_with_its_flags_kept() {
    let mut observed = staged();
    observed.mounts.0[0].options.insert("noexec".into());
    let steps = plan(&wanted(true, false), &observed).unwrap();
    let [Step::CreateDirectory(_), Step::Bind { source, .. }, Step::RemountReadOnly { keep, .. }] =
        steps.as_slice()
    else {
        panic!("{steps:?}")
    };
    assert_eq!(source, Path::new(STAGING));
    assert_eq!(keep.iter().map(|flag| flag.word()).collect::<Vec<_>>(), ["noexec"]);
}

#[test]
fn a_device_node_is_bound_on_a_file() {
    let steps = plan(&wanted_node(false), &staged()).unwrap();
    assert!(matches!(steps.as_slice(), [Step::CreateFile(_), Step::Bind { .. }]), "{steps:?}");
    let directory = Observed { target: PathState::Directory, ..staged() };
    assert!(matches!(plan(&wanted_node(false), &directory), Err(Error::MountConflict { .. })));
}

#[rstest]
#[case::as_asked(false, false, true, Ok(0))]
#[case::as_asked_read_only(true, true, true, Ok(0))]
#[case::half_done(true, false, true, Ok(1))]
#[case::read_only_instead(false, true, true, Err(()))]
#[case::another_volume(false, false, false, Err(()))]
fn a_published_target(
    #[case] asked_read_only: bool,
    #[case] is_read_only: bool,
    #[case] ours: bool,
    #[case] steps: Result<usize, ()>,
) {
    let published = also(staged(), TARGET, "/", "ext4", is_read_only);
    let observed = Observed { target: PathState::Directory, target_is_ours: ours, ..published };
    let planned = plan(&wanted(asked_read_only, true), &observed);
    assert_eq!(planned.as_ref().map(Vec::len).map_err(drop), steps, "{planned:?}");
}

#[test]
fn a_broken_target_is_taken_off_first() {
    let observed = Observed { stale: true, ..also(staged(), TARGET, "/", "ext4", false) };
    assert_eq!(plan(&wanted(false, false), &observed).unwrap(), [Step::Unmount { target: TARGET.into() }]);
}

#[test]
fn only_a_single_writer_volume_refuses_a_second_target() {
    let filesystem = also(staged(), "/pods/b/mount", "/", "ext4", false);
    plan(&wanted(false, false), &filesystem).unwrap();
    let error = plan(&wanted(false, true), &filesystem).unwrap_err();
    assert!(
        matches!(&error, Error::AlreadyPublished { elsewhere } if elsewhere == "/pods/b/mount"),
        "{error}"
    );

    let subpath = also(staged(), "/pods/b/volume-subpaths/1", "/sub", "ext4", false);
    plan(&wanted(false, true), &subpath).unwrap();

    let block = also(staged(), "/pods/b/block", "/sdb", DEVTMPFS, false);
    plan(&wanted_node(false), &block).unwrap();
    assert!(matches!(plan(&wanted_node(true), &block), Err(Error::AlreadyPublished { .. })));
    plan(&wanted_node(true), &also(staged(), "/pods/b/block", "/sdc", DEVTMPFS, false)).unwrap();
}

#[test]
fn a_read_only_staging_mount_satisfies_a_writable_target() {
    let mut observed = also(staged(), TARGET, "/", "ext4", true);
    observed.mounts.0[0].options = ["ro".to_owned()].into();
    let observed = Observed { target: PathState::Directory, target_is_ours: true, ..observed };
    let of_a_reader = Wanted { staged_read_only: true, ..wanted(false, false) };
    assert_eq!(plan(&of_a_reader, &observed).unwrap(), []);
    let error = plan(&wanted(false, false), &observed).unwrap_err();
    assert!(matches!(error, Error::NotWritable { .. }), "remounted by somebody: {error}");
}

#[rstest]
#[case::writer(false, false, false)]
#[case::reader(true, false, true)]
#[case::writer_of_a_read_only_volume(false, true, true)]
fn a_filesystem_that_takes_no_writes_is_published_for_readers_only(
    #[case] read_only: bool,
    #[case] staged_read_only: bool,
    #[case] is_published: bool,
) {
    let wanted = Wanted { staged_read_only, ..wanted(read_only, false) };
    let first = Observed { write_refusal: Some("Read-only file system".into()), ..staged() };
    let mut again = also(first.clone(), TARGET, "/", "ext4", read_only);
    again.target = PathState::Directory;
    again.target_is_ours = true;
    for observed in [first, again] {
        match plan(&wanted, &observed) {
            Ok(_) => assert!(is_published),
            Err(Error::NotWritable { path, .. }) => assert!(!is_published && path == Path::new(STAGING)),
            Err(other) => panic!("{other}"),
        }
    }
}

#[rstest]
#[case(PathState::Missing, Ok(0))]
#[case(PathState::Directory, Ok(1))]
#[case(PathState::File { bytes: 0 }, Ok(1))]
#[case(PathState::File { bytes: 1 }, Err(()))]
#[case(PathState::Node(DeviceNumber::new(8, 0)), Err(()))]
#[case(PathState::Other("a symbolic link"), Err(()))]
#[case(PathState::Corrupted("EIO".into()), Err(()))]
fn an_unmounted_target_is_removed_only_if_this_driver_could_have_made_it(
    #[case] state: PathState,
    #[case] steps: Result<usize, ()>,
) {
    let planned = plan_removal(TARGET.as_ref(), &MountTable::default(), &state);
    assert_eq!(planned.as_ref().map(Vec::len).map_err(drop), steps, "{planned:?}");
}

#[test]
fn each_mount_of_a_stack_is_taken_off_before_the_target_is_removed() {
    let stacked = also(also(staged(), TARGET, "/", "ext4", false), TARGET, "/", "ext4", false);
    let steps = plan_removal(TARGET.as_ref(), &stacked.mounts, &PathState::Directory).unwrap();
    let unmount = Step::Unmount { target: TARGET.into() };
    assert_eq!(steps, [unmount.clone(), unmount, Step::RemoveTarget(TARGET.into())]);
}
