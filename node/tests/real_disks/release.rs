//! NodeUnstageVolume answers OK only when nothing on the node uses the disk any more, whichever process unmounted it.
//!
//! What uses the disk here is a process in a mount namespace of its own, with its working directory in the volume.
//! Without that directory nothing would be lost: when the kubelet removes the staging directory, the kernel detaches
//! the mount in all other namespaces, and the filesystem ends and is written back unless something is still in it.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tonic::{Code, Status};

use super::{
    EXT4_BYTES,
    bench::{Bench, Held, Loop, in_namespace, run, work_dir},
    text,
};

/// Set for a process that plays another node role: the folder of its volume.
const CALL: &str = "NODE_TEST_CALL";
/// What a pod writes last, without fsync.
const MARKER: &[u8] = b"what the pod wrote last, and nobody has written back yet";
/// How long a condition of these tests may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test; a process that [`node_role`] started makes its call instead.
fn test(name: &str, body: impl FnOnce()) {
    in_namespace(&format!("release::{name}"), || match std::env::var(CALL) {
        Ok(folder) => {
            let answer = Bench::existing(&folder).unstage();
            println!("ANSWER {answer:?}");
            // Killed: no cleanup of any kind runs.
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        Err(_) => body(),
    });
}

/// Another process of the node role, which unstages the volume.
fn node_role(name: &str, folder: &str) -> Held {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", &format!("release::{name}"), "--nocapture", "--test-threads=1"]);
    Held::spawn(process.env(CALL, folder).stdout(Stdio::piped()))
}

/// A process in a mount namespace of its own, which has its directory at `path`.
fn stand_in(path: &Path) -> Held {
    in_own_namespace(&format!("cd '{}'", path.display()))
}

fn in_own_namespace(script: &str) -> Held {
    let script = format!("{script} && echo ready && exec sleep 1000");
    let mut holder = Command::new("unshare");
    holder.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    Held::spawn_ready(&mut holder)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        sleep(Duration::from_millis(10));
    }
}

fn is_mounted(path: &Path) -> bool {
    let point = format!(" {} ", path.display());
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().any(|line| line.contains(&point))
}

fn is_written(disk: &Loop) -> bool {
    fs::read(disk.image()).unwrap().windows(MARKER.len()).any(|window| window == MARKER)
}

/// NodeUnstageVolume refuses and names the process, and does so again when it is repeated.
fn is_refused(bench: &Bench, holder: &Held) {
    for _ in 0..2 {
        let status = bench.unstage().unwrap_err();
        println!("{status}");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("must not be detached yet"), "{status}");
        assert!(names(&status, holder), "{status}");
        assert!(bench.disk_record().exists());
    }
}

/// By its mount; a process whose mount was detached is not seen.
fn names(status: &Status, holder: &Held) -> bool {
    status.message().contains(&format!("process {} (sleep)", holder.id()))
        || status.message().contains("by no process of this node that shows it")
        || status.message().contains("outside the node role's container")
}

fn is_released(bench: &Bench) {
    bench.unstage().unwrap();
    assert!(!bench.disk_record().exists());
    bench.unstage().unwrap();
}

/// Staged and published; its last file written but not written back; a process in it; unpublished.
fn used(disk: &Loop, folder: &str) -> (Bench, Held) {
    let bench = Bench::new(disk, folder);
    bench.stage("ext4", &[]).unwrap();
    bench.publish("a", "ext4", false).unwrap();
    let holder = stand_in(bench.staging());
    fs::write(bench.target("a").join("last"), MARKER).unwrap();
    bench.unpublish("a").unwrap();
    (bench, holder)
}

#[test]
fn a_kill_between_unmount_and_proof_needs_root() {
    const NAME: &str = "a_kill_between_unmount_and_proof_needs_root";
    test(NAME, || {
        let disk = Loop::blank(EXT4_BYTES);
        let (bench, holder) = used(&disk, "killed");
        let first = node_role(NAME, "killed");
        until("the unmount", || !is_mounted(bench.staging()));
        drop(first);
        is_refused(&bench, &holder);
        assert!(!is_written(&disk), "otherwise there is nothing to lose");
        drop(holder);
        is_released(&bench);
        assert!(is_written(&disk));
    });
}

#[test]
fn a_restart_while_the_disk_is_used_needs_root() {
    const NAME: &str = "a_restart_while_the_disk_is_used_needs_root";
    test(NAME, || {
        let disk = Loop::blank(EXT4_BYTES);
        let (bench, holder) = used(&disk, "again");
        let answer = node_role(NAME, "again").output();
        assert!(answer.contains("must not be detached yet"), "{answer}");
        // The staging directory is removed: no other mount namespace shows the mount any more.
        fs::remove_dir(bench.staging()).unwrap();
        is_refused(&bench, &holder);
        assert!(!is_written(&disk));
        drop(holder);
        is_released(&bench);
        assert!(is_written(&disk));
    });
}

#[test]
fn the_record_of_an_earlier_boot_needs_root() {
    test("the_record_of_an_earlier_boot_needs_root", || {
        let disk = Loop::blank(EXT4_BYTES);
        let (bench, holder) = used(&disk, "boot");
        let ours = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let (major, minor) = disk.number();
        let earlier = fs::read_to_string(bench.disk_record())
            .unwrap()
            .replace(ours.trim(), "00000000-0000-0000-0000-000000000000")
            .replace(&format!("\"major\":{major},\"minor\":{minor}"), "\"major\":8,\"minor\":16");
        assert!(!earlier.contains(ours.trim()) && earlier.contains("\"minor\":16"), "{earlier}");
        // Unmounted as by a reboot. The recorded number means nothing any more, but a disk with the serial is in use.
        run("umount", &[&text(bench.staging())]);
        fs::write(bench.disk_record(), &earlier).unwrap();
        is_refused(&bench, &holder);
        drop(holder);
        is_released(&bench);

        // The usual case: the reboot ended everything, with the disk still there or gone.
        for lost in [false, true] {
            fs::write(bench.disk_record(), &earlier).unwrap();
            if lost {
                bench.lose();
            }
            is_released(&bench);
        }
    });
}

#[test]
fn a_block_volume_whose_pod_left_a_mount_needs_root() {
    const NAME: &str = "a_block_volume_whose_pod_left_a_mount_needs_root";
    test(NAME, || {
        let disk = Loop::blank(EXT4_BYTES);
        let bench = Bench::new(&disk, "block");
        bench.stage_block().unwrap();
        bench.publish_block("a").unwrap();
        // A privileged pod makes a filesystem on its device and mounts it, through a node that its runtime made.
        let (node, there) = (work_dir().join("dev-in-pod"), work_dir().join("in-pod"));
        let (major, minor) = disk.number();
        run("mknod", &[&text(&node), "b", &major.to_string(), &minor.to_string()]);
        fs::create_dir_all(&there).unwrap();
        let (node, there) = (node.display(), there.display());
        let holder = in_own_namespace(&format!("mkfs.ext4 -q {node} && mount {node} {there} && cd {there}"));
        bench.unpublish("a").unwrap();
        let answer = node_role(NAME, "block").output();
        assert!(answer.contains("must not be detached yet"), "{answer}");
        is_refused(&bench, &holder);
        drop(holder);
        is_released(&bench);
    });
}

#[test]
fn a_block_volume_is_written_back_before_it_is_let_go_needs_root() {
    test("a_block_volume_is_written_back_before_it_is_let_go_needs_root", || {
        let disk = Loop::blank(EXT4_BYTES);
        let bench = Bench::new(&disk, "open");
        bench.stage_block().unwrap();
        bench.publish_block("a").unwrap();
        // A process keeps the device open, which claims nothing.
        let mut file = fs::File::options().write(true).open(disk.device()).unwrap();
        file.write_all(MARKER).unwrap();
        bench.unpublish("a").unwrap();
        assert!(!is_written(&disk));
        is_released(&bench);
        assert!(is_written(&disk));
        drop(file);
    });
}

#[test]
fn a_record_that_says_nothing_needs_root() {
    test("a_record_that_says_nothing_needs_root", || {
        let disk = Loop::blank(EXT4_BYTES);
        let (bench, holder) = used(&disk, "garbage");
        let whole = fs::read_to_string(bench.disk_record()).unwrap();
        run("umount", &[&text(bench.staging())]);
        for broken in ["", "garbage", &whole[..whole.len() / 2], "{}"] {
            fs::write(bench.disk_record(), broken).unwrap();
            let status = bench.unstage().unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            assert!(status.message().contains("garbage/disk-records/pvc-1.json"), "{status}");
            assert!(status.message().contains("remove that file"), "{status}");
            assert!(names(&status, &holder), "{status}");
        }
        drop(holder);
        is_released(&bench);

        // An interrupted write leaves a file of another name, which is not read.
        bench.stage("ext4", &[]).unwrap();
        fs::write(bench.disk_record().with_added_extension("new"), "garbage").unwrap();
        is_released(&bench);
        assert_eq!(fs::read_dir(bench.disk_record().parent().unwrap()).unwrap().count(), 0);
    });
}

#[test]
fn a_volume_that_a_version_without_records_unmounted_needs_root() {
    test("a_volume_that_a_version_without_records_unmounted_needs_root", || {
        let disk = Loop::blank(EXT4_BYTES);
        let (bench, holder) = used(&disk, "older-version");
        fs::remove_file(bench.disk_record()).unwrap();
        run("umount", &[&text(bench.staging())]);
        let status = bench.unstage().unwrap_err();
        assert!(status.message().contains("must not be detached yet"), "{status}");
        drop(holder);
        is_released(&bench);
    });
}

#[test]
fn a_volume_in_the_older_layout_needs_root() {
    test("a_volume_in_the_older_layout_needs_root", || {
        let disk = Loop::blank(EXT4_BYTES);
        run("mkfs.ext4", &["-q", &text(disk.device())]);
        let bench = Bench::new(&disk, "older-layout");
        fs::create_dir_all(bench.target("old")).unwrap();
        run("mount", &[&text(disk.device()), &text(&bench.target("old"))]);
        let holder = stand_in(&bench.target("old"));
        bench.unpublish("old").unwrap();
        is_refused(&bench, &holder);
        drop(holder);
        is_released(&bench);
    });
}

#[test]
fn a_disk_that_is_gone_and_a_volume_that_was_never_here_are_released_needs_root() {
    test("a_disk_that_is_gone_and_a_volume_that_was_never_here_are_released_needs_root", || {
        let disk = Loop::blank(EXT4_BYTES);
        let (bench, holder) = used(&disk, "gone");
        bench.unstage().unwrap_err();
        bench.lose();
        is_released(&bench);
        drop(holder);

        let bench = Bench::new(&disk, "never");
        bench.lose();
        is_released(&bench);
        assert!(!bench.disk_record().parent().unwrap().exists());
    });
}
