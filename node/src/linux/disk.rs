//! Disks as open files: proving that the opened disk is the one that was found, reading it, formatting it.

use std::{
    collections::hash_map::DefaultHasher,
    fs::{self, File, OpenOptions},
    hash::Hasher,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, OFlag, PosixFadviseAdvice, fcntl, posix_fadvise},
};

use crate::{
    device::Disk,
    device_number::DeviceNumber,
    error::{Error, Result},
    filesystem::{
        FilesystemType, MkfsOptions, SUPERBLOCK_BYTES, Tool, XFS_INODE_BYTES, xfs_features, xfs_root_inode,
    },
    host::HeldDisk,
    linux::{
        command::{self, FORMAT_LIMIT, PROBE_LIMIT},
        holders, sysfs,
    },
    origin::FilesystemUuid,
    probe::{
        Answer, EDGE_BYTES, Evidence, SURVEY_ALIGNMENT, Samples, own_kinds, sample_ranges, survey_ranges,
    },
    settings::HostPaths,
};

/// How long to wait for udev's own probe of a new disk, which holds a shared lock (systemd: block device locking).
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Pause between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Path of a disk's device node.
pub fn node_path(paths: &HostPaths, disk: &Disk) -> PathBuf {
    paths.dev.join(&disk.name)
}

/// See [`crate::host::Host::hold`].
pub fn hold(paths: &HostPaths, disk: &Disk) -> Result<HeldDisk> {
    let node = node_path(paths, disk);
    let mut file = open_found(paths, disk)?;
    let begin = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(HeldDisk::locked(disk.clone(), lock)),
            Err((back, Errno::EWOULDBLOCK)) if begin.elapsed() < LOCK_WAIT => {
                file = back;
                std::thread::sleep(LOCK_PAUSE);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                let holders = holders::of_disk(paths, disk.number, &node);
                let by = format!("another program's lock: {holders}");
                return Err(Error::DiskBusy { name: disk.name.clone(), by });
            }
            Err((_, errno)) => return Err(Error::observe(format!("lock {}", node.display()))(errno.into())),
        }
    }
}

/// Opens a disk and proves that it is the one that was found.
pub fn open_found(paths: &HostPaths, disk: &Disk) -> Result<File> {
    let file = open(&node_path(paths, disk), disk, OpenOptions::new().read(true))?;
    prove_identity(paths, disk)?;
    Ok(file)
}

/// Proves that the disk that has this number now still reports the identity of the one that was found.
fn prove_identity(paths: &HostPaths, disk: &Disk) -> Result<()> {
    let changed = |detail: String| Err(Error::DiskChanged { name: disk.name.clone(), detail });
    match sysfs::disk(&paths.sys, disk.number)? {
        None => changed("it is gone".to_owned()),
        Some(now) if now.name != disk.name || now.identity != disk.identity => {
            changed(format!("{} is now {} with serial {}", disk.number, now.name, now.identity))
        }
        Some(_) => Ok(()),
    }
}

/// Opens a node and proves that it leads to this disk's number.
fn open(node: &Path, disk: &Disk, options: &OpenOptions) -> Result<File> {
    let file = options.open(node).map_err(Error::observe(format!("open {}", node.display())))?;
    let metadata = file.metadata().map_err(Error::observe(format!("read {}", node.display())))?;
    match DeviceNumber::of_node(&metadata) {
        Some(number) if number == disk.number => Ok(file),
        other => {
            let detail = format!("{} leads to {other:?}, not to {}", node.display(), disk.number);
            Err(Error::DiskChanged { name: disk.name.clone(), detail })
        }
    }
}

/// Opens it so that nothing else (a mount in any namespace, device mapper, another mkfs) can have it.
fn open_exclusively(paths: &HostPaths, disk: &Disk, write: bool) -> Result<File> {
    let node = node_path(paths, disk);
    let mut options = OpenOptions::new();
    options.read(true).write(write).custom_flags(OFlag::O_EXCL.bits());
    match open(&node, disk, &options) {
        Err(Error::Observe { source, .. }) if source.raw_os_error() == Some(Errno::EBUSY as i32) => {
            let by = holders::of_disk(paths, disk.number, &node);
            Err(Error::DiskBusy { name: disk.name.clone(), by })
        }
        other => other,
    }
}

/// See [`crate::host::Host::in_use`].
pub fn in_use(paths: &HostPaths, disk: &Disk) -> Result<Option<String>> {
    match open_exclusively(paths, disk, false) {
        Ok(exclusive) => {
            // A process may still have a block volume's device open, which claims nothing: what it wrote is flushed
            // now. A disk that cannot take the data any more must be detachable all the same.
            if let Err(error) = exclusive.sync_all() {
                tracing::warn!(disk = disk.name, %error, "flushing the disk failed; what was not on it is lost");
            }
            Ok(None)
        }
        Err(Error::DiskBusy { by, .. }) => Ok(Some(by)),
        Err(Error::Observe { source, .. }) if answers_no_more(&source) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Whether the disk behind the node is gone or offline. The kernel returns these errors only after it has found the
/// disk unclaimed.
fn answers_no_more(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENXIO as i32) || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// See [`crate::host::Host::examine`].
pub fn examine(paths: &HostPaths, held: &HeldDisk) -> Result<Evidence> {
    let disk = held.disk();
    let exclusive = open_exclusively(paths, disk, false)?;
    let blkid = ask_blkid(paths, disk, &[])?;
    let samples = sample(&exclusive, disk.bytes).and_then(|samples| {
        let first_data = match samples.first_data {
            None => survey(&exclusive, disk.bytes)?,
            found => found,
        };
        Ok(Samples { first_data, ..samples })
    });
    let samples = samples.map_err(|error| error.to_string());
    let own = samples.as_ref().map(|samples| own_kinds(&blkid, samples, disk.bytes)).unwrap_or_default();
    let without_own = if own.is_empty() {
        None
    } else {
        tracing::warn!(
            disk = disk.name,
            found = blkid.words(),
            "blkid found a signature where the data of a filesystem can have it; asking without such signatures"
        );
        Some(ask_blkid(paths, disk, &own)?)
    };
    Ok(Evidence { blkid, without_own, samples })
}

/// Runs blkid, which does not look for the signatures named in `without`.
fn ask_blkid(paths: &HostPaths, disk: &Disk, without: &[&str]) -> Result<Answer> {
    let mut arguments: Vec<String> = ["-p", "-o", "export"].map(str::to_owned).into();
    if !without.is_empty() {
        // The prefix is the whole list's (blkid.c, `list_to_types`), whatever blkid(8) says.
        arguments.extend(["-n".to_owned(), format!("no{}", without.join(","))]);
    }
    arguments.push(node_path(paths, disk).to_string_lossy().into_owned());
    let ended = command::run(&Tool { program: "blkid", arguments }, &disk.name, PROBE_LIMIT)?;
    Ok(Answer { code: ended.code, output: ended.output, errors: ended.errors })
}

/// Reads the ranges of [`sample_ranges`] from the disk itself, not from what the kernel remembers of it.
fn sample(file: &File, bytes: u64) -> io::Result<Samples> {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut hasher = DefaultHasher::new();
    let mut first_data = None;
    let mut head = Vec::new();
    let mut buffer = vec![0_u8; usize::try_from(EDGE_BYTES).map_err(io::Error::other)?];
    for range in sample_ranges(bytes) {
        let mut at = range.start;
        while at < range.end {
            let length = usize::try_from((range.end - at).min(EDGE_BYTES)).map_err(io::Error::other)?;
            let part = &mut buffer[..length];
            file.read_exact_at(part, at)?;
            first_data = first_data.or_else(|| data_in(part, at));
            hasher.write(part);
            if at == 0 {
                head = part[..length.min(SUPERBLOCK_BYTES)].to_vec();
            }
            at += length as u64;
        }
    }
    let mut root_inode = Vec::new();
    if let Some(at) = xfs_root_inode(&head).filter(|at| at.saturating_add(XFS_INODE_BYTES as u64) <= bytes) {
        root_inode = vec![0; XFS_INODE_BYTES];
        file.read_exact_at(&mut root_inode, at)?;
    }
    Ok(Samples { first_data, fingerprint: hasher.finish(), head, root_inode })
}

/// Where the first byte that is not zero lies in the ranges of [`survey_ranges`]. Reads past the page cache: neither
/// what the kernel remembers counts, nor is what it remembers of other files worth less than a blank disk.
fn survey(file: &File, bytes: u64) -> io::Result<Option<u64>> {
    fcntl(file, FcntlArg::F_SETFL(OFlag::O_DIRECT))?;
    let alignment = usize::try_from(SURVEY_ALIGNMENT).map_err(io::Error::other)?;
    let most = usize::try_from(EDGE_BYTES).map_err(io::Error::other)?;
    let mut buffer = vec![0_u8; most + alignment];
    let aligned = buffer.as_ptr().align_offset(alignment);
    let buffer = &mut buffer[aligned..aligned + most];
    for range in survey_ranges(bytes) {
        let mut at = range.start;
        while at < range.end {
            let length = usize::try_from((range.end - at).min(EDGE_BYTES)).map_err(io::Error::other)?;
            file.read_exact_at(&mut buffer[..length], at)?;
            if let Some(found) = data_in(&buffer[..length], at) {
                return Ok(Some(found));
            }
            at += length as u64;
        }
    }
    Ok(None)
}

/// Where the first byte that is not zero lies in what was read at `at`.
fn data_in(part: &[u8], at: u64) -> Option<u64> {
    // Slices compare faster than bytes, and nearly all are zero.
    const ZEROS: [u8; 4096] = [0; 4096];
    let chunk = part.chunks(ZEROS.len()).position(|chunk| *chunk != ZEROS[..chunk.len()])?;
    let start = chunk * ZEROS.len();
    let byte = part[start..].iter().position(|byte| *byte != 0)?;
    Some(at + (start + byte) as u64)
}

/// The first bytes of a disk that may be mounted.
pub fn head(paths: &HostPaths, disk: &Disk) -> Result<Vec<u8>> {
    let node = node_path(paths, disk);
    let file = open(&node, disk, OpenOptions::new().read(true))?;
    let mut head = vec![0_u8; SUPERBLOCK_BYTES];
    let read = |head: &mut [u8]| -> io::Result<()> {
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        file.read_exact_at(head, 0)
    };
    read(&mut head).map_err(Error::observe(format!("read the superblock of {}", disk.name)))?;
    Ok(head)
}

/// Proves, under an exclusive open, that this is the probed disk and that it holds the probed bytes.
fn open_as_judged(paths: &HostPaths, disk: &Disk, fingerprint: u64, write: bool) -> Result<File> {
    let exclusive = open_exclusively(paths, disk, write)?;
    prove_identity(paths, disk)?;
    if sysfs::disk(&paths.sys, disk.number)?.is_none_or(|now| now.bytes != disk.bytes) {
        return Err(Error::DiskChanged { name: disk.name.clone(), detail: "its size changed".to_owned() });
    }
    let samples = sample(&exclusive, disk.bytes)
        .map_err(|error| Error::DiskUnreadable { name: disk.name.clone(), reason: error.to_string() })?;
    if samples.fingerprint != fingerprint {
        let detail = "its bytes changed since it was probed".to_owned();
        return Err(Error::DiskChanged { name: disk.name.clone(), detail });
    }
    Ok(exclusive)
}

/// Makes the filesystem on a disk that is still as it was probed.
///
/// The exclusive open ends right before mkfs, which opens exclusively itself and gets no force flag.
pub fn format(
    paths: &HostPaths,
    disk: &Disk,
    filesystem: FilesystemType,
    fingerprint: u64,
    uuid: Option<FilesystemUuid>,
) -> Result<()> {
    let node = node_path(paths, disk);
    drop(open_as_judged(paths, disk, fingerprint, false)?);
    tracing::info!(disk = disk.name, number = %disk.number, serial = %disk.identity, %filesystem, "formatting");
    let release = fs::read_to_string(&paths.kernel_release).unwrap_or_default();
    let options = MkfsOptions { uuid, xfs_features: xfs_features(release.trim()) };
    command::run_successfully(&filesystem.mkfs(&node, &options), &disk.name, FORMAT_LIMIT)?;
    let file = open(&node, disk, OpenOptions::new().read(true).write(true))?;
    file.sync_all().map_err(Error::act(format!("flush {}", disk.name)))
}

/// Zeroes the first edge of a disk that is still as it was probed.
pub fn clear(paths: &HostPaths, disk: &Disk, fingerprint: u64) -> Result<()> {
    let exclusive = open_as_judged(paths, disk, fingerprint, true)?;
    let length = usize::try_from(EDGE_BYTES.min(disk.bytes)).unwrap_or(SUPERBLOCK_BYTES);
    tracing::warn!(disk = disk.name, serial = %disk.identity, "clearing what an unfinished mkfs left");
    let write = || -> io::Result<()> {
        exclusive.write_all_at(&vec![0; length], 0)?;
        exclusive.sync_all()
    };
    write().map_err(Error::act(format!("clear the beginning of {}", disk.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_survey_names_the_first_byte_wherever_it_is() {
        let bytes = 3 * EDGE_BYTES + SURVEY_ALIGNMENT;
        for at in [None, Some(0), Some(511), Some(EDGE_BYTES - 1), Some(EDGE_BYTES + 4097), Some(bytes - 1)] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(bytes).unwrap();
            if let Some(at) = at {
                file.write_all_at(b"x", at).unwrap();
                file.sync_all().unwrap();
            }
            assert_eq!(survey(&file, bytes).unwrap(), at);
        }
    }

    #[test]
    fn data_that_the_survey_finds_is_not_in_the_samples_fingerprint() {
        let bytes = 200 * EDGE_BYTES;
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let before = sample(&file, bytes).unwrap();
        let missed = sample_ranges(bytes)[1].end + 1;
        file.write_all_at(b"x", missed).unwrap();
        assert_eq!(sample(&file, bytes).unwrap(), before);
        assert_eq!(survey(&file, bytes).unwrap(), Some(missed));
    }
}
