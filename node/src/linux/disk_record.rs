//! The records of volumes' disks: one file for each volume, in a folder of the driver's own that outlives its
//! container.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    disk_record::{DiskRecord, DiskRecordFile},
    error::{Error, Result},
    linux::durable_file::{self, Content},
};

/// Only the driver reads and writes its records.
const FOLDER_MODE: u32 = 0o700;

/// See [`crate::host::Host::disk_record`].
pub fn read(folder: &Path, volume: &str) -> Result<DiskRecordFile> {
    let path = path(folder, volume);
    let content = durable_file::read(&path).map_err(Error::observe(format!("read {}", path.display())))?;
    let bytes = match content {
        Content::Missing => return Ok(DiskRecordFile::Missing),
        Content::Bytes(bytes) => bytes,
        Content::Other => Vec::new(),
    };
    Ok(match serde_json::from_slice::<DiskRecord>(&bytes) {
        Ok(record) if record.volume == volume && !record.disks.is_empty() => DiskRecordFile::Read(record),
        other => {
            let error = other.err().map(|error| error.to_string());
            tracing::warn!(path = %path.display(), error, "this is not a record of the volume's disk");
            DiskRecordFile::Unreadable(path)
        }
    })
}

/// Writes the record of its volume, in place of an earlier one.
pub fn write(folder: &Path, record: &DiskRecord) -> Result<()> {
    let path = path(folder, &record.volume);
    let write = || -> io::Result<()> {
        if !folder.exists() {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
            durable_file::sync_directory(folder)?;
        }
        durable_file::write(&path, &serde_json::to_vec(record)?)
    };
    write().map_err(Error::act(format!("record in {} which disk is used", path.display())))
}

/// Removes the record of a volume.
pub fn remove(folder: &Path, volume: &str) -> Result<()> {
    let path = path(folder, volume);
    durable_file::remove(&path).map_err(Error::act(format!("remove {}", path.display())))
}

/// Bytes of a volume id that a file's name has as they are; all others are percent-encoded.
const IN_NAMES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.');

/// A file's name for any volume id. A name that begins with a dot would be hidden, or mean a folder.
fn path(folder: &Path, volume: &str) -> PathBuf {
    let name = utf8_percent_encode(volume, IN_NAMES).to_string();
    let name = name.strip_prefix('.').map_or_else(|| name.clone(), |rest| format!("%2E{rest}"));
    folder.join(name + ".json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_record::RecordedDisk;
    use crate::model::disk;
    use std::fs;

    fn record(volume: &str) -> DiskRecord {
        let disks = vec![RecordedDisk { number: disk(16).number, identity: disk(16).identity }];
        DiskRecord { volume: volume.into(), boot_id: "boot-1".into(), disks }
    }

    #[test]
    fn a_record_comes_back_until_it_is_removed_whatever_its_volume_is_called() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("records");
        for volume in ["pvc-1", "../escape", ".", "a/b", "ü"] {
            assert_eq!(read(&folder, volume).unwrap(), DiskRecordFile::Missing);
            write(&folder, &record(volume)).unwrap();
            assert_eq!(read(&folder, volume).unwrap(), DiskRecordFile::Read(record(volume)));
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 5);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        for volume in ["pvc-1", "../escape", ".", "a/b", "ü", "pvc-1"] {
            remove(&folder, volume).unwrap();
            assert_eq!(read(&folder, volume).unwrap(), DiskRecordFile::Missing);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_record_of_this_volume_is_not_taken_for_none() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        let path = folder.join("pvc-1.json");
        let whole = serde_json::to_string(&record("pvc-1")).unwrap();
        let other = serde_json::to_string(&record("pvc-2")).unwrap();
        let empty = serde_json::to_string(&DiskRecord { disks: Vec::new(), ..record("pvc-1") }).unwrap();
        let large = " ".repeat(5000) + &whole;
        for text in ["", "{}", &whole[..whole.len() / 2], &other, &empty, &large] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(folder, "pvc-1").unwrap(), DiskRecordFile::Unreadable(path.clone()), "{text}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(read(folder, "pvc-1").unwrap(), DiskRecordFile::Unreadable(path));
    }
}
