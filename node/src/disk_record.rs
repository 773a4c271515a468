//! The record of the disks from which a volume was used on this node.
//!
//! NodeUnstageVolume names a volume and a path, but no disk, and once the volume is unmounted nothing in this process's
//! mount table leads to its disk. The record does: it is written before the volume is first mounted or published, and
//! removed only when `release` has proved that nothing on this node uses the disk. So the proof does not
//! depend on the process that unmounted the volume. Decides only; the file is [`crate::linux`]'s.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    device::{Disk, DiskIdentity},
    device_number::DeviceNumber,
};

/// The disks of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// Volume id.
    pub volume: String,
    /// The boot in which the record was written. Mounts end with their boot, and the kernel assigns new device numbers
    /// in the next.
    pub boot_id: String,
    /// Never empty.
    pub disks: Vec<RecordedDisk>,
}

/// How a disk is found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedDisk {
    /// Device number in the boot of the record.
    pub number: DeviceNumber,
    /// How the disk identified itself.
    pub identity: DiskIdentity,
}

/// What was found where the record of a volume is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskRecordFile {
    /// Nothing.
    Missing,
    /// A record of this volume.
    Read(DiskRecord),
    /// A file that is no record of this volume: which disk it was written for is not known.
    Unreadable(PathBuf),
}

impl DiskRecord {
    /// This disk is, or may be, one of the record's.
    ///
    /// A disk is another one only if both identities are known and differ. A disk whose identity cannot be read is one
    /// of the record's if it has the recorded number, which the kernel gives to no other disk while a mount uses it.
    pub fn may_name(&self, disk: &Disk, boot_id: &str) -> bool {
        self.disks.iter().any(|recorded| {
            let same_number = self.boot_id == boot_id && recorded.number == disk.number;
            recorded.identity.same_as(&disk.identity).unwrap_or(same_number)
        })
    }
}

impl DiskRecordFile {
    /// The record that has to be written so that it names these disks; `None` when it does, or when there are none.
    pub fn extended(&self, volume: &str, boot_id: &str, disks: &[Disk]) -> Option<DiskRecord> {
        let kept = match self {
            Self::Read(record) if record.boot_id == boot_id => record.disks.as_slice(),
            Self::Read(_) | Self::Missing | Self::Unreadable(_) => &[],
        };
        let missing: Vec<RecordedDisk> = disks
            .iter()
            .map(|disk| RecordedDisk { number: disk.number, identity: disk.identity.clone() })
            .filter(|disk| !kept.contains(disk))
            .collect();
        (!missing.is_empty()).then(|| DiskRecord {
            volume: volume.to_owned(),
            boot_id: boot_id.to_owned(),
            disks: [kept, &missing].concat(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Serial;
    use crate::model::{disk, serial};
    use rstest::rstest;

    const BOOT: &str = "boot-1";
    const NEXT_BOOT: &str = "boot-2";

    fn record(identity: DiskIdentity) -> DiskRecord {
        let disks = vec![RecordedDisk { number: disk(16).number, identity }];
        DiskRecord { volume: "pvc-1".into(), boot_id: BOOT.into(), disks }
    }

    fn named(text: &str) -> DiskIdentity {
        DiskIdentity::Scsi { unit_serial: Serial::new(text), designators: Vec::new() }
    }

    fn unnamed() -> DiskIdentity {
        DiskIdentity::Scsi { unit_serial: None, designators: Vec::new() }
    }

    #[rstest]
    #[case(named("a"), named("a"), 16, BOOT, true)]
    #[case(named("a"), named("a"), 32, BOOT, true)] // plugged again under another number
    #[case(named("a"), named("a"), 32, NEXT_BOOT, true)]
    #[case(named("a"), named("b"), 16, BOOT, false)] // the number went to another disk
    #[case(named("a"), DiskIdentity::None, 16, BOOT, true)] // its name cannot be read now
    #[case(named("a"), unnamed(), 16, BOOT, true)]
    #[case(named("a"), unnamed(), 32, BOOT, false)]
    #[case(named("a"), unnamed(), 16, NEXT_BOOT, false)]
    #[case(unnamed(), unnamed(), 16, BOOT, true)]
    #[case(DiskIdentity::None, named("a"), 16, BOOT, true)]
    #[case(DiskIdentity::None, DiskIdentity::None, 16, NEXT_BOOT, false)]
    fn a_disk_is_another_only_by_a_known_name_or_number(
        #[case] recorded: DiskIdentity,
        #[case] now: DiskIdentity,
        #[case] minor: u64,
        #[case] boot_id: &str,
        #[case] may: bool,
    ) {
        let disk = Disk { identity: now, ..disk(minor) };
        assert_eq!(record(recorded).may_name(&disk, boot_id), may);
    }

    #[test]
    fn a_record_is_written_once_and_again_for_another_disk_or_boot() {
        let extended = |file: &DiskRecordFile, boot, minor| file.extended("pvc-1", boot, &[disk(minor)]);
        let first = extended(&DiskRecordFile::Missing, BOOT, 16).unwrap();
        assert!(first.may_name(&disk(16), BOOT));
        let file = DiskRecordFile::Read(first.clone());
        assert_eq!(extended(&file, BOOT, 16), None);
        assert_eq!(file.extended("pvc-1", BOOT, &[]), None);
        assert_eq!(extended(&file, BOOT, 32).unwrap().disks.len(), 2);
        let next = extended(&file, NEXT_BOOT, 16).unwrap();
        assert_eq!((next.boot_id.as_str(), next.disks.len()), (NEXT_BOOT, 1));
        assert_eq!(extended(&DiskRecordFile::Unreadable("/r".into()), BOOT, 16), Some(first));
    }

    #[test]
    fn a_record_survives_the_disk_and_nothing_else_is_one() {
        let virtio = DiskIdentity::Virtio(serial());
        for identity in [named("a"), unnamed(), virtio, DiskIdentity::None] {
            let record = record(identity);
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<DiskRecord>(&text).unwrap(), record, "{text}");
        }
        let text = serde_json::to_string(&record(named("a"))).unwrap();
        for broken in [text.replace("\"a\"", "\"\""), text[..text.len() - 1].to_owned()] {
            assert!(serde_json::from_str::<DiskRecord>(&broken).is_err(), "{broken}");
        }
    }
}
