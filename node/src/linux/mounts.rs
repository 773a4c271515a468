//! mount(2), umount(2), and the paths that are mounted on.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use crate::{
    device_number::DeviceNumber,
    error::{Error, Result},
    filesystem::FilesystemType,
    mount_options::{Flag, MountOptions},
    mount_table::MountTable,
    path_state::PathState,
};

/// Mode of a directory that is mounted on (as kubevirt/csi-driver makes it).
const DIRECTORY_MODE: u32 = 0o750;
/// Mode of a file that a device node is bound on (as kubevirt/csi-driver makes it).
const FILE_MODE: u32 = 0o640;

/// The errors of mounts of lost disks and servers (mount-utils calls such a mount corrupted).
const CORRUPTED: [Errno; 7] = [
    Errno::ENOTCONN,
    Errno::ESTALE,
    Errno::EIO,
    Errno::EACCES,
    Errno::EHOSTDOWN,
    Errno::EWOULDBLOCK,
    Errno::ENODEV,
];

/// The errors with which the kernel refuses every write to a filesystem that had an error: ext4 is then read-only, xfs is
/// shut down, and both find damage.
const WRITE_REFUSED: [Errno; 4] = [Errno::EROFS, Errno::EIO, Errno::EUCLEAN, Errno::ESHUTDOWN];
/// Mode of the file without a name.
const NAMELESS_MODE: u32 = 0o600;

/// See [`crate::host::Host::write_refusal`].
///
/// Since "ext4: don't set `SB_RDONLY` after filesystem errors" (in 6.1.0-57 and 6.18) neither the mount table nor
/// statvfs(2) nor access(2) show what an error of the kernel has done. A file without a name is created and is gone when
/// it is closed.
pub fn write_refusal(mount_point: &Path) -> Option<String> {
    let mut nameless = OpenOptions::new();
    nameless.read(true).write(true).mode(NAMELESS_MODE).custom_flags(OFlag::O_TMPFILE.bits());
    let error = nameless.open(mount_point).err()?;
    let refused = error.raw_os_error().is_some_and(|code| WRITE_REFUSED.contains(&Errno::from_raw(code)));
    refused.then(|| error.to_string())
}

/// See [`crate::host::Host::path`].
pub fn state(path: &Path) -> Result<PathState> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(PathState::Missing);
        }
        Err(error) if error.raw_os_error().is_some_and(|code| CORRUPTED.contains(&Errno::from_raw(code))) => {
            return Ok(PathState::Corrupted(error.to_string()));
        }
        Err(error) => return Err(Error::observe(format!("read {}", path.display()))(error)),
    };
    if let Some(number) = DeviceNumber::of_node(&metadata) {
        return Ok(PathState::Node(number));
    }
    Ok(match metadata.file_type() {
        kind if kind.is_dir() => PathState::Directory,
        kind if kind.is_file() => PathState::File { bytes: metadata.len() },
        kind if kind.is_symlink() => PathState::Other("a symbolic link"),
        _ => PathState::Other("a special file"),
    })
}

/// See [`crate::host::Host::canonical`]. The part of the path that does not exist yet stays as given.
pub fn canonical(path: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path.to_owned()) };
    match fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(canonical(parent)?.join(name))
        }
        Err(error) => Err(Error::observe(format!("resolve {}", parent.display()))(error)),
    }
}

/// Makes a directory and its parents.
pub fn create_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(Error::act(format!("create {}", path.display())))
}

/// Makes an empty file and its parents. A link in the file's place is not followed: the file would be made where it points.
pub fn create_file(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        create_directory(parent)?;
    }
    let mut empty = OpenOptions::new();
    empty.write(true).create(true).truncate(false).mode(FILE_MODE).custom_flags(OFlag::O_NOFOLLOW.bits());
    empty.open(path).map(drop).map_err(Error::act(format!("create {}", path.display())))
}

/// Mounts a filesystem.
pub fn mount_disk(
    node: &Path,
    target: &Path,
    filesystem: FilesystemType,
    options: &MountOptions,
) -> Result<()> {
    let data = options.data.join(",");
    mount(Some(node), target, Some(filesystem.name()), kernel_flags(&options.flags), Some(data.as_str()))
        .map_err(|errno| {
            let action =
                format!("mount {} at {} as {filesystem} ({options})", node.display(), target.display());
            Error::Act { action, source: errno.into() }
        })
}

/// Binds a directory or a node.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
        Error::act(format!("bind {} to {}", source.display(), target.display()))(errno.into())
    })
}

/// Makes a bind read-only. A remount clears the flags that it does not name.
pub fn remount_read_only(target: &Path, keep: &BTreeSet<Flag>) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kernel_flags(keep);
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .map_err(|errno| Error::act(format!("make {} read-only", target.display()))(errno.into()))
}

/// Takes the topmost mount off; never lazily, because a lazy unmount leaves the disk in use unseen.
///
/// A path that is not (or no longer) a mount point is the desired result. `Ok(false)`: something keeps the mount busy.
pub fn unmount(target: &Path) -> Result<bool> {
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(true),
        Err(Errno::EBUSY) => Ok(false),
        Err(errno) => Err(Error::act(format!("unmount {}", target.display()))(errno.into())),
    }
}

/// Removes an empty directory or an empty file that is no mount point by the mount table given.
pub fn remove_target(path: &Path, mounts: &MountTable) -> Result<()> {
    let refused = |why: String| Err(Error::NotRemovable { path: path.to_owned(), why });
    if !mounts.at(path).is_empty() {
        return refused("it is still a mount point".to_owned());
    }
    let act = || Error::act(format!("remove {}", path.display()));
    match state(path)? {
        PathState::Missing => Ok(()),
        PathState::Directory => match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                refused("it is not empty".to_owned())
            }
            other => other.map_err(act()),
        },
        PathState::File { bytes: 0 } => fs::remove_file(path).map_err(act()),
        other => refused(format!("it is {other}, and not empty")),
    }
}

fn kernel_flags(flags: &BTreeSet<Flag>) -> MsFlags {
    flags.iter().fold(MsFlags::empty(), |all, flag| {
        all | match flag {
            Flag::ReadOnly => MsFlags::MS_RDONLY,
            Flag::NoSuid => MsFlags::MS_NOSUID,
            Flag::NoDev => MsFlags::MS_NODEV,
            Flag::NoExec => MsFlags::MS_NOEXEC,
            Flag::Synchronous => MsFlags::MS_SYNCHRONOUS,
            Flag::DirSync => MsFlags::MS_DIRSYNC,
            Flag::NoAtime => MsFlags::MS_NOATIME,
            Flag::NoDirAtime => MsFlags::MS_NODIRATIME,
            Flag::RelAtime => MsFlags::MS_RELATIME,
            Flag::StrictAtime => MsFlags::MS_STRICTATIME,
            Flag::LazyTime => MsFlags::MS_LAZYTIME,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_file_is_not_made_through_a_link() {
        let root = tempfile::tempdir().unwrap();
        let (link, elsewhere, there) =
            (root.path().join("link"), root.path().join("elsewhere"), root.path().join("there"));
        symlink(&elsewhere, &link).unwrap();
        create_file(&link).unwrap_err();
        assert!(!elsewhere.exists());
        fs::write(&there, "content").unwrap();
        create_file(&there).unwrap();
        assert_eq!(fs::read_to_string(&there).unwrap(), "content", "a file that is there stays");
    }

    #[test]
    fn only_what_is_empty_and_no_mount_point_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let none = MountTable::default();
        let (directory, file) = (root.path().join("d"), root.path().join("f"));
        create_directory(&directory).unwrap();
        create_file(&file).unwrap();

        fs::write(directory.join("data"), "x").unwrap();
        assert!(matches!(remove_target(&directory, &none), Err(Error::NotRemovable { .. })));
        fs::remove_file(directory.join("data")).unwrap();
        fs::write(&file, "x").unwrap();
        assert!(matches!(remove_target(&file, &none), Err(Error::NotRemovable { .. })));
        fs::write(&file, "").unwrap();
        let link = root.path().join("l");
        symlink(&directory, &link).unwrap();
        assert!(matches!(remove_target(&link, &none), Err(Error::NotRemovable { .. })));

        let text = format!("1 2 8:0 / {} rw - ext4 /dev/sda rw\n", directory.display());
        let mounted = MountTable::parse(text.as_bytes()).unwrap();
        assert!(matches!(remove_target(&directory, &mounted), Err(Error::NotRemovable { .. })));

        remove_target(&directory, &none).unwrap();
        remove_target(&file, &none).unwrap();
        remove_target(&file, &none).unwrap();
        assert!(!directory.exists() && !file.exists());
    }

    #[test]
    fn links_above_the_last_component_are_resolved_and_what_is_missing_stays() {
        let root = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(root.path()).unwrap();
        create_directory(&real.join("real/pods")).unwrap();
        symlink(real.join("real"), real.join("link")).unwrap();
        assert_eq!(canonical(&real.join("link/pods/x")).unwrap(), real.join("real/pods/x"));
        assert_eq!(canonical(&real.join("link/none/deep/x")).unwrap(), real.join("real/none/deep/x"));
        assert_eq!(canonical(&real.join("link")).unwrap(), real.join("link"));
        assert_eq!(state(&real.join("link")).unwrap(), PathState::Other("a symbolic link"));
        assert_eq!(state(&real.join("none")).unwrap(), PathState::Missing);
    }
}
