//! The record of a started mkfs, in the unmounted staging directory; durable before the call returns.

use std::path::Path;

use crate::{
    error::{Error, Result},
    linux::durable_file::{self, Content},
    step::MkfsRecord,
};

/// Name of the record. Removed before the filesystem is mounted over its directory.
const FILE: &str = ".kubevirt-csi-mkfs.json";

/// Reads the record. A file that can't be read as a record counts as no record: it permits nothing.
pub fn read(staging: &Path) -> Result<Option<MkfsRecord>> {
    let path = staging.join(FILE);
    let content = durable_file::read(&path).map_err(Error::observe(format!("read {}", path.display())))?;
    let Content::Bytes(bytes) = content else { return Ok(None) };
    Ok(serde_json::from_slice(&bytes)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "ignoring a record that is not readable"),
        )
        .ok())
}

/// Writes the record.
pub fn write(staging: &Path, record: &MkfsRecord) -> Result<()> {
    let write = || durable_file::write(&staging.join(FILE), &serde_json::to_vec(record)?);
    write().map_err(Error::act(format!("record in {} that mkfs starts", staging.display())))
}

/// Removes the record, and what an interrupted write left.
pub fn remove(staging: &Path) -> Result<()> {
    durable_file::remove(&staging.join(FILE))
        .map_err(Error::act(format!("remove the record of mkfs in {}", staging.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::FilesystemType;
    use std::fs;

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
