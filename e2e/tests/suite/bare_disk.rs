//! A disk of a test's own: an image file and a serial, plugged into a worker without any object in the infra cluster.
//! The node plugin finds a volume by its serial, so it treats this disk as any other volume.

use std::{
    fs::File,
    io::ErrorKind,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use bench::{
    control::Request as Ask,
    vm::{Bus, Disk, DiskFaults},
};
use csi_proto::v1::Volume;
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use sha2::{Digest, Sha256};

use crate::fixture::Fixture;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// Of most disks: more than the 300 MiB that mkfs.xfs requires; an emulated processor reads 100 MiB in a second.
pub const DISK_BYTES: u64 = 320 * MIB;

/// How much of an image is read at once.
const BLOCK: usize = 4096;

/// A disk; its image goes with it.
pub struct BareDisk<'a> {
    fixture: &'a Fixture,
    worker: &'a str,
    disk: Disk,
    bytes: u64,
    /// The volume as the node plugin gets it.
    pub volume: Volume,
}

impl Drop for BareDisk<'_> {
    fn drop(&mut self) {
        // The run folder goes with the bench; this only keeps it small.
        std::fs::remove_file(&self.disk.image).ok();
    }
}

impl<'a> BareDisk<'a> {
    /// A blank one, not yet plugged.
    pub fn blank(fixture: &'a Fixture, worker: &'a str, name: &str, bytes: u64) -> Result<Self> {
        let name = format!("{}-{name}", fixture.word);
        let digest = Sha256::digest(name.as_bytes());
        let serial = digest[..16].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        let folder = fixture.run.join("disks");
        std::fs::create_dir_all(&folder)?;
        let image = folder.join(format!("{name}.img"));
        File::create(&image).and_then(|file| file.set_len(bytes)).context("create an image")?;
        let volume = Volume {
            volume_id: name.clone(),
            volume_context: [("serial".to_owned(), serial.clone())].into(),
            ..Volume::default()
        };
        let (bus, faults) = (Bus::Scsi, DiskFaults::default());
        let disk = Disk { name, image, bus, serial, faults, by_test: true };
        Ok(Self { fixture, worker, disk, bytes, volume })
    }

    /// With a serial and on a bus of the test's choice.
    pub fn named(mut self, bus: Bus, serial: &str) -> Self {
        self.volume.volume_context.insert("serial".to_owned(), serial.to_owned());
        serial.clone_into(&mut self.disk.serial);
        self.disk.bus = bus;
        self
    }

    /// With faults from the moment when it is plugged.
    pub fn faulty(mut self, faults: DiskFaults) -> Self {
        self.disk.faults = faults;
        self
    }

    /// Without faults from the next time that it is plugged.
    pub fn set_whole(&mut self) {
        self.disk.faults = DiskFaults::default();
    }

    /// Its image.
    pub fn image(&self) -> &Path {
        &self.disk.image
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its serial.
    pub fn serial(&self) -> &str {
        &self.disk.serial
    }

    /// Plugs it. The guest sees it some time later.
    pub async fn plug(&self) -> Result<()> {
        let (machine, disk) = (self.worker.to_owned(), self.disk.clone());
        self.fixture.control.ask(&Ask::PlugDisk { machine, disk }).await.map(drop)
    }

    /// Takes it out without asking the guest.
    pub async fn unplug(&self) -> Result<()> {
        let (machine, name) = (self.worker.to_owned(), self.disk.name.clone());
        self.fixture.control.ask(&Ask::UnplugDisk { machine, name }).await.map(drop)
    }

    /// Removes the faults of a plugged disk: what waits goes on.
    pub async fn heal(&mut self) -> Result<()> {
        self.disk.faults = DiskFaults::default();
        let (machine, name, faults) = (self.worker.to_owned(), self.disk.name.clone(), DiskFaults::default());
        self.fixture.control.ask(&Ask::SetDiskFaults { machine, name, faults }).await.map(drop)
    }

    /// SHA-256 of all bytes that are not zero, and of where they are.
    pub fn checksum(&self) -> Result<Vec<u8>> {
        content_digest(&self.disk.image)
    }

    /// Writes into the image of a disk that is not plugged.
    pub fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        File::options().write(true).open(self.image())?.write_all_at(bytes, at).context("write into an image")
    }
}

/// SHA-256 of the blocks of an image that are not all zero, each with its place; what the file leaves out is zero.
fn content_digest(image: &PathBuf) -> Result<Vec<u8>> {
    let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let mut digest = Sha256::new();
    let mut block = [0_u8; BLOCK];
    let mut at = 0;
    loop {
        match lseek(&file, at, Whence::SeekData) {
            Ok(data) => at = data - data % i64::try_from(BLOCK)?,
            Err(Errno::ENXIO) => return Ok(digest.finalize().to_vec()),
            Err(errno) => return Err(errno).context("seek to data in an image"),
        }
        let place = u64::try_from(at)?;
        let read = match file.read_at(&mut block, place) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        if block[..read] != [0; BLOCK][..read] {
            digest.update(place.to_le_bytes());
            digest.update(&block[..read]);
        }
        at += i64::try_from(BLOCK)?;
    }
}
