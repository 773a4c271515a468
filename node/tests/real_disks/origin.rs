//! Volumes that were made blank: their filesystem carries their UUID, and an earlier owner's is not mounted.

use std::{
    fs,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use tonic::Code;

use super::{
    EXT4_BYTES, XFS_BYTES,
    bench::{Bench, Loop, SERIAL, in_namespace, run, work_dir},
    write_at,
};

const KINDS: [(&str, u64); 4] =
    [("ext2", EXT4_BYTES), ("ext3", EXT4_BYTES), ("ext4", EXT4_BYTES), ("xfs", XFS_BYTES)];

fn test(name: &str, body: impl FnOnce()) {
    in_namespace(&format!("origin::{name}"), body);
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn uuid_of(disk: &Loop) -> String {
    let output =
        Command::new("blkid").args(["-p", "-o", "value", "-s", "UUID"]).arg(disk.device()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn mkfs(kind: &str, disk: &Loop) {
    let quiet: &[&str] = if kind == "xfs" { &["-q", "-f"] } else { &["-q", "-F"] };
    let device = disk.device().to_str().unwrap();
    run(&format!("mkfs.{kind}"), &[quiet, &[device]].concat());
}

#[test]
fn a_new_filesystem_carries_the_volumes_uuid_and_is_known_by_it_needs_root() {
    test("a_new_filesystem_carries_the_volumes_uuid_and_is_known_by_it_needs_root", || {
        for (kind, bytes) in KINDS {
            let disk = Loop::blank(bytes);
            // The clock of the infra cluster is an hour ahead: the UUID alone counts.
            let bench = Bench::new(&disk, kind).made_blank(now() + 3600);
            bench.stage(kind, &[]).unwrap();
            assert_eq!(uuid_of(&disk), SERIAL, "{kind}");
            fs::write(bench.staging().join("file"), "content").unwrap();
            bench.unstage().unwrap();
            bench.stage(kind, &[]).unwrap();
            assert_eq!(fs::read_to_string(bench.staging().join("file")).unwrap(), "content");
            bench.unstage().unwrap();
        }
    });
}

#[test]
fn an_earlier_owners_filesystem_is_not_mounted_needs_root() {
    test("an_earlier_owners_filesystem_is_not_mounted_needs_root", || {
        for (kind, bytes) in KINDS {
            let disk = Loop::blank(bytes);
            mkfs(kind, &disk);
            let secret = work_dir().join("secret");
            fs::create_dir_all(&secret).unwrap();
            run("mount", &[disk.device().to_str().unwrap(), secret.to_str().unwrap()]);
            fs::write(secret.join("secret"), "of another").unwrap();
            run("umount", &[secret.to_str().unwrap()]);
            let before = disk.checksum();
            let plain = Bench::new(&disk, kind);
            let later = plain.made_blank(now() + 60);
            for (bench, flags) in [(&later, &[][..]), (&later, &["ro"]), (&later.allowing_nonzero(), &[])] {
                let status = bench.stage(kind, flags).unwrap_err();
                assert_eq!(status.code(), Code::FailedPrecondition, "{kind}: {status}");
                assert!(status.message().contains("an earlier owner's data"), "{status}");
                assert!(status.message().contains(SERIAL), "{status}");
            }
            assert_eq!(disk.checksum(), before, "{kind}: nothing is written");
            // Made since the volume exists: by a node role of an earlier version.
            let earlier = plain.made_blank(now() - 3600);
            earlier.stage(kind, &[]).unwrap();
            earlier.unstage().unwrap();
            // A volume of an earlier version, restored or cloned.
            plain.stage(kind, &[]).unwrap();
            plain.unstage().unwrap();
            // The way out that the guide names, if the filesystem is the volume's after all.
            let device = disk.device().to_str().unwrap();
            if kind == "xfs" {
                run("xfs_admin", &["-U", SERIAL, device]);
            } else {
                run("e2fsck", &["-fy", device]);
                run("tune2fs", &["-U", SERIAL, device]);
            }
            later.stage(kind, &[]).unwrap();
            assert!(later.staging().join("secret").exists());
            later.unstage().unwrap();
        }
    });
}

#[test]
fn a_class_may_allow_noise_for_its_blank_volumes_needs_root() {
    test("a_class_may_allow_noise_for_its_blank_volumes_needs_root", || {
        for (kind, bytes) in [("ext4", EXT4_BYTES), ("xfs", XFS_BYTES)] {
            let disk = Loop::blank(bytes);
            // As an encrypted disk shows what was never written.
            run(
                "dd",
                &[
                    "if=/dev/urandom",
                    &format!("of={}", disk.device().display()),
                    "bs=1M",
                    "count=32",
                    "conv=fsync",
                ],
            );
            // By chance the noise may end a sector with the mark of a partition table.
            write_at(disk.device(), 510, &[0, 0]);
            let blank = Bench::new(&disk, kind).made_blank(now());
            let status = blank.stage(kind, &[]).unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{kind}: {status}");
            assert!(status.message().contains("allowFormatNonzero"), "{status}");
            let allowed = blank.of_a_class_that_allows_nonzero();
            allowed.stage(kind, &[]).unwrap();
            assert_eq!(uuid_of(&disk), SERIAL);
            allowed.unstage().unwrap();
        }
    });
}

/// What a kernel cannot mount must not be in a new xfs: features are chosen by the kernel, not by the release of xfsprogs.
#[test]
fn a_new_xfs_has_the_features_of_the_kernel_needs_root() {
    test("a_new_xfs_has_the_features_of_the_kernel_needs_root", || {
        for (release, has_big_time) in
            [("4.18.0-553.el8", false), ("5.4.0-216-generic", false), ("6.1.0-57", true)]
        {
            let disk = Loop::blank(XFS_BYTES);
            let bench = Bench::new(&disk, release).on_kernel(release);
            bench.stage("xfs", &[]).unwrap();
            let output = Command::new("xfs_info").arg(bench.staging()).output().unwrap();
            let info = String::from_utf8(output.stdout).unwrap();
            assert_eq!(info.contains("bigtime=1"), has_big_time, "{release}: {info}");
            assert_eq!(info.contains("inobtcount=1"), has_big_time, "{release}: {info}");
            for later in ["nrext64=1", "parent=1", "exchange=1", "metadir=1"] {
                assert!(!info.contains(later), "{release}: {info}");
            }
            bench.unstage().unwrap();
        }
    });
}

/// Features of ext filesystems that some kernel or e2fsck in use does not know: those of e2fsprogs 1.47 (its
/// `mke2fs.conf`), and such as a later one may turn on, for all three kinds.
const NEWER_MKE2FS: [&str; 2] = [
    "[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
[fs_types]
    ext3 = {
        features = has_journal
    }
    ext4 = {
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,metadata_csum_seed,64bit,dir_nlink,extra_isize,orphan_file
    }
",
    "[defaults]
    base_features = sparse_super2,large_file,filetype,dir_index,ext_attr,extent,inline_data,stable_inodes
[fs_types]
    ext3 = {
        features = has_journal,fast_commit
    }
    ext4 = {
        features = has_journal,extent,flex_bg,metadata_csum,64bit,verity,ea_inode,large_dir
    }
",
];

/// What e2fsprogs 1.46 gives each kind, and each kernel since 3.18 mounts.
const EXT_FEATURES: [(&str, &str); 3] = [
    ("ext2", "dir_index ext_attr filetype large_file resize_inode sparse_super"),
    ("ext3", "dir_index ext_attr filetype has_journal large_file resize_inode sparse_super"),
    (
        "ext4",
        "64bit dir_index dir_nlink ext_attr extent extra_isize filetype flex_bg has_journal huge_file large_file metadata_csum resize_inode sparse_super",
    ),
];

fn ext_features(disk: &Loop) -> String {
    let output = Command::new("dumpe2fs").arg("-h").arg(disk.device()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Filesystem features:")).unwrap();
    let mut features: Vec<_> = line.split_whitespace().collect();
    features.sort_unstable();
    features.join(" ")
}

/// As for xfs: a newer mke2fs, or its configuration, must not decide which kernel and which e2fsck can use the volume.
#[test]
fn a_new_ext_has_no_feature_of_a_newer_mke2fs_needs_root() {
    test("a_new_ext_has_no_feature_of_a_newer_mke2fs_needs_root", || {
        let configuration = work_dir().join("mke2fs.conf");
        fs::write(&configuration, "").unwrap();
        run("mount", &["--bind", configuration.to_str().unwrap(), "/etc/mke2fs.conf"]);
        for newer in NEWER_MKE2FS {
            fs::write(&configuration, newer).unwrap();
            for (kind, features) in EXT_FEATURES {
                let by_itself = Loop::blank(EXT4_BYTES);
                mkfs(kind, &by_itself);
                let disk = Loop::blank(EXT4_BYTES);
                let bench = Bench::new(&disk, kind);
                bench.stage(kind, &[]).unwrap();
                bench.unstage().unwrap();
                assert_eq!(ext_features(&disk), features, "{kind}");
                if kind == "ext4" {
                    assert_ne!(ext_features(&by_itself), features, "the configuration has no effect here");
                }
            }
        }
    });
}
