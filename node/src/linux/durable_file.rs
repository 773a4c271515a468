//! Small files that are on the disk when the call returns, whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A record is some hundred bytes; anything larger is not ours.
const MAX_BYTES: u64 = 4096;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// There is no such file.
    Missing,
    /// A regular file of a record's size.
    Bytes(Vec<u8>),
    /// Something else, or a file that is too large.
    Other,
}

/// Reads a file.
pub fn read(path: &Path) -> io::Result<Content> {
    match fs::symlink_metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Content::Missing)
        }
        Err(error) => Err(error),
        Ok(metadata) if !metadata.is_file() || metadata.len() > MAX_BYTES => Ok(Content::Other),
        Ok(_) => fs::read(path).map(Content::Bytes),
    }
}

/// Writes a file: new file, fsync, rename, fsync of the directory.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = unfinished(path);
    let mut file = File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    sync_directory(path)
}

/// Removes a file, and what an interrupted write left.
pub fn remove(path: &Path) -> io::Result<()> {
    for name in [path, &unfinished(path)] {
        match fs::remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    sync_directory(path)
}

/// Name while it is written.
fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// Makes the entries of the directory that holds `path` durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
