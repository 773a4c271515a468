//! Which disk is the volume's: a listing of sysfs and a serial → one disk, or the reason why no disk is used.
//!
//! Decides only. Reading sysfs and opening device nodes is [`crate::host`]'s. The links under `/dev/disk` are never
//! used: they lag behind hotplug, need udev, and cut serials (kubevirt/csi-driver#363, hetznercloud/csi-driver#1455).

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    device_number::DeviceNumber,
    error::{Error, Result},
    mount_table::{Mount, MountTable},
};

/// How much of a serial virtio-blk keeps, in bytes (`VIRTIO_BLK_ID_BYTES`); QEMU cuts the rest off silently.
pub const VIRTIO_SERIAL_BYTES: usize = 20;

/// Longest serial that KubeVirt's webhook accepts.
const MAX_SERIAL_BYTES: usize = 256;

/// Kernel name of SCSI disks.
const SCSI_PREFIX: &str = "sd";

/// Length of the header of a SCSI vital product data page: peripheral, page code, length (SPC-4 §7.8).
const VPD_HEADER_BYTES: usize = 4;
/// Page "Unit Serial Number".
const VPD_UNIT_SERIAL: u8 = 0x80;
/// Page "Device Identification".
const VPD_DEVICE_ID: u8 = 0x83;
/// Code set of a designator: printable ASCII.
const CODE_SET_ASCII: u8 = 2;

/// A disk's serial as the controller gave it to the VM: the UID of its `DataVolume`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(String);

impl Serial {
    /// Takes what can be a serial: not empty, printable, without spaces.
    ///
    /// An empty serial is refused because it would fit each disk that has none.
    pub fn new(text: &str) -> Option<Self> {
        let fits =
            !text.is_empty() && text.len() <= MAX_SERIAL_BYTES && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Serial {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text).ok_or("not a serial")
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a disk identifies itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DiskIdentity {
    /// A SCSI disk: unit serial (page 0x80), and the vendor's designators (page 0x83) for disks without one.
    Scsi {
        /// Page 0x80.
        unit_serial: Option<Serial>,
        /// ASCII designators of page 0x83.
        designators: Vec<Serial>,
    },
    /// A virtio disk: at most 20 bytes.
    Virtio(Serial),
    /// No identity could be read.
    None,
}

impl DiskIdentity {
    /// The disk with this identity is the one with this serial.
    ///
    /// Only virtio may match by prefix, and only with all of its 20 bytes. Page 0x83 counts where page 0x80 is missing.
    pub fn is(&self, wanted: &Serial) -> bool {
        match self {
            Self::Scsi { unit_serial: Some(serial), .. } => serial == wanted,
            Self::Scsi { unit_serial: None, designators } => designators.contains(wanted),
            Self::Virtio(serial) => {
                serial == wanted || (serial.0.len() == VIRTIO_SERIAL_BYTES && wanted.0.starts_with(&serial.0))
            }
            Self::None => false,
        }
    }

    /// Whether there is anything by which a serial could fit.
    fn is_readable(&self) -> bool {
        match self {
            Self::Scsi { unit_serial, designators } => unit_serial.is_some() || !designators.is_empty(),
            Self::Virtio(_) => true,
            Self::None => false,
        }
    }

    /// Whether both are the same disk; `None` when too little of them could be read.
    pub fn same_as(&self, other: &Self) -> Option<bool> {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => None,
            (Self::Virtio(one), Self::Virtio(two)) => Some(one == two),
            (Self::Virtio(_), Self::Scsi { .. }) | (Self::Scsi { .. }, Self::Virtio(_)) => Some(false),
            (
                Self::Scsi { unit_serial: one, designators: ones },
                Self::Scsi { unit_serial: two, designators: twos },
            ) => match (one, two) {
                (Some(one), Some(two)) => Some(one == two),
                _ if ones.is_empty() || twos.is_empty() => None,
                _ => Some(ones.iter().any(|one| twos.contains(one))),
            },
        }
    }
}

impl fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scsi { unit_serial: Some(serial), .. } | Self::Virtio(serial) => serial.fmt(f),
            Self::Scsi { unit_serial: None, designators } if !designators.is_empty() => {
                f.write_str(&designators.iter().map(Serial::as_str).collect::<Vec<_>>().join("/"))
            }
            Self::Scsi { .. } | Self::None => f.write_str("none"),
        }
    }
}

/// A partition that the kernel sees on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Kernel name.
    pub name: String,
    /// Device number.
    pub number: DeviceNumber,
}

/// A whole disk, as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Kernel name (`sda`).
    pub name: String,
    /// Device number.
    pub number: DeviceNumber,
    /// Size in bytes.
    pub bytes: u64,
    /// The kernel refuses writes.
    pub read_only: bool,
    /// Its identity.
    pub identity: DiskIdentity,
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// Devices stacked on it or on its partitions (device mapper, md).
    pub holders: Vec<String>,
}

/// What a listing of disks shows for a serial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Exactly one disk.
    One(Box<Disk>),
    /// No disk yet; what was found instead, for the error text.
    NotYet(String),
    /// More than one disk: none may be used.
    Ambiguous(Vec<String>),
}

/// Finds the disk with this serial.
///
/// A disk of size 0 is still being set up by the kernel and counts as not yet there.
pub fn find(disks: &[Disk], wanted: &Serial) -> Found {
    let fitting: Vec<&Disk> = disks.iter().filter(|disk| disk.identity.is(wanted)).collect();
    match fitting.as_slice() {
        [disk] if disk.bytes > 0 => Found::One(Box::new((*disk).clone())),
        [disk] => Found::NotYet(format!("{} has it, but its size is still 0", disk.name)),
        [] => Found::NotYet(seen(disks)),
        several => Found::Ambiguous(several.iter().map(|disk| disk.name.clone()).collect()),
    }
}

/// A SCSI disk whose pages the kernel could not read when it found the disk stays without a serial: a scan of its host leaves
/// known disks alone, and since 4.6 pages that are read later do not show (commit 7e47976bcff2). Only to delete and find it
/// again helps, which takes the disk from whoever uses it: the text names it, and a person decides.
fn seen(disks: &[Disk]) -> String {
    let named: Vec<String> = disks
        .iter()
        .filter(|disk| disk.identity.is_readable())
        .map(|disk| format!("{}={}", disk.name, disk.identity))
        .collect();
    let nameless: Vec<String> = disks
        .iter()
        .filter(|disk| disk.name.starts_with(SCSI_PREFIX) && !disk.identity.is_readable())
        .map(|disk| format!("{} ({} bytes)", disk.name, disk.bytes))
        .collect();
    let mut text = if named.is_empty() {
        "no disk with a serial was seen".to_owned()
    } else {
        format!("serials seen: {}", named.join(", "))
    };
    if !nameless.is_empty() {
        text += "; SCSI disks without a readable serial: ";
        text += &nameless.join(", ");
    }
    text
}

/// The use of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskUse {
    /// To hold one filesystem over its whole length.
    Filesystem,
    /// To be given to a pod as it is. Partitions and LVM on it are the pod's.
    Block,
}

/// Refuses a disk that cannot be the volume although its serial fits.
///
/// `path` is where the volume is to be mounted: a disk that carries one of its parents is the system's disk.
pub fn check(disk: &Disk, wanted_for: DiskUse, mounts: &MountTable, path: &Path) -> Result<()> {
    let refused = |reason: String| Err(Error::DiskRefused { name: disk.name.clone(), reason });
    let numbers: Vec<DeviceNumber> =
        disk.partitions.iter().map(|partition| partition.number).chain([disk.number]).collect();
    let parent = |mount: &&Mount| mount.point != path && path.starts_with(&mount.point);
    if let Some(mount) = mounts.0.iter().filter(|m| numbers.contains(&m.number)).find(parent) {
        return refused(format!("it is the system's own disk, mounted at {}", mount.point.display()));
    }
    if wanted_for == DiskUse::Block {
        return Ok(());
    }
    if !disk.holders.is_empty() {
        return Err(Error::DiskStacked { name: disk.name.clone(), on: disk.holders.join(", ") });
    }
    if !disk.partitions.is_empty() {
        let names: Vec<&str> = disk.partitions.iter().map(|partition| partition.name.as_str()).collect();
        return refused(format!(
            "it has partitions ({}), so it is not blank and holds no filesystem",
            names.join(", ")
        ));
    }
    Ok(())
}

/// The serial in SCSI page 0x80; `None` when the page is cut, of another kind, or empty.
pub fn parse_unit_serial(page: &[u8]) -> Option<Serial> {
    text(vpd_payload(page, VPD_UNIT_SERIAL)?)
}

/// The ASCII designators of SCSI page 0x83; a cut page gives none.
pub fn parse_designators(page: &[u8]) -> Vec<Serial> {
    let Some(mut rest) = vpd_payload(page, VPD_DEVICE_ID) else { return Vec::new() };
    let mut designators = Vec::new();
    while let [code_set, _, _, length, tail @ ..] = rest {
        let Some((designator, next)) = tail.split_at_checked(usize::from(*length)) else { return Vec::new() };
        if code_set & 0x0f == CODE_SET_ASCII {
            designators.extend(text(designator));
        }
        rest = next;
    }
    designators
}

/// The serial in a virtio disk's `serial` file.
pub fn parse_virtio_serial(file: &[u8]) -> Option<Serial> {
    text(file)
}

fn vpd_payload(page: &[u8], code: u8) -> Option<&[u8]> {
    let (header, payload) = page.split_at_checked(VPD_HEADER_BYTES)?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    (header[1] == code).then(|| payload.get(..length)).flatten()
}

/// Serials are padded with spaces or NULs, on either side.
fn text(bytes: &[u8]) -> Option<Serial> {
    let plain = std::str::from_utf8(bytes).ok()?;
    Serial::new(plain.trim_matches(|c: char| c == '\0' || c.is_ascii_whitespace()))
}

#[cfg(test)]
mod tests;
