//! Who keeps a mount or a disk busy: best effort, for error texts only.
//!
//! It sees the processes of its own PID namespace; with `hostPID` those of the whole node.

use std::fs;
use std::path::Path;

use crate::device::DeviceNumber;
use crate::mount_table::MountTable;

/// More names do not help anybody.
const MAX_NAMED: usize = 5;

/// Processes that have something open below `path`, or mounts below it.
pub fn of_path(proc: &Path, path: &Path, mounts: &MountTable) -> String {
    let below = mounts.below(path).into_iter().map(|point| format!("mount {}", point.display()));
    let processes = processes(proc).filter_map(|(pid, directory)| {
        let open = open_files(&directory).find(|file| file.starts_with(path))?;
        Some(format!("process {pid} ({}) has {} open", command(&directory), open.display()))
    });
    say(below.chain(processes))
}

/// Mount namespaces in which the disk's filesystem is mounted, and processes that have its node open.
pub fn of_disk(proc: &Path, number: DeviceNumber, node: &Path) -> String {
    let processes = processes(proc).filter_map(|(pid, directory)| {
        let command = command(&directory);
        let table = fs::read(directory.join("mountinfo")).ok().and_then(|text| MountTable::parse(&text).ok());
        if let Some(mount) = table.and_then(|table| table.of(number).pop()) {
            return Some(format!("mounted at {} for process {pid} ({command})", mount.point.display()));
        }
        let opened = open_files(&directory).any(|file| file == node);
        opened.then(|| format!("process {pid} ({command}) has {} open", node.display()))
    });
    say(processes)
}

fn say(all: impl Iterator<Item = String>) -> String {
    let mut named: Vec<String> = all.take(MAX_NAMED + 1).collect();
    if named.is_empty() {
        return "by whom is not visible from the node plugin".to_owned();
    }
    if named.len() > MAX_NAMED {
        named.truncate(MAX_NAMED);
        named.push("and more".to_owned());
    }
    named.join(", ")
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

    fn proc_tree() -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let process = proc.path().join("4294967295");
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("comm"), "postgres\n").unwrap();
        fs::write(process.join("mountinfo"), "1 2 8:0 / /data rw - ext4 /dev/sda rw\n").unwrap();
        symlink("/stage/base/1", process.join("fd/3")).unwrap();
        fs::create_dir_all(proc.path().join("self")).unwrap();
        proc
    }

    #[test]
    fn an_open_file_and_a_mount_elsewhere_name_their_process() {
        let proc = proc_tree();
        let mounts = MountTable::default();
        assert_eq!(
            of_path(proc.path(), Path::new("/stage"), &mounts),
            "process 4294967295 (postgres) has /stage/base/1 open"
        );
        assert_eq!(
            of_disk(proc.path(), DeviceNumber::new(8, 0), Path::new("/dev/sda")),
            "mounted at /data for process 4294967295 (postgres)"
        );
        assert!(of_path(proc.path(), Path::new("/other"), &mounts).contains("not visible"));
    }
}
