//! A filesystem to which the kernel refuses all writes: writers get an error, readers are served, and the next staging
//! checks and mounts it anew.

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use tonic::{Code, Status};

use super::{
    EXT4_BYTES, XFS_BYTES,
    bench::{Bench, Loop, in_namespace, run},
    text,
};

/// How long the kernel may take to make a filesystem read-only.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a filesystem of this driver does after an error if the StorageClass asks for it.
const REMOUNT: &[&str] = &["errors=remount-ro"];

fn test(name: &str, body: impl FnOnce()) {
    in_namespace(&format!("read_only::{name}"), body);
}

/// Waits until nothing can be written to the folder any more.
fn until_refused(folder: &Path) {
    let begin = Instant::now();
    while fs::write(folder.join("other"), "x").is_ok() {
        assert!(begin.elapsed() < PATIENCE, "the filesystem stays writable");
        sleep(Duration::from_millis(10));
    }
}

/// The kernel's own error, as a failed write of metadata makes it.
fn kernel_error(disk: &Loop) {
    let name = disk.device().file_name().unwrap();
    fs::write(Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error"), "1").unwrap();
}

fn refused(what: &str, answer: Result<(), Status>) {
    let status = answer.expect_err(what);
    println!("{what}: {status}");
    assert_eq!(status.code(), Code::Unavailable, "{what}: {status}");
    assert!(status.message().contains("takes no writes"), "{what}: {status}");
}

/// Writers are refused, readers are served, and a new mount is writable.
fn only_readers_are_served(kind: &str, flags: &[&str], make_read_only: impl Fn(&Loop, &Bench)) {
    let disk = Loop::blank(EXT4_BYTES);
    let bench = Bench::new(&disk, kind);
    bench.stage(kind, flags).unwrap();
    bench.publish("a", kind, false).unwrap();
    bench.publish("reader", kind, true).unwrap();
    fs::write(bench.target("a").join("file"), "content").unwrap();
    make_read_only(&disk, &bench);
    until_refused(&bench.target("a"));

    for _ in 0..2 {
        refused("publish again", bench.publish("a", kind, false));
        refused("publish to a second pod", bench.publish("b", kind, false));
    }
    refused("stage again", bench.stage(kind, flags));
    bench.publish("reader", kind, true).unwrap();
    bench.publish("second reader", kind, true).unwrap();
    for pod in ["a", "second reader"] {
        assert_eq!(fs::read_to_string(bench.target(pod).join("file")).unwrap(), "content", "{pod}");
    }

    for pod in ["a", "b", "reader", "second reader"] {
        bench.unpublish(pod).unwrap();
    }
    bench.unstage().unwrap();
    bench.stage(kind, flags).unwrap();
    bench.publish("a", kind, false).unwrap();
    fs::write(bench.target("a").join("other"), "x").unwrap();
    bench.unpublish("a").unwrap();
    bench.unstage().unwrap();
}

#[test]
fn an_ext4_after_the_kernels_own_error_needs_root() {
    test("an_ext4_after_the_kernels_own_error_needs_root", || {
        only_readers_are_served("ext4", REMOUNT, |disk, _| kernel_error(disk));
    });
}

#[test]
fn an_ext3_after_the_kernels_own_error_needs_root() {
    test("an_ext3_after_the_kernels_own_error_needs_root", || {
        only_readers_are_served("ext3", REMOUNT, |disk, _| kernel_error(disk));
    });
}

#[test]
fn an_ext4_that_was_remounted_read_only_needs_root() {
    test("an_ext4_that_was_remounted_read_only_needs_root", || {
        only_readers_are_served("ext4", &[], |_, bench| {
            run("mount", &["-o", "remount,ro", &text(bench.staging())]);
        });
    });
}

#[test]
fn an_xfs_that_shut_down_needs_root() {
    test("an_xfs_that_shut_down_needs_root", || {
        let disk = Loop::blank(XFS_BYTES);
        let bench = Bench::new(&disk, "xfs");
        bench.stage("xfs", &[]).unwrap();
        bench.publish("a", "xfs", false).unwrap();
        run("xfs_io", &["-x", "-c", "shutdown", &text(bench.staging())]);
        refused("publish to a second pod", bench.publish("b", "xfs", false));
        assert_eq!(bench.publish("a", "xfs", false).unwrap_err().code(), Code::Unavailable);
        bench.unpublish("a").unwrap();
        bench.unpublish("b").unwrap();
        bench.unstage().unwrap();
        bench.stage("xfs", &[]).unwrap();
        bench.publish("a", "xfs", false).unwrap();
        fs::write(bench.target("a").join("other"), "x").unwrap();
        bench.unpublish("a").unwrap();
        bench.unstage().unwrap();
    });
}

/// An error that the filesystem is told to live with: pods can go on writing, so it is published.
#[test]
fn an_ext4_that_continues_after_an_error_is_published_needs_root() {
    test("an_ext4_that_continues_after_an_error_is_published_needs_root", || {
        let disk = Loop::blank(EXT4_BYTES);
        let bench = Bench::new(&disk, "continues");
        bench.stage("ext4", &["errors=continue"]).unwrap();
        kernel_error(&disk);
        bench.stage("ext4", &["errors=continue"]).unwrap();
        bench.publish("a", "ext4", false).unwrap();
        fs::write(bench.target("a").join("file"), "content").unwrap();
        bench.unpublish("a").unwrap();
        bench.unstage().unwrap();
    });
}

#[test]
fn a_full_or_read_only_volume_is_published_as_before_needs_root() {
    test("a_full_or_read_only_volume_is_published_as_before_needs_root", || {
        let disk = Loop::blank(EXT4_BYTES);
        run("mkfs.ext4", &["-q", "-N", "32", &text(disk.device())]);
        let bench = Bench::new(&disk, "full");
        bench.stage("ext4", &[]).unwrap();
        // Neither a block nor an inode is left.
        let full = vec![7; usize::try_from(EXT4_BYTES).unwrap()];
        fs::write(bench.staging().join("big"), full).unwrap_err();
        let inodes =
            (0..100).take_while(|file| fs::write(bench.staging().join(file.to_string()), "").is_ok());
        assert!(inodes.count() < 100, "inodes are left");
        bench.stage("ext4", &[]).unwrap();
        bench.publish("a", "ext4", false).unwrap();
        bench.publish("a", "ext4", false).unwrap();
        bench.unpublish("a").unwrap();
        bench.unstage().unwrap();

        // Mounted read-only because the StorageClass asks for it, and published as what it is.
        bench.stage("ext4", &["ro"]).unwrap();
        bench.stage("ext4", &["ro"]).unwrap();
        for readonly in [true, false] {
            bench.publish_with("reader", "ext4", &["ro"], readonly).unwrap();
            bench.publish_with("reader", "ext4", &["ro"], readonly).unwrap();
            fs::write(bench.target("reader").join("x"), "x").unwrap_err();
            bench.unpublish("reader").unwrap();
        }
        bench.unstage().unwrap();
    });
}
