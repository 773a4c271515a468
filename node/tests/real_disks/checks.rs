//! How e2fsck ends, and what that says of the filesystem.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output},
};

use tonic::Code;

use super::{
    EXT4_BYTES,
    bench::{Bench, Loop, in_namespace, run, work_dir},
    text,
};

fn test(name: &str, body: impl FnOnce()) {
    in_namespace(&format!("checks::{name}"), body);
}

/// An ext4 that was used.
fn used() -> (Loop, Bench) {
    let disk = Loop::blank(EXT4_BYTES);
    let bench = Bench::new(&disk, "checked");
    bench.stage("ext4", &[]).unwrap();
    fs::write(bench.staging().join("file"), "content").unwrap();
    bench.unstage().unwrap();
    (disk, bench)
}

fn staged_with_its_file(bench: &Bench, what: &str) {
    bench.stage("ext4", &[]).unwrap_or_else(|status| panic!("{what}: {status}"));
    assert_eq!(fs::read_to_string(bench.staging().join("file")).unwrap(), "content", "{what}");
    bench.unstage().unwrap();
}

/// A script in e2fsck's place, in this test's mount namespace.
struct Script(PathBuf);

impl Script {
    fn instead_of_e2fsck() -> Self {
        let found = Command::new("sh").args(["-c", "command -v e2fsck"]).output().unwrap();
        let e2fsck = fs::canonicalize(String::from_utf8(found.stdout).unwrap().trim()).unwrap();
        let script = work_dir().join("e2fsck");
        fs::write(&script, "").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        run("mount", &["--bind", &text(&script), &text(&e2fsck)]);
        Self(script)
    }

    fn does(&self, line: &str) {
        fs::write(&self.0, format!("#!/bin/sh\n{line}\n")).unwrap();
    }
}

#[test]
fn a_feature_that_e2fsck_does_not_know_is_left_to_the_kernel_needs_root() {
    test("a_feature_that_e2fsck_does_not_know_is_left_to_the_kernel_needs_root", || {
        let (disk, bench) = used();
        run("debugfs", &["-w", "-R", "feature FEATURE_C13", &text(disk.device())]);
        let Output { status, .. } = Command::new("e2fsck").arg("-p").arg(disk.device()).output().unwrap();
        assert_eq!(status.code(), Some(12), "e2fsck refuses it, with the bit of damage");
        staged_with_its_file(&bench, "a compatible feature");

        // One that the kernel does not know either: the kernel's words, and no talk of damage.
        run("debugfs", &["-w", "-R", "feature FEATURE_I31", &text(disk.device())]);
        let status = bench.stage("ext4", &[]).unwrap_err();
        println!("{status}");
        assert!(status.message().starts_with("cannot mount"), "{status}");
        assert!(!status.message().contains("damage"), "{status}");
    });
}

#[test]
fn errors_on_record_that_e2fsck_is_too_old_to_check_are_not_mounted_needs_root() {
    test("errors_on_record_that_e2fsck_is_too_old_to_check_are_not_mounted_needs_root", || {
        let (disk, bench) = used();
        run("debugfs", &["-w", "-R", "feature FEATURE_C13", &text(disk.device())]);
        for state in ["2", "3"] {
            run("debugfs", &["-w", "-R", &format!("set_super_value state {state}"), &text(disk.device())]);
            let status = bench.stage("ext4", &[]).unwrap_err();
            println!("{status}");
            assert_eq!(status.code(), Code::Internal, "{status}");
            assert!(status.message().contains("is too old to check"), "{status}");
        }
        run("debugfs", &["-w", "-R", "set_super_value state 1", &text(disk.device())]);
        staged_with_its_file(&bench, "no errors on record");
    });
}

#[test]
fn an_e2fsck_that_did_not_check_found_no_damage_needs_root() {
    test("an_e2fsck_that_did_not_check_found_no_damage_needs_root", || {
        let (_disk, bench) = used();
        let script = Script::instead_of_e2fsck();
        for end in ["exit 8", "exit 9", "exit 12", "exit 16", "exit 32", "exit 128", "kill -9 $$", "exit 2"] {
            script.does(end);
            let status = bench.stage("ext4", &[]).unwrap_err();
            println!("{end}: {status}");
            assert_eq!(status.code(), Code::Unavailable, "{end}: {status}");
            assert!(status.message().contains("did not finish its check"), "{end}: {status}");
            assert!(!status.message().contains("damage"), "{end}: {status}");
        }
        for end in ["exit 4", "exit 5", "exit 6"] {
            script.does(&format!("echo UNEXPECTED INCONSISTENCY; {end}"));
            let status = bench.stage("ext4", &[]).unwrap_err();
            assert_eq!(status.code(), Code::Internal, "{end}: {status}");
            assert!(status.message().contains("e2fsck found damage"), "{end}: {status}");
            assert!(status.message().contains("UNEXPECTED"), "{end}: {status}");
        }
        // Nothing was mounted meanwhile, and a check that ends well is enough.
        script.does("exit 1");
        staged_with_its_file(&bench, "repaired");
    });
}
