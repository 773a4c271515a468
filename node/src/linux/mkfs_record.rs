//! The record of a started mkfs, in the unmounted staging directory; durable before the call returns.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::step::MkfsRecord;

/// Name of the record. Removed before the filesystem is mounted over its directory.
const FILE: &str = ".kubevirt-csi-mkfs.json";
/// Name while it is written.
const UNFINISHED: &str = ".kubevirt-csi-mkfs.json.new";
/// A record is some hundred bytes; anything larger is not ours.
const MAX_BYTES: u64 = 4096;

/// Reads it. What can not be read as a record is no record: it permits nothing.
pub fn read(staging: &Path) -> Result<Option<MkfsRecord>> {
    let path = staging.join(FILE);
    let observe = || Error::observe(format!("read {}", path.display()));
    match fs::symlink_metadata(&path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(observe()(error)),
        Ok(metadata) if !metadata.is_file() || metadata.len() > MAX_BYTES => return Ok(None),
        Ok(_) => {}
    }
    let bytes = fs::read(&path).map_err(observe())?;
    Ok(serde_json::from_slice(&bytes)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "ignoring a record that is not readable"),
        )
        .ok())
}

/// Writes it: new file, fsync, rename, fsync of the directory.
pub fn write(staging: &Path, record: &MkfsRecord) -> Result<()> {
    let write = || -> io::Result<()> {
        let unfinished = staging.join(UNFINISHED);
        let mut file = File::create(&unfinished)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, staging.join(FILE))?;
        File::open(staging)?.sync_all()
    };
    write().map_err(Error::act(format!("record in {} that mkfs starts", staging.display())))
}

/// Removes it, and what an interrupted write left.
pub fn remove(staging: &Path) -> Result<()> {
    let remove = || -> io::Result<()> {
        for name in [FILE, UNFINISHED] {
            match fs::remove_file(staging.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::open(staging)?.sync_all()
    };
    remove().map_err(Error::act(format!("remove the record of mkfs in {}", staging.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::FilesystemType;

    #[test]
    fn a_record_comes_back_until_it_is_removed() {
        let staging = tempfile::tempdir().unwrap();
        assert_eq!(read(staging.path()).unwrap(), None);
        let record = MkfsRecord { serial: "abc".into(), filesystem: FilesystemType::Xfs };
        write(staging.path(), &record).unwrap();
        assert_eq!(read(staging.path()).unwrap(), Some(record));
        remove(staging.path()).unwrap();
        remove(staging.path()).unwrap();
        assert_eq!(read(staging.path()).unwrap(), None);
        assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_a_record_permits_nothing() {
        let staging = tempfile::tempdir().unwrap();
        for text in
            ["", "{}", r#"{"serial":"a","filesystem":"ntfs"}"#, r#"{"serial":"a","filesystem":"xfs","x":1}"#]
        {
            fs::write(staging.path().join(FILE), text).unwrap();
            assert_eq!(read(staging.path()).unwrap(), None, "{text}");
        }
        assert_eq!(read(&staging.path().join("missing")).unwrap(), None);
    }
}
