//! What keeps a mount or a disk busy: best effort, for error texts; and where else a staging path is mounted.
//!
//! Mounts and stacked devices show everywhere. Processes show only in their own PID namespace: in a container without
//! `hostPID`, as installers of kubevirt/csi-driver run it, those of other pods are invisible, and the error text states
//! that.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    device_number::DeviceNumber,
    error::{Error, Result},
    mount_table::MountTable,
    settings::HostPaths,
};

/// More names do not help the reader.
const MAX_NAMED: usize = 5;

/// The first PID namespace, which sees all processes (`PROC_PID_INIT_INO` of the kernel's `proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Processes that have something open below `path`, mounts below it, loop devices over its files.
pub fn of_path(paths: &HostPaths, path: &Path, mounts: &MountTable) -> String {
    let below = mounts.below(path).into_iter().map(|point| format!("mount {}", point.display()));
    let loops = loops(&paths.sys)
        .filter(|(_, file)| file.starts_with(path))
        .map(|(name, file)| format!("loop device {name} over {}", file.display()));
    let processes = processes(&paths.proc).filter_map(|(pid, directory)| {
        let open = open_files(&directory).find(|file| file.starts_with(path))?;
        Some(format!("process {pid} ({}) has {} open", command(&directory), open.display()))
    });
    let command = format!("`fuser -vm {}` names it", path.display());
    say(paths, &command, below.chain(loops).chain(processes))
}

/// Devices stacked on the disk, mount namespaces in which its filesystem is mounted, processes that have its node open.
pub fn of_disk(paths: &HostPaths, number: DeviceNumber, node: &Path) -> String {
    let stacked = paths.sys.join("dev/block").join(number.to_string()).join("holders");
    let stacked = names(&stacked).map(|name| format!("device {name} is stacked on it"));
    let loops = loops(&paths.sys)
        .filter(|(_, file)| file == node)
        .map(|(name, _)| format!("loop device {name} is on it"));
    let processes = processes(&paths.proc).filter_map(|(pid, directory)| {
        let command = command(&directory);
        let table = fs::read(directory.join("mountinfo")).ok().and_then(|text| MountTable::parse(&text).ok());
        if let Some(mount) = table.and_then(|table| table.of(number).pop()) {
            return Some(format!("mounted at {} for process {pid} ({command})", mount.point.display()));
        }
        let opened = open_files(&directory).any(|file| file == node);
        opened.then(|| format!("process {pid} ({command}) has {} open", node.display()))
    });
    let command =
        format!("`fuser -vm {}` or `grep -l ' {number} ' /proc/[0-9]*/mountinfo` names it", node.display());
    say(paths, &command, stacked.chain(loops).chain(processes))
}

/// See [`crate::host::Host::mounted_elsewhere`]. A container may see the path below another root, so only its end is
/// compared: the kubelet's staging paths end in a folder that is named after the volume, and `globalmount`.
pub fn mounted_elsewhere(proc: &Path, staging: &Path) -> Result<Vec<DeviceNumber>> {
    let own = proc.join("self/ns/mnt");
    let own = fs::read_link(&own).map_err(Error::observe(format!("read {}", own.display())))?;
    let mut seen = HashSet::from([own]);
    let Some(end) = staging.parent().and_then(Path::file_name).zip(staging.file_name()) else {
        return Ok(Vec::new());
    };
    let end = Path::new(end.0).join(end.1);
    let mut numbers = Vec::new();
    for (_, directory) in processes(proc) {
        // A process that ended meanwhile has no mounts; its namespace lives on only with other processes.
        let Ok(namespace) = fs::read_link(directory.join("ns/mnt")) else { continue };
        // The kernel writes a table anew for each reader, and most processes of a node share the first namespace.
        if seen.contains(&namespace) {
            continue;
        }
        let Ok(text) = fs::read(directory.join("mountinfo")) else { continue };
        // A process in a chroot does not see the mounts outside it, so it does not stand for its namespace.
        if fs::read_link(directory.join("root")).is_ok_and(|root| root == Path::new("/")) {
            seen.insert(namespace);
        }
        let table = MountTable::parse(&text).map_err(Error::observe("read a process's mount table"))?;
        let there = table.0.into_iter().filter(|mount| mount.point.ends_with(&end));
        numbers.extend(there.map(|mount| mount.number));
    }
    Ok(numbers)
}

fn say(paths: &HostPaths, command: &str, all: impl Iterator<Item = String>) -> String {
    let mut named: Vec<String> = all.take(MAX_NAMED + 1).collect();
    if named.is_empty() {
        return if sees_all_processes(&paths.proc) {
            format!(
                "by no process of this node that shows it: by the kernel itself, or by a process inside a mount that was \
                 detached; {command}"
            )
        } else {
            format!(
                "by a process outside the node role's container, which does not see it; on the node, {command}"
            )
        };
    }
    if named.len() > MAX_NAMED {
        named.truncate(MAX_NAMED);
        named.push("and more".to_owned());
    }
    named.join(", ")
}

/// False if it is not certain: then the text does not claim that no process holds the disk.
fn sees_all_processes(proc: &Path) -> bool {
    fs::read_link(proc.join("self/ns/pid")).is_ok_and(|namespace| namespace == Path::new(FIRST_PID_NAMESPACE))
}

/// Loop devices and the files or devices that they are on.
fn loops(sys: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let block = sys.join("block");
    names(&block).filter_map(move |name| {
        let file = fs::read_to_string(block.join(&name).join("loop/backing_file")).ok()?;
        Some((name, file.trim_end_matches('\n').into()))
    })
}

fn names(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// All processes but this one.
fn processes(proc: &Path) -> impl Iterator<Item = (u32, std::path::PathBuf)> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(pid, _)| *pid != std::process::id())
}

fn open_files(process: &Path) -> impl Iterator<Item = std::path::PathBuf> {
    let descriptors =
        fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    ["cwd", "root"]
        .map(|link| process.join(link))
        .into_iter()
        .chain(descriptors)
        .filter_map(|link| fs::read_link(link).ok())
}

fn command(process: &Path) -> String {
    fs::read_to_string(process.join("comm")).map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const FIRST: &str = FIRST_PID_NAMESPACE;
    const CONTAINER: &str = "pid:[4026532401]";

    /// Trees of a node with one process that has a file open and a disk mounted, a loop device and a mapper device.
    fn node(namespace: &str) -> (tempfile::TempDir, HostPaths) {
        let tree = tempfile::tempdir().unwrap();
        let paths = HostPaths {
            proc: tree.path().join("proc"),
            sys: tree.path().join("sys"),
            ..HostPaths::default()
        };
        let process = paths.proc.join("4294967295");
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("comm"), "postgres\n").unwrap();
        fs::write(process.join("mountinfo"), "1 2 8:0 / /data rw - ext4 /dev/sda rw\n").unwrap();
        symlink("/stage/base/1", process.join("fd/3")).unwrap();
        fs::create_dir_all(paths.proc.join("self/ns")).unwrap();
        symlink(namespace, paths.proc.join("self/ns/pid")).unwrap();
        fs::create_dir_all(paths.sys.join("block/loop0/loop")).unwrap();
        fs::write(paths.sys.join("block/loop0/loop/backing_file"), "/pods/a/disk.img\n").unwrap();
        fs::create_dir_all(paths.sys.join("dev/block/8:32/holders/dm-0")).unwrap();
        (tree, paths)
    }

    fn disk(paths: &HostPaths, minor: u64) -> String {
        of_disk(paths, DeviceNumber::new(8, minor), Path::new("/dev/sdx"))
    }

    #[test]
    fn an_open_file_and_a_mount_elsewhere_name_their_process() {
        let (_tree, paths) = node(FIRST);
        assert_eq!(
            of_path(&paths, Path::new("/stage"), &MountTable::default()),
            "process 4294967295 (postgres) has /stage/base/1 open"
        );
        assert_eq!(disk(&paths, 0), "mounted at /data for process 4294967295 (postgres)");
    }

    /// A process of another mount namespace, or of this one, whose table is `mountinfo`.
    fn process(paths: &HostPaths, pid: &str, namespace: &str, root: &str) -> PathBuf {
        let process = paths.proc.join(pid);
        fs::create_dir_all(process.join("ns")).unwrap();
        symlink(namespace, process.join("ns/mnt")).unwrap();
        symlink(root, process.join("root")).unwrap();
        process.join("mountinfo")
    }

    /// Reading a pipe into which nobody writes would not return.
    #[test]
    fn the_table_of_a_namespace_that_was_read_is_not_read_again() {
        let (tree, paths) = node(CONTAINER);
        symlink("mnt:[1]", paths.proc.join("self/ns/mnt")).unwrap();
        for pid in ["4294967201", "4294967202"] {
            let table = process(&paths, pid, "mnt:[1]", "/");
            nix::unistd::mkfifo(&table, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let other = process(&paths, "4294967203", "mnt:[2]", "/");
        fs::write(other, "1 2 8:16 / /host/hash/globalmount rw - ext4 /dev/sdb rw\n").unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            send.send(mounted_elsewhere(&paths.proc, Path::new("/x/hash/globalmount")))
        });
        let found = receive.recv_timeout(std::time::Duration::from_secs(20)).expect("no table is waited for");
        assert_eq!(found.unwrap(), [DeviceNumber::new(8, 16)]);
        drop(tree);
    }

    #[test]
    fn a_process_in_a_chroot_does_not_stand_for_its_namespace() {
        let (_tree, paths) = node(CONTAINER);
        symlink("mnt:[1]", paths.proc.join("self/ns/mnt")).unwrap();
        for pid in ["4294967201", "4294967202"] {
            fs::write(process(&paths, pid, "mnt:[2]", "/chroot"), "").unwrap();
        }
        let whole = process(&paths, "4294967203", "mnt:[2]", "/");
        fs::write(whole, "1 2 8:16 / /host/hash/globalmount rw - ext4 /dev/sdb rw\n").unwrap();
        let found = mounted_elsewhere(&paths.proc, Path::new("/x/hash/globalmount"));
        assert_eq!(found.unwrap(), [DeviceNumber::new(8, 16)]);
    }

    #[test]
    fn what_is_stacked_is_named_from_inside_a_container_too() {
        let (_tree, paths) = node(CONTAINER);
        assert_eq!(
            of_path(&paths, Path::new("/pods/a"), &MountTable::default()),
            "loop device loop0 over /pods/a/disk.img"
        );
        assert_eq!(disk(&paths, 32), "device dm-0 is stacked on it");
    }

    #[test]
    fn nobody_seen_is_nobody_only_where_all_processes_are_seen() {
        let unseen = |namespace| {
            let (_tree, paths) = node(namespace);
            of_path(&paths, Path::new("/other"), &MountTable::default())
        };
        assert!(unseen(FIRST).contains("no process of this node"), "{}", unseen(FIRST));
        assert!(unseen(CONTAINER).contains("outside the node role's container"), "{}", unseen(CONTAINER));
        assert!(unseen(CONTAINER).contains("`fuser -vm /other`"), "{}", unseen(CONTAINER));
    }
}
