//! Signatures of RAIDs at places where a filesystem has its files: the filesystem is used, a disk without one is refused.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    process::Command,
};

use tonic::Code;

use super::{
    EXT4_BYTES, MIB, XFS_BYTES,
    bench::{Bench, Loop, in_namespace, run},
    text, write_at,
};

fn test(name: &str, body: impl FnOnce()) {
    in_namespace(&format!("signatures::{name}"), body);
}

/// A signature as blkid knows it.
struct Signature {
    /// blkid's name; empty where blkid finds several filesystems and names none.
    name: &'static str,
    at: u64,
    bytes: Vec<u8>,
}

/// `parts` in a sector of zeros: offset and bytes.
fn sector(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (at, bytes) in parts {
        sector[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    sector
}

/// The superblock of md 1.x (`linux/raid/md_p.h`), which names the sector that it is in.
fn md(minor: &'static str, at: u64) -> Signature {
    let sector_number = (at / 512).to_le_bytes();
    let bytes = sector(&[(0, &[0xfc, 0x4e, 0x2b, 0xa9]), (4, &[1]), (16, &[7; 16]), (144, &sector_number)]);
    assert!(["1.0", "1.2"].contains(&minor));
    Signature { name: "linux_raid_member", at, bytes }
}

/// Signatures in the data of a filesystem on a disk of this size.
fn in_data(disk: u64) -> Vec<Signature> {
    let last = disk - 512;
    let signature = |name, at, bytes| Signature { name, at, bytes };
    vec![
        signature("jmicron_raid_member", last, sector(&[(0, b"JM")])),
        signature("via_raid_member", last, sector(&[(0, &[0x55, 0xaa]), (50, &[0xff])])),
        signature("lsi_mega_raid_member", last, sector(&[(0, b"$XIDE$")])),
        signature(
            "promise_fasttrack_raid_member",
            disk - 16 * 512,
            sector(&[(0, b"Promise Technology, Inc.")]),
        ),
        signature("isw_raid_member", disk - 1024, sector(&[(0, b"Intel Raid ISM Cfg Sig. 1.1.00")])),
        signature("drbd", disk - 4096, sector(&[(60, &[0x83, 0x74, 0x02, 0x6b])])),
        md("1.0", disk - 8192),
        signature("VMFS_volume_member", MIB, sector(&[(0, &[0x0d, 0xd0, 0x01, 0xc0])])),
        // A filesystem's, so blkid finds two.
        signature("", 2 * MIB, sector(&[(0, &[0x5e, 0xf1, 0xab, 0x2f])])),
    ]
}

/// What blkid names the disk.
fn blkid(disk: &Loop) -> String {
    run("blockdev", &["--flushbufs", &text(disk.device())]);
    let output = Command::new("blkid").args(["-p", "-o", "value", "-s", "TYPE"]).arg(disk.device()).output();
    String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
}

/// Puts a signature on a disk; the bytes that were there.
fn put(disk: &Loop, signature: &Signature) -> Vec<u8> {
    let mut before = vec![0; signature.bytes.len()];
    File::open(disk.device()).unwrap().read_exact_at(&mut before, signature.at).unwrap();
    write_at(disk.device(), signature.at, &signature.bytes);
    assert_eq!(blkid(disk), signature.name, "blkid has this signature");
    before
}

/// A disk with the filesystem that a pod has used.
fn used(kind: &str, bytes: u64) -> (Loop, Bench) {
    let disk = Loop::blank(bytes);
    let bench = Bench::new(&disk, disk.device().file_name().unwrap().to_str().unwrap());
    bench.stage(kind, &[]).unwrap();
    fs::write(bench.staging().join("file"), "content").unwrap();
    bench.unstage().unwrap();
    (disk, bench)
}

fn a_filesystem_is_used(kind: &str, bytes: u64) {
    let (disk, bench) = used(kind, bytes);
    for signature in in_data(bytes) {
        // The beginning of a small ext4 is its inode table, which no file can write to.
        if kind == "ext4" && signature.at <= 2 * MIB {
            continue;
        }
        let before = put(&disk, &signature);
        let name = signature.name;
        bench.stage(kind, &[]).unwrap_or_else(|status| panic!("{kind} with {name}: {status}"));
        assert_eq!(fs::read_to_string(bench.staging().join("file")).unwrap(), "content", "{name}");
        bench.unstage().unwrap();
        // The same disk for another filesystem: what it holds is named by its filesystem.
        let other = if kind == "xfs" { "ext4" } else { "xfs" };
        let status = bench.allowing_nonzero().stage(other, &[]).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{name}: {status}");
        assert!(status.message().contains(&format!("holds {kind}")), "{name}: {status}");
        write_at(disk.device(), signature.at, &before);
    }
}

#[test]
fn an_ext4_is_used_whatever_its_files_look_like_needs_root() {
    test("an_ext4_is_used_whatever_its_files_look_like_needs_root", || {
        a_filesystem_is_used("ext4", EXT4_BYTES);
    });
}

#[test]
fn an_xfs_is_used_whatever_its_files_look_like_needs_root() {
    test("an_xfs_is_used_whatever_its_files_look_like_needs_root", || {
        a_filesystem_is_used("xfs", XFS_BYTES);
    });
}

/// A pod fills its volume with sectors that begin with the two bytes.
#[test]
fn a_file_of_a_pod_does_not_lock_the_pod_out_needs_root() {
    test("a_file_of_a_pod_does_not_lock_the_pod_out_needs_root", || {
        let (disk, bench) = used("ext4", EXT4_BYTES);
        bench.stage("ext4", &[]).unwrap();
        bench.publish("a", "ext4", false).unwrap();
        let sectors = sector(&[(0, b"JM")]).repeat(8);
        let mut file = File::create(bench.target("a").join("big")).unwrap();
        while std::io::Write::write_all(&mut file, &sectors).is_ok() {}
        drop(file);
        bench.unpublish("a").unwrap();
        bench.unstage().unwrap();
        assert_eq!(blkid(&disk), "jmicron_raid_member");
        bench.stage("ext4", &[]).unwrap();
        assert_eq!(fs::read_to_string(bench.staging().join("file")).unwrap(), "content");
        bench.unstage().unwrap();
    });
}

/// Refused with and without leave to format unknown data, and unchanged.
fn refused(disk: &Loop, name: &str, kind: &str) {
    let before = disk.checksum();
    let bench = Bench::new(disk, name);
    for bench in [&bench, &bench.allowing_nonzero()] {
        let status = bench.stage(kind, &[]).unwrap_err();
        println!("{name}: {status}");
        assert_eq!(status.code(), Code::FailedPrecondition, "{name}: {status}");
        assert!(status.message().contains("is not blank"), "{name}: {status}");
        for word in ["wipe it", "zero the", "by hand"] {
            assert!(!status.message().contains(word), "{name}: {status}");
        }
    }
    assert_eq!(disk.checksum(), before, "{name} was changed");
}

#[test]
fn a_disk_with_such_a_signature_and_no_filesystem_is_never_formatted_needs_root() {
    test("a_disk_with_such_a_signature_and_no_filesystem_is_never_formatted_needs_root", || {
        for signature in in_data(EXT4_BYTES).iter().filter(|signature| !signature.name.is_empty()) {
            let disk = Loop::blank(EXT4_BYTES);
            put(&disk, signature);
            refused(&disk, signature.name, "ext4");
        }
    });
}

#[test]
fn a_real_member_is_refused_whatever_superblock_it_shows_needs_root() {
    test("a_real_member_is_refused_whatever_superblock_it_shows_needs_root", || {
        // A mirror: the filesystem within ends before the mirror's own superblock.
        let disk = Loop::blank(EXT4_BYTES);
        run("mkfs.ext4", &["-q", &text(disk.device()), &format!("{}K", (EXT4_BYTES - MIB) >> 10)]);
        put(&disk, &md("1.0", EXT4_BYTES - 8192));
        refused(&disk, "mirror", "ext4");
        // Made over an ext4, of which the superblock is left.
        let (disk, _) = used("ext4", EXT4_BYTES);
        put(&disk, &md("1.2", 4096));
        refused(&disk, "md at the beginning", "ext4");
        // The same, and blkid names the superblock at the end, which lies within the ext4.
        let (disk, _) = used("ext4", EXT4_BYTES);
        put(&disk, &md("1.2", 4096));
        put(&disk, &md("1.0", EXT4_BYTES - 8192));
        refused(&disk, "md at both ends", "ext4");
        // LUKS at the beginning, hidden from blkid by the two bytes at the end.
        let (disk, _) = used("ext4", EXT4_BYTES);
        write_at(disk.device(), 0, b"LUKS\xba\xbe\x00\x01");
        put(&disk, &in_data(EXT4_BYTES)[0]);
        refused(&disk, "LUKS with two bytes", "ext4");
        // mkfs did not end.
        let (disk, _) = used("xfs", XFS_BYTES);
        write_at(disk.device(), 126, &[1]);
        put(&disk, &in_data(XFS_BYTES)[0]);
        refused(&disk, "unfinished xfs", "xfs");
    });
}
