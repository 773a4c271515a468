//! The real machine: the one place with system calls and child processes.

mod command;
mod confinement;
mod disk;
mod disk_record;
mod durable_file;
mod holders;
mod mkfs_record;
mod mounts;
mod sysfs;

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::statvfs::statvfs;

use crate::{
    device::Disk,
    device_number::DeviceNumber,
    disk_record::DiskRecordFile,
    error::{Error, Result},
    filesystem::{CheckResult, FilesystemType},
    host::{HeldDisk, Host},
    linux::command::{CHECK_LIMIT, GROW_LIMIT},
    mount_table::MountTable,
    path_state::PathState,
    probe::Evidence,
    settings::HostPaths,
    step::{MkfsRecord, Step},
    usage::{Amount, Capacity, Usage},
};

/// Below procfs (Documentation/admin-guide/sysctl/kernel.rst, `random`).
const BOOT_ID: &str = "sys/kernel/random/boot_id";

/// This machine, through the kernel trees at the given roots.
#[derive(Debug, Clone)]
pub struct Linux {
    paths: HostPaths,
}

impl Linux {
    /// With its trees at these places.
    pub fn new(paths: HostPaths) -> Self {
        Self { paths }
    }

    fn check(&self, disk: &Disk, filesystem: FilesystemType) -> Result<()> {
        let Some(tool) = filesystem.check(&self.node_path(disk)) else { return Ok(()) };
        // "Again" once: a second run must find it sound.
        for last in [false, true] {
            let ended = command::run(&tool, &disk.name, CHECK_LIMIT)?;
            let spoken = ended.spoken();
            let (name, tool, detail) =
                (disk.name.clone(), tool.program, format!("{}: {spoken}", ended.status));
            match FilesystemType::check_result(ended.code, &spoken) {
                CheckResult::Sound => return Ok(()),
                CheckResult::Again if !last => {}
                // The kernel mounts what has errors on record, and only a check could tell what they have done.
                CheckResult::TooNew if self.has_errors(disk, filesystem)? => {
                    return Err(Error::CheckTooOld { name, tool, detail });
                }
                // The kernel knows its own features: it mounts the filesystem, or refuses to with its own words.
                CheckResult::TooNew => {
                    tracing::warn!(
                        disk = name,
                        detail,
                        "{tool} is older than the filesystem, which is mounted unchecked; use an image with a newer {tool}"
                    );
                    return Ok(());
                }
                CheckResult::Damaged => return Err(Error::FilesystemDamaged { name, tool, detail }),
                CheckResult::Again | CheckResult::NotChecked => {
                    return Err(Error::NotChecked { name, tool, detail });
                }
            }
        }
        Ok(())
    }

    fn unmount(&self, target: &Path) -> Result<()> {
        if mounts::unmount(target)? {
            return Ok(());
        }
        let holders = holders::of_path(&self.paths, target, &self.mounts()?);
        Err(Error::MountBusy { path: target.to_owned(), holders })
    }
}

impl Host for Linux {
    fn disks(&self) -> Result<Vec<Disk>> {
        sysfs::disks(&self.paths.sys)
    }

    fn disk(&self, number: DeviceNumber) -> Result<Option<Disk>> {
        sysfs::disk(&self.paths.sys, number)
    }

    fn rescan(&self) -> Result<()> {
        sysfs::rescan(&self.paths.sys)
    }

    fn rescan_disk(&self, disk: &Disk) -> Result<()> {
        sysfs::rescan_disk(&self.paths.sys, &disk.name)
    }

    fn node_path(&self, disk: &Disk) -> PathBuf {
        disk::node_path(&self.paths, disk)
    }

    fn hold(&self, disk: &Disk) -> Result<HeldDisk> {
        disk::hold(&self.paths, disk)
    }

    fn open(&self, disk: &Disk) -> Result<HeldDisk> {
        disk::open_found(&self.paths, disk).map(|file| HeldDisk::open(disk.clone(), file))
    }

    fn examine(&self, disk: &HeldDisk) -> Result<Evidence> {
        disk::examine(&self.paths, disk)
    }

    fn in_use(&self, disk: &Disk) -> Result<Option<String>> {
        disk::in_use(&self.paths, disk)
    }

    fn write_refusal(&self, mount_point: &Path) -> Result<Option<String>> {
        Ok(mounts::write_refusal(mount_point))
    }

    fn mounts(&self) -> Result<MountTable> {
        let file = self.paths.proc.join("self/mountinfo");
        let observe = || Error::observe(format!("read {}", file.display()));
        MountTable::parse(&fs::read(&file).map_err(observe())?).map_err(observe())
    }

    fn canonical(&self, path: &Path) -> Result<PathBuf> {
        mounts::canonical(path)
    }

    fn path(&self, path: &Path) -> Result<PathState> {
        mounts::state(path)
    }

    fn mkfs_record(&self, staging: &Path) -> Result<Option<MkfsRecord>> {
        mkfs_record::read(staging)
    }

    fn disk_record(&self, volume: &str) -> Result<DiskRecordFile> {
        disk_record::read(&self.paths.disk_records, volume)
    }

    fn boot_id(&self) -> Result<String> {
        let file = self.paths.proc.join(BOOT_ID);
        let text = fs::read_to_string(&file).map_err(Error::observe(format!("read {}", file.display())))?;
        Ok(text.trim().to_owned())
    }

    fn mounted_elsewhere(&self, staging: &Path) -> Result<Vec<DeviceNumber>> {
        holders::mounted_elsewhere(&self.paths.proc, staging)
    }

    fn filesystem_bytes(
        &self,
        disk: &Disk,
        filesystem: FilesystemType,
        mount_point: &Path,
    ) -> Result<Option<u64>> {
        let Some(superblock) = filesystem.superblock(&disk::head(&self.paths, disk)?) else {
            return Ok(None);
        };
        if filesystem != FilesystemType::Xfs {
            return Ok(Some(superblock.bytes));
        }
        // xfs writes its superblock late, but statfs is current; it leaves out the internal log.
        let usage = self.usage(mount_point)?;
        Ok(Some(usage.bytes.total.saturating_add(superblock.log_bytes)))
    }

    fn has_errors(&self, disk: &Disk, filesystem: FilesystemType) -> Result<bool> {
        let superblock = filesystem.superblock(&disk::head(&self.paths, disk)?);
        Ok(superblock.is_some_and(|superblock| superblock.has_errors))
    }

    fn usage(&self, mount_point: &Path) -> Result<Usage> {
        let stat = statvfs(mount_point)
            .map_err(|errno| Error::observe(format!("measure {}", mount_point.display()))(errno.into()))?;
        let inodes = Amount::new(stat.files(), stat.files_free(), stat.files_available(), 1);
        Ok(Usage {
            bytes: Amount::new(
                stat.blocks(),
                stat.blocks_free(),
                stat.blocks_available(),
                stat.fragment_size(),
            ),
            inodes: (inodes.total > 0).then_some(inodes),
        })
    }

    fn capacity(&self, number: DeviceNumber) -> Result<Option<Capacity>> {
        Ok(sysfs::bytes(&self.paths.sys, number)?.map(Capacity))
    }

    fn apply(&self, step: &Step) -> Result<()> {
        tracing::info!(%step, "changing the node");
        match step {
            Step::CreateDirectory(path) => mounts::create_directory(path),
            Step::CreateFile(path) => mounts::create_file(path),
            Step::WriteDiskRecord(record) => disk_record::write(&self.paths.disk_records, record),
            Step::RemoveDiskRecord { volume } => disk_record::remove(&self.paths.disk_records, volume),
            Step::WriteMkfsRecord { staging, record } => mkfs_record::write(staging, record),
            Step::RemoveMkfsRecord { staging } => mkfs_record::remove(staging),
            Step::ClearUnfinished { disk, fingerprint } => disk::clear(&self.paths, disk, *fingerprint),
            Step::Format { disk, filesystem, fingerprint, uuid } => {
                disk::format(&self.paths, disk, *filesystem, *fingerprint, *uuid)
            }
            Step::Check { disk, filesystem } => self.check(disk, *filesystem),
            Step::Mount { disk, filesystem, options, target } => {
                mounts::mount_disk(&self.node_path(disk), target, *filesystem, options)
            }
            Step::Grow { disk, filesystem, mount_point } => {
                let tool = filesystem.grow(&self.node_path(disk), mount_point);
                command::run_successfully(&tool, &disk.name, GROW_LIMIT).map_err(|error| Error::GrowFailed {
                    advice: FilesystemType::growth_advice(&error.to_string()),
                    source: Box::new(error),
                })
            }
            Step::Bind { source, target } => mounts::bind(source, target),
            Step::RemountReadOnly { target, keep } => mounts::remount_read_only(target, keep),
            Step::Unmount { target } => self.unmount(target),
            Step::RemoveTarget(path) => mounts::remove_target(path, &self.mounts()?),
        }
    }
}
