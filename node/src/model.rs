//! A machine in memory, for the tests: the same trait, the same rules as the kernel's where the planners rely on them,
//! and faults at any step.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use crate::{
    device::{Disk, DiskIdentity, Serial},
    device_number::DeviceNumber,
    disk_record::DiskRecordFile,
    error::{Error, Result},
    filesystem::{FilesystemType, SUPERBLOCK_BYTES},
    host::{HeldDisk, Host},
    mount_options::Flag,
    mount_table::{DEVTMPFS, Mount, MountTable},
    path_state::PathState,
    probe::{Answer, Evidence, Samples},
    step::{MkfsRecord, Step},
    usage::{Amount, Capacity, Usage},
};

/// What a disk of the model holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    Blank,
    Filesystem {
        kind: String,
        bytes: u64,
    },
    /// The superblock of an xfs whose mkfs did not end.
    UnfinishedXfs,
    /// An ext4 that was never mounted.
    FreshExt4,
    /// Its superblock, but not its tables: the disk went away while the kernel was writing out what mkfs wrote.
    TornExt4,
    /// Bytes without a signature: somebody's, or those of a mkfs that was cut short.
    Bytes,
    Partitions,
    Luks,
    Unreadable,
}

/// Where an apply fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing has happened.
    Before,
    /// In the midst: a format leaves bytes behind; other steps have happened.
    Within,
    /// All has happened, and the caller does not learn it.
    After,
}

#[derive(Debug, Default)]
pub struct State {
    pub disks: Vec<(Disk, Held)>,
    pub mounts: Vec<Mount>,
    /// Directories (`None`) and files (their size).
    pub paths: BTreeMap<PathBuf, Option<u64>>,
    pub corrupted: BTreeSet<PathBuf>,
    pub records: BTreeMap<PathBuf, MkfsRecord>,
    pub disk_records: BTreeMap<String, DiskRecordFile>,
    pub boot_id: String,
    pub mounted_elsewhere: Vec<DeviceNumber>,
    pub applied: Vec<Step>,
    pub faults: Vec<(usize, Fault)>,
    pub busy: BTreeSet<PathBuf>,
    pub used_elsewhere: bool,
    /// The kernel refuses all writes to the volume's filesystem.
    pub write_refusal: Option<String>,
    /// The volume's filesystem has errors on record.
    pub has_errors: bool,
    pub rescans: usize,
    pub disk_rescans: usize,
    /// What a disk has once the kernel has asked it for its size.
    pub bytes_after_rescan: Option<u64>,
    /// How long the SCSI hosts take to scan for new disks.
    pub rescan_takes: Duration,
    /// How long each scan for disks takes after the first, as on a node whose processors are busy.
    pub later_scans_take: Duration,
    pub scans: usize,
    /// Disks that show only after a rescan.
    pub after_rescan: Vec<(Disk, Held)>,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Model(Mutex<State>);

pub const SERIAL: &str = "298d9cd3-9791-4830-8f00-0123456789ab";
pub const DISK_BYTES: u64 = 1 << 30;

pub fn serial() -> Serial {
    Serial::new(SERIAL).expect("a serial")
}

/// The volume's disk, as number `8:<minor>`.
pub fn disk(minor: u64) -> Disk {
    Disk {
        name: format!("sd{}", char::from(b'a' + u8::try_from(minor / 16).expect("a small minor"))),
        number: DeviceNumber::new(8, minor),
        bytes: DISK_BYTES,
        read_only: false,
        identity: DiskIdentity::Scsi { unit_serial: Some(serial()), designators: Vec::new() },
        partitions: Vec::new(),
        holders: Vec::new(),
    }
}

pub fn mount(number: DeviceNumber, root: &str, point: &Path, fs_type: &str, read_only: bool) -> Mount {
    let word = if read_only { "ro" } else { "rw" };
    Mount {
        number,
        root: root.into(),
        point: point.to_owned(),
        fs_type: fs_type.to_owned(),
        options: [word.to_owned()].into(),
        super_options: ["rw".to_owned()].into(),
    }
}

impl Model {
    pub fn with_disk(held: Held) -> Self {
        let model = Self::default();
        model.state().disks.push((disk(16), held));
        model
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds this")
    }

    /// Applied steps since the last call.
    pub fn take_applied(&self) -> Vec<Step> {
        std::mem::take(&mut self.state().applied)
    }
}

impl State {
    fn held(&mut self, disk: &Disk) -> &mut Held {
        let found = self.disks.iter_mut().find(|(known, _)| known.number == disk.number);
        &mut found.expect("a step on a disk of the model").1
    }

    fn happen(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::CreateDirectory(path) => drop(self.paths.insert(path.clone(), None)),
            Step::CreateFile(path) => drop(self.paths.insert(path.clone(), Some(0))),
            Step::WriteMkfsRecord { staging, record } => {
                assert!(
                    !self.mounts.iter().any(|m| m.point == *staging),
                    "the record goes into the filesystem"
                );
                assert!(self.paths.contains_key(staging), "no directory for the record");
                self.records.insert(staging.clone(), record.clone());
            }
            Step::WriteDiskRecord(record) => {
                drop(self.disk_records.insert(record.volume.clone(), DiskRecordFile::Read(record.clone())));
            }
            Step::RemoveDiskRecord { volume } => {
                assert!(
                    !self.used_elsewhere || self.disks.is_empty(),
                    "the record of a disk in use was removed"
                );
                drop(self.disk_records.remove(volume));
            }
            Step::RemoveMkfsRecord { staging } => drop(self.records.remove(staging)),
            Step::ClearUnfinished { disk, .. } => *self.held(disk) = Held::Bytes,
            Step::Format { disk, filesystem, .. } => {
                let kind = filesystem.name().to_owned();
                *self.held(disk) = match filesystem {
                    FilesystemType::Ext4 => Held::FreshExt4,
                    _ => Held::Filesystem { kind, bytes: disk.bytes },
                };
            }
            Step::Check { disk, .. } => {
                assert!(!self.mounts.iter().any(|m| m.number == disk.number), "fsck of a mounted filesystem");
                if *self.held(disk) == Held::TornExt4 {
                    let (name, detail) = (disk.name.clone(), "no tables".to_owned());
                    return Err(Error::FilesystemDamaged { name, tool: "e2fsck", detail });
                }
            }
            Step::Mount { disk, filesystem, options, target } => {
                assert!(self.paths.get(target).is_some_and(Option::is_none), "no directory to mount on");
                assert!(!self.records.contains_key(target), "mounted over the record");
                match self.held(disk) {
                    Held::Filesystem { kind, .. } if kind == filesystem.name() => {}
                    fresh @ Held::FreshExt4 if *filesystem == FilesystemType::Ext4 => {
                        *fresh = Held::Filesystem { kind: "ext4".to_owned(), bytes: disk.bytes };
                    }
                    Held::TornExt4 if options.read_only() => {
                        let source = io::Error::other("structure needs cleaning");
                        return Err(Error::Act { action: "mount".into(), source });
                    }
                    other => panic!("mounting {other:?} as {filesystem}"),
                }
                let mut new = mount(disk.number, "/", target, filesystem.name(), options.read_only());
                new.options.extend(options.flags.iter().map(|flag| flag.word().to_owned()));
                self.mounts.push(new);
            }
            Step::Grow { disk, mount_point, .. } => {
                assert!(!self.has_errors, "the kernel does not grow it");
                let top =
                    self.mounts.iter().rev().find(|m| m.point == *mount_point).expect("a mount to grow");
                assert!(!top.read_only() && top.number == disk.number, "{top:?}");
                let size = disk.bytes;
                if let Held::Filesystem { bytes, .. } = self.held(disk) {
                    *bytes = size;
                }
            }
            Step::Bind { source, target } => {
                assert!(self.paths.contains_key(target), "nothing to bind on");
                let staged = self.mounts.iter().rev().find(|m| m.point == *source).cloned();
                let bound = staged.map_or_else(
                    || {
                        let root = Path::new("/").join(source.file_name().expect("a node has a name"));
                        mount(DeviceNumber::new(0, 5), &root.to_string_lossy(), target, DEVTMPFS, false)
                    },
                    |staged| Mount { point: target.clone(), ..staged },
                );
                self.mounts.push(bound);
            }
            Step::RemountReadOnly { target, keep } => {
                let top =
                    self.mounts.iter_mut().rev().find(|m| m.point == *target).expect("a mount to remount");
                top.options = keep.iter().map(|flag| flag.word().to_owned()).collect();
                top.options.remove("rw");
                top.options.insert(Flag::ReadOnly.word().to_owned());
            }
            Step::Unmount { target } => {
                if self.busy.contains(target) {
                    return Err(Error::MountBusy { path: target.clone(), holders: "a test".into() });
                }
                if let Some(index) = self.mounts.iter().rposition(|m| m.point == *target) {
                    self.mounts.remove(index);
                    self.corrupted.remove(target);
                }
            }
            Step::RemoveTarget(path) => {
                assert!(!self.mounts.iter().any(|m| m.point == *path), "removing a mount point");
                assert_ne!(self.paths.remove(path), Some(Some(1)), "removing a file with content");
            }
        }
        Ok(())
    }
}

fn superblock(content: &Held) -> Vec<u8> {
    let mut head = vec![0_u8; SUPERBLOCK_BYTES];
    match content {
        Held::UnfinishedXfs => {
            head[..4].copy_from_slice(b"XFSB");
            head[4..8].copy_from_slice(&4096_u32.to_be_bytes());
            head[126] = 1;
        }
        Held::FreshExt4 | Held::TornExt4 => head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]),
        _ => {}
    }
    head
}

impl Host for Model {
    fn disks(&self) -> Result<Vec<Disk>> {
        let pause = {
            let mut state = self.state();
            state.scans += 1;
            if state.scans > 1 { state.later_scans_take } else { Duration::ZERO }
        };
        std::thread::sleep(pause);
        Ok(self.state().disks.iter().map(|(disk, _)| disk.clone()).collect())
    }

    fn disk(&self, number: DeviceNumber) -> Result<Option<Disk>> {
        Ok(self.disks()?.into_iter().find(|disk| disk.number == number))
    }

    fn rescan(&self) -> Result<()> {
        let takes = {
            let mut state = self.state();
            state.rescans += 1;
            state.rescan_takes
        };
        std::thread::sleep(takes);
        let mut state = self.state();
        let shown = std::mem::take(&mut state.after_rescan);
        state.disks.extend(shown);
        Ok(())
    }

    fn rescan_disk(&self, disk: &Disk) -> Result<()> {
        let mut state = self.state();
        state.disk_rescans += 1;
        if let Some(bytes) = state.bytes_after_rescan {
            let found = state.disks.iter_mut().find(|(known, _)| known.number == disk.number);
            found.expect("a disk of the model").0.bytes = bytes;
        }
        Ok(())
    }

    fn node_path(&self, disk: &Disk) -> PathBuf {
        Path::new("/dev").join(&disk.name)
    }

    fn hold(&self, disk: &Disk) -> Result<HeldDisk> {
        Ok(HeldDisk::without_descriptor(disk.clone()))
    }

    fn open(&self, disk: &Disk) -> Result<HeldDisk> {
        self.hold(disk)
    }

    fn examine(&self, held: &HeldDisk) -> Result<Evidence> {
        let mut state = self.state();
        let name = held.disk().name.clone();
        if state.mounts.iter().any(|m| m.number == held.disk().number) {
            return Err(Error::DiskBusy { name, by: "a mount".into() });
        }
        let content = state.held(held.disk()).clone();
        let (code, output) = match &content {
            Held::Blank | Held::Bytes | Held::Unreadable => (2, String::new()),
            Held::Filesystem { kind, .. } => (0, format!("TYPE={kind}\nUSAGE=filesystem\n")),
            Held::FreshExt4 | Held::TornExt4 => (0, "TYPE=ext4\nUSAGE=filesystem\n".to_owned()),
            Held::UnfinishedXfs => (0, "TYPE=xfs\nUSAGE=filesystem\n".to_owned()),
            Held::Partitions => (0, "PTTYPE=gpt\n".to_owned()),
            Held::Luks => (0, "TYPE=crypto_LUKS\nUSAGE=crypto\n".to_owned()),
        };
        let samples = if content == Held::Unreadable {
            Err("Input/output error (os error 5)".to_owned())
        } else {
            Ok(Samples {
                first_data: (content != Held::Blank).then_some(0),
                fingerprint: 1,
                head: superblock(&content),
                root_inode: Vec::new(),
            })
        };
        let blkid = Answer { code: Some(code), output, errors: String::new() };
        Ok(Evidence { blkid, without_own: None, samples })
    }

    fn in_use(&self, _: &Disk) -> Result<Option<String>> {
        Ok(self.state().used_elsewhere.then(|| "process 7 (leak)".to_owned()))
    }

    fn write_refusal(&self, mount_point: &Path) -> Result<Option<String>> {
        let state = self.state();
        assert!(state.mounts.iter().any(|m| m.point == mount_point), "nothing is mounted there");
        Ok(state.write_refusal.clone())
    }

    fn mounts(&self) -> Result<MountTable> {
        Ok(MountTable(self.state().mounts.clone()))
    }

    fn canonical(&self, path: &Path) -> Result<PathBuf> {
        Ok(path.to_owned())
    }

    fn path(&self, path: &Path) -> Result<PathState> {
        let state = self.state();
        if state.corrupted.contains(path) {
            return Ok(PathState::Corrupted("Input/output error (os error 5)".into()));
        }
        if let Some(top) = state.mounts.iter().rev().find(|m| m.point == path) {
            if top.fs_type != DEVTMPFS {
                return Ok(PathState::Directory);
            }
            let node = state.disks.iter().find(|(disk, _)| Path::new("/").join(&disk.name) == top.root);
            return Ok(node.map_or(PathState::Missing, |(disk, _)| PathState::Node(disk.number)));
        }
        Ok(match state.paths.get(path) {
            None => PathState::Missing,
            Some(None) => PathState::Directory,
            Some(Some(bytes)) => PathState::File { bytes: *bytes },
        })
    }

    fn mkfs_record(&self, staging: &Path) -> Result<Option<MkfsRecord>> {
        Ok(self.state().records.get(staging).cloned())
    }

    fn disk_record(&self, volume: &str) -> Result<DiskRecordFile> {
        Ok(self.state().disk_records.get(volume).cloned().unwrap_or(DiskRecordFile::Missing))
    }

    fn boot_id(&self) -> Result<String> {
        Ok(self.state().boot_id.clone())
    }

    fn mounted_elsewhere(&self, _: &Path) -> Result<Vec<DeviceNumber>> {
        Ok(self.state().mounted_elsewhere.clone())
    }

    fn filesystem_bytes(&self, disk: &Disk, _: FilesystemType, _: &Path) -> Result<Option<u64>> {
        match self.state().held(disk) {
            Held::Filesystem { bytes, .. } => Ok(Some(*bytes)),
            _ => Ok(None),
        }
    }

    fn has_errors(&self, _: &Disk, _: FilesystemType) -> Result<bool> {
        Ok(self.state().has_errors)
    }

    fn usage(&self, _: &Path) -> Result<Usage> {
        Ok(Usage { bytes: Amount::new(DISK_BYTES, 1, 1, 1), inodes: None })
    }

    fn capacity(&self, number: DeviceNumber) -> Result<Option<Capacity>> {
        Ok(self.disk(number)?.map(|disk| Capacity(disk.bytes)))
    }

    fn apply(&self, step: &Step) -> Result<()> {
        let mut state = self.state();
        let index = state.applied.len();
        state.applied.push(step.clone());
        let fault = state.faults.iter().find(|(at, _)| *at == index).map(|(_, fault)| *fault);
        let killed =
            || Err(Error::Act { action: "go on: killed".into(), source: io::Error::other("SIGKILL") });
        match (fault, step) {
            (None, _) => state.happen(step),
            (Some(Fault::Before), _) => killed(),
            (Some(Fault::Within), Step::Format { disk, filesystem, .. }) => {
                *state.held(disk) = match filesystem {
                    FilesystemType::Xfs => Held::UnfinishedXfs,
                    FilesystemType::Ext4 => Held::TornExt4,
                    _ => Held::Bytes,
                };
                killed()
            }
            (Some(Fault::Within | Fault::After), _) => {
                state.happen(step)?;
                killed()
            }
        }
    }
}
