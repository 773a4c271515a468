//! Volumes whose disk has grown while they are in use. A loop device has a new size at once; the made-up sysfs shows it
//! when the test lets it, as the kernel does when the infra cluster has told the VM.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use tonic::Code;

use super::{
    EXT4_BYTES, MIB, XFS_BYTES,
    bench::{Bench, CAP_SYS_RESOURCE, Loop, has_capability, in_namespace, run},
    text,
};

fn test(name: &str, body: impl FnOnce()) {
    in_namespace(&format!("growth::{name}"), body);
}

fn total(bench: &Bench, path: &Path) -> u64 {
    u64::try_from(bench.stats(path).unwrap()[0].total).unwrap()
}

/// Writes until there is no room.
fn fill(folder: &Path) {
    let mut file = File::create(folder.join("filling")).unwrap();
    let mib = vec![1_u8; usize::try_from(MIB).unwrap()];
    while file.write_all(&mib).is_ok() {}
    file.sync_all().ok();
}

fn content(bench: &Bench, pod: &str) -> String {
    fs::read_to_string(bench.target(pod).join("file")).unwrap()
}

/// Staged, published to a writer and a reader, with a file.
fn in_use(kind: &str, bytes: u64) -> (Loop, Bench) {
    let disk = Loop::blank(bytes);
    let bench = Bench::new(&disk, kind);
    bench.stage(kind, &[]).unwrap();
    bench.publish("reader", kind, true).unwrap();
    bench.publish("writer", kind, false).unwrap();
    fs::write(bench.target("writer").join("file"), "content").unwrap();
    (disk, bench)
}

fn grows_in_use(kind: &str, bytes: u64, full: bool) {
    let (mut disk, bench) = in_use(kind, bytes);
    if full {
        fill(&bench.target("writer"));
    }
    let before = total(&bench, &bench.target("writer"));
    assert_eq!(bench.expand(&bench.target("writer"), bytes).unwrap(), bytes, "it is large enough");

    disk.grow(2 * bytes);
    let status = bench.expand(&bench.target("writer"), 2 * bytes).unwrap_err();
    println!("{kind}: {status}");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let sizes = format!("has {bytes} bytes and not {} yet", 2 * bytes);
    assert!(status.message().contains(&sizes), "{status}");
    assert_eq!(total(&bench, &bench.target("writer")), before);

    bench.show_size_of(&disk);
    // The kubelet may name any path of the volume; a reader's cannot be grown through.
    assert_eq!(bench.expand(&bench.target("reader"), 2 * bytes).unwrap(), 2 * bytes);
    let after = total(&bench, &bench.target("writer"));
    assert!(after > before + before / 2 && after <= 2 * bytes, "{before} -> {after}");
    for path in [bench.staging().to_owned(), bench.target("writer"), bench.target("reader")] {
        assert_eq!(bench.expand(&path, 2 * bytes).unwrap(), 2 * bytes);
        assert_eq!(total(&bench, &path), after);
    }
    assert_eq!(content(&bench, "reader"), "content");
    fs::write(bench.target("writer").join("more"), vec![1; 1 << 20]).unwrap();

    bench.unpublish("writer").unwrap();
    bench.unpublish("reader").unwrap();
    bench.unstage().unwrap();
    if kind != "xfs" {
        run("e2fsck", &["-f", "-n", &text(disk.device())]);
    }
    bench.stage(kind, &[]).unwrap();
    assert_eq!(total(&bench, bench.staging()), after);
    bench.unstage().unwrap();
}

#[test]
fn an_xfs_in_use_is_grown_needs_root() {
    test("an_xfs_in_use_is_grown_needs_root", || grows_in_use("xfs", XFS_BYTES, false));
}

#[test]
fn a_full_xfs_in_use_is_grown_needs_root() {
    test("a_full_xfs_in_use_is_grown_needs_root", || grows_in_use("xfs", XFS_BYTES, true));
}

#[test]
fn an_ext_in_use_is_grown_needs_root() {
    test("an_ext_in_use_is_grown_needs_root", || {
        for kind in ["ext2", "ext3", "ext4"] {
            if has_capability(CAP_SYS_RESOURCE) {
                grows_in_use(kind, EXT4_BYTES, false);
                grows_in_use(kind, EXT4_BYTES, true);
                continue;
            }
            println!(
                "no CAP_SYS_RESOURCE: seeing only that the refusal of the kernel to grow {kind} is not final"
            );
            let (mut disk, bench) = in_use(kind, EXT4_BYTES);
            disk.grow(2 * EXT4_BYTES);
            bench.show_size_of(&disk);
            let status = bench.expand(&bench.target("writer"), 2 * EXT4_BYTES).unwrap_err();
            println!("{kind}: {status}");
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(status.message().contains("run the node role in a privileged container"), "{status}");
            assert!(status.message().contains("resize2fs"), "{status}");
            assert_eq!(content(&bench, "reader"), "content");
            bench.unpublish("writer").unwrap();
            bench.unpublish("reader").unwrap();
            bench.unstage().unwrap();
        }
    });
}

#[test]
fn a_block_volume_in_use_has_its_new_size_needs_root() {
    test("a_block_volume_in_use_has_its_new_size_needs_root", || {
        let mut disk = Loop::blank(EXT4_BYTES);
        let bench = Bench::new(&disk, "block");
        bench.expand_block(&bench.target("a"), EXT4_BYTES).unwrap_err();
        bench.stage_block().unwrap();
        bench.publish_block("a").unwrap();
        assert_eq!(bench.expand(&bench.target("a"), EXT4_BYTES).unwrap(), EXT4_BYTES);
        disk.grow(2 * EXT4_BYTES);
        let status = bench.expand_block(&bench.target("a"), 2 * EXT4_BYTES).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        bench.show_size_of(&disk);
        assert_eq!(bench.expand_block(&bench.target("a"), 2 * EXT4_BYTES).unwrap(), 2 * EXT4_BYTES);
        assert_eq!(total(&bench, &bench.target("a")), 2 * EXT4_BYTES);
        // The target of a pod that has ended.
        bench.unpublish("a").unwrap();
        assert_eq!(bench.expand_block(&bench.target("a"), 2 * EXT4_BYTES).unwrap(), 2 * EXT4_BYTES);
        bench.unstage().unwrap();
        let status = bench.expand_block(&bench.target("a"), 2 * EXT4_BYTES).unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status}");
    });
}

/// kubevirt/csi-driver mounts the disk at each pod's target and nothing at the staging path.
#[test]
fn a_volume_of_the_older_layout_is_grown_needs_root() {
    test("a_volume_of_the_older_layout_is_grown_needs_root", || {
        let mut disk = Loop::blank(XFS_BYTES);
        run("mkfs.xfs", &["-q", &text(disk.device())]);
        let bench = Bench::new(&disk, "older");
        fs::create_dir_all(bench.target("old")).unwrap();
        run("mount", &[&text(disk.device()), &text(&bench.target("old"))]);
        let before = total(&bench, &bench.target("old"));
        disk.grow(2 * XFS_BYTES);
        bench.show_size_of(&disk);
        assert_eq!(bench.expand(&bench.target("old"), 2 * XFS_BYTES).unwrap(), 2 * XFS_BYTES);
        assert!(total(&bench, &bench.target("old")) > before + before / 2);
        bench.unpublish("old").unwrap();
        bench.unstage().unwrap();
    });
}

#[test]
fn a_filesystem_for_readers_is_grown_with_its_next_mount_for_writing_needs_root() {
    test("a_filesystem_for_readers_is_grown_with_its_next_mount_for_writing_needs_root", || {
        let (mut disk, bench) = in_use("xfs", XFS_BYTES);
        bench.unpublish("writer").unwrap();
        bench.unpublish("reader").unwrap();
        bench.unstage().unwrap();
        bench.stage("xfs", &["ro"]).unwrap();
        let before = total(&bench, bench.staging());
        disk.grow(2 * XFS_BYTES);
        bench.show_size_of(&disk);
        let status = bench.expand_with(bench.staging(), 2 * XFS_BYTES, "xfs", &["ro"]).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("is mounted read-only"), "{status}");
        assert_eq!(
            bench.expand_with(bench.staging(), XFS_BYTES, "ext4", &[]).unwrap_err().code(),
            Code::Unavailable
        );
        bench.unstage().unwrap();
        bench.stage("xfs", &[]).unwrap();
        assert!(total(&bench, bench.staging()) > before + before / 2);
        bench.expand_with(bench.staging(), 2 * XFS_BYTES, "xfs", &[]).unwrap();
        bench.unstage().unwrap();
    });
}

#[test]
fn a_filesystem_that_takes_no_writes_is_not_grown_needs_root() {
    test("a_filesystem_that_takes_no_writes_is_not_grown_needs_root", || {
        let (mut disk, bench) = in_use("xfs", XFS_BYTES);
        disk.grow(2 * XFS_BYTES);
        bench.show_size_of(&disk);
        run("xfs_io", &["-x", "-c", "shutdown", &text(bench.staging())]);
        let status = bench.expand(bench.staging(), 2 * XFS_BYTES).unwrap_err();
        println!("{status}");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        bench.unpublish("writer").unwrap();
        bench.unpublish("reader").unwrap();
        bench.unstage().unwrap();
        bench.stage("xfs", &[]).unwrap();
        assert_eq!(bench.expand(bench.staging(), 2 * XFS_BYTES).unwrap(), 2 * XFS_BYTES);
        bench.unstage().unwrap();
    });
}

/// The kernel's own refusal has the words of a missing right, which would mislead.
#[test]
fn a_filesystem_with_errors_on_record_is_checked_before_it_is_grown_needs_root() {
    test("a_filesystem_with_errors_on_record_is_checked_before_it_is_grown_needs_root", || {
        let mut disk = Loop::blank(EXT4_BYTES);
        let bench = Bench::new(&disk, "errors");
        bench.stage("ext4", &["errors=continue"]).unwrap();
        let name = disk.device().file_name().unwrap();
        fs::write(Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error"), "1").unwrap();
        disk.grow(2 * EXT4_BYTES);
        bench.show_size_of(&disk);
        let status = bench.expand(bench.staging(), 2 * EXT4_BYTES).unwrap_err();
        println!("{status}");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("has errors on record"), "{status}");
        bench.unstage().unwrap();
        // The check before the next mount ends it; what is left is the kernel's permission.
        match bench.stage("ext4", &["errors=continue"]) {
            Ok(()) => drop(bench.expand(bench.staging(), 2 * EXT4_BYTES).unwrap()),
            Err(status) => assert!(status.message().contains("privileged container"), "{status}"),
        }
        bench.unstage().unwrap();
    });
}

#[test]
fn what_is_not_the_volume_is_not_grown_needs_root() {
    test("what_is_not_the_volume_is_not_grown_needs_root", || {
        let (mut disk, bench) = in_use("xfs", XFS_BYTES);
        disk.grow(2 * XFS_BYTES);
        bench.show_size_of(&disk);
        let before = total(&bench, bench.staging());

        let mut other = Loop::blank(XFS_BYTES);
        run("mkfs.xfs", &["-q", &text(other.device())]);
        let strange = bench.target("strange");
        fs::create_dir_all(&strange).unwrap();
        run("mount", &[&text(other.device()), &text(&strange)]);
        other.grow(2 * XFS_BYTES);
        let strange_before = total(&bench, &strange);
        // One that sysfs does not show, then one with another serial, whose mount leads to the volume by no link.
        let status = bench.expand(&strange, XFS_BYTES).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        bench.show_another(&other, "another");
        let status = bench.expand(&strange, XFS_BYTES).unwrap_err();
        println!("{status}");
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert!(status.message().contains("is not the disk that volume pvc-1 was staged from"), "{status}");
        std::os::unix::fs::symlink(bench.target("writer"), bench.target("link")).unwrap();
        for nothing in ["link", "none"] {
            let status = bench.expand(&bench.target(nothing), XFS_BYTES).unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{nothing}: {status}");
        }
        fs::create_dir(bench.target("writer").join("sub")).unwrap();
        let status = bench.expand(&bench.target("writer").join("sub"), XFS_BYTES).unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status}");

        assert_eq!(total(&bench, bench.staging()), before);
        assert_eq!(total(&bench, &strange), strange_before);
        run("umount", &[&text(&strange)]);
    });
}
