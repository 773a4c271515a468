//! The pool: one XFS with reflinks on a sparse file, in which volumes and snapshots are files and folders.
//!
//! ```text
//! pvc-1.img   pvc-1.json             a block volume and its record
//! pvc-2/      pvc-2.json             a filesystem volume
//! snapshots/snapshot-1.img, .json    a snapshot of a block volume
//! ```
//!
//! A record is written last and removed last, so what has none was left half-done and is made again. A reflink (`FICLONE`)
//! locks its source against writers and writes out what is in memory, so the copy is one point in time: crash-consistent,
//! as a storage system's snapshot is.
//!
//! The mount is the sandbox's own; with the sandbox's end the kernel unmounts it and frees the loop device.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{fs, process::Command};

use super::create_image;
use crate::artifact::process::run;

/// The size of the pool's filesystem in bytes. The file is sparse: it takes what is written to volumes.
pub(super) const POOL_BYTES: u64 = 256 << 30;

/// The folder of the snapshots in the pool.
const SNAPSHOTS: &str = "snapshots";

/// A pool that is mounted.
#[derive(Clone, Debug)]
pub(super) struct Pool(PathBuf);

/// What is known of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volume {
    /// Its size.
    pub bytes: u64,
    /// A device; otherwise a filesystem.
    pub block: bool,
    /// The storage class, empty if the class did not tell.
    pub class: String,
    /// The claim for which it was made.
    pub namespace: String,
    /// The claim's name.
    pub claim: String,
    /// Whether a node has work to do after an expansion.
    pub node_expansion: bool,
    /// What its content was at first; nothing: blank.
    pub source: Option<Source>,
}

/// Where a volume's content came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    /// The snapshot of that id.
    Snapshot(String),
    /// The volume of that handle.
    Volume(String),
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// The handle of the volume that it was taken of.
    pub volume: String,
    /// The volume's size at that time.
    pub bytes: u64,
    /// A device; otherwise a filesystem.
    pub block: bool,
    /// When it was taken: seconds since 1970.
    pub created: i64,
}

/// Whether a handle or id is a name that names one file in the pool, and no other place.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !name.is_empty() && name.chars().all(plain) && name != SNAPSHOTS
}

impl Pool {
    /// Makes the filesystem in `file` and mounts it on `folder`.
    pub(super) async fn make(file: &Path, folder: &Path) -> Result<Self> {
        remove_file(file).await?;
        create_image(file, POOL_BYTES).await?;
        run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(file)).await?;
        // Without `discard` the file would keep the blocks of deleted volumes.
        let mut mount = Command::new("mount");
        mount.args(["-t", "xfs", "-o", "loop,discard,noatime"]).arg(file).arg(folder);
        run(&mut mount)
            .await
            .context("infra storage needs a kernel with XFS and loop devices, and a free loop device")?;
        Self::at(folder).await
    }

    /// The pool in a folder that is there already.
    async fn at(folder: &Path) -> Result<Self> {
        let pool = Self(folder.to_path_buf());
        fs::create_dir_all(folder.join(SNAPSHOTS)).await.context("create the folder of the snapshots")?;
        Ok(pool)
    }

    pub(super) async fn volume(&self, handle: &str) -> Result<Option<Volume>> {
        read(&record(&self.0, handle)).await
    }

    pub(super) async fn volumes(&self) -> Result<Vec<(String, Volume)>> {
        list(&self.0).await
    }

    pub(super) async fn snapshot(&self, id: &str) -> Result<Option<Snapshot>> {
        read(&record(&self.snapshots_folder(), id)).await
    }

    /// All snapshots by their ids, in the order of these.
    pub(super) async fn snapshots(&self) -> Result<Vec<(String, Snapshot)>> {
        list(&self.snapshots_folder()).await
    }

    /// Makes a volume that has no record.
    pub(super) async fn create(&self, handle: &str, volume: &Volume) -> Result<()> {
        remove_data(&self.0, handle).await?;
        let (from, name) = match &volume.source {
            Some(Source::Snapshot(id)) => (self.snapshots_folder(), id.as_str()),
            Some(Source::Volume(source)) => (self.0.clone(), source.as_str()),
            None => return self.create_blank(handle, volume).await,
        };
        reflink(&data(&from, name, volume.block), &data(&self.0, handle, volume.block)).await?;
        if volume.block {
            create_image(&data(&self.0, handle, true), volume.bytes).await?;
        }
        write(&record(&self.0, handle), volume).await
    }

    async fn create_blank(&self, handle: &str, volume: &Volume) -> Result<()> {
        let path = data(&self.0, handle, volume.block);
        if volume.block {
            create_image(&path, volume.bytes).await?;
        } else {
            fs::create_dir_all(&path).await.with_context(|| format!("create {}", path.display()))?;
        }
        write(&record(&self.0, handle), volume).await
    }

    /// Makes a volume as large as its new record says.
    pub(super) async fn expand(&self, handle: &str, volume: &Volume) -> Result<()> {
        if volume.block {
            create_image(&data(&self.0, handle, true), volume.bytes).await?;
        }
        write(&record(&self.0, handle), volume).await
    }

    pub(super) async fn delete(&self, handle: &str) -> Result<()> {
        remove_data(&self.0, handle).await?;
        remove_file(&record(&self.0, handle)).await
    }

    /// Takes a snapshot that has no record.
    pub(super) async fn take(&self, id: &str, snapshot: &Snapshot) -> Result<()> {
        let folder = self.snapshots_folder();
        remove_data(&folder, id).await?;
        reflink(&data(&self.0, &snapshot.volume, snapshot.block), &data(&folder, id, snapshot.block)).await?;
        write(&record(&folder, id), snapshot).await
    }

    pub(super) async fn delete_snapshot(&self, id: &str) -> Result<()> {
        let folder = self.snapshots_folder();
        remove_data(&folder, id).await?;
        remove_file(&record(&folder, id)).await
    }

    fn snapshots_folder(&self) -> PathBuf {
        self.0.join(SNAPSHOTS)
    }
}

fn data(folder: &Path, name: &str, block: bool) -> PathBuf {
    if block { super::device(folder, name) } else { super::folder(folder, name) }
}

fn record(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}

/// A copy that shares its extents with `from`, a file or a folder; never a copy of bytes, which would be torn under a
/// machine that writes.
async fn reflink(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["--archive", "--reflink=always"]).arg(from).arg(to);
    run(&mut copy).await.map(drop).with_context(|| format!("clone {}", from.display()))
}

async fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let doing = || format!("read {}", path.display());
    match fs::read(path).await {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(doing),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(doing),
    }
}

/// Written whole or not at all.
async fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let doing = || format!("write {}", path.display());
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?).await.with_context(doing)?;
    fs::rename(&new, path).await.with_context(doing)
}

async fn list<T: DeserializeOwned>(folder: &Path) -> Result<Vec<(String, T)>> {
    let doing = || format!("list {}", folder.display());
    let mut found = Vec::new();
    let mut entries = fs::read_dir(folder).await.with_context(doing)?;
    while let Some(entry) = entries.next_entry().await.with_context(doing)? {
        let path = entry.path();
        let is_record = path.extension().is_some_and(|extension| extension == "json");
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()).filter(|_| is_record) {
            found.extend(read(&path).await?.map(|value| (name.to_owned(), value)));
        }
    }
    found.sort_by(|(one, _), (other, _): &(String, T)| one.cmp(other));
    Ok(found)
}

/// Removes data of whichever kind.
async fn remove_data(folder: &Path, name: &str) -> Result<()> {
    remove_file(&data(folder, name, true)).await?;
    let path = data(folder, name, false);
    absent_is_fine(fs::remove_dir_all(&path).await).with_context(|| format!("remove {}", path.display()))
}

async fn remove_file(path: &Path) -> Result<()> {
    absent_is_fine(fs::remove_file(path).await).with_context(|| format!("remove {}", path.display()))
}

fn absent_is_fine(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pool() -> (tempfile::TempDir, Pool) {
        let dir = tempfile::tempdir().expect("a folder");
        let pool = Pool::at(dir.path()).await.expect("a pool");
        (dir, pool)
    }

    #[tokio::test]
    async fn what_is_made_is_found_and_goes_whole() {
        let (dir, pool) = pool().await;
        let block = Volume { bytes: 1 << 20, block: true, ..Volume::default() };
        let folder = Volume { bytes: 1 << 20, ..Volume::default() };
        pool.create("pvc-1", &block).await.expect("made");
        pool.create("pvc-2", &folder).await.expect("made");
        assert_eq!(pool.volume("pvc-1").await.expect("read"), Some(block.clone()));
        let all = [("pvc-1".to_owned(), block.clone()), ("pvc-2".to_owned(), folder)];
        assert_eq!(pool.volumes().await.expect("listed"), all);
        assert_eq!(std::fs::metadata(dir.path().join("pvc-1.img")).expect("a device").len(), 1 << 20);
        std::fs::write(dir.path().join("pvc-2/disk.img"), "x").expect("a disk in it");
        pool.expand("pvc-1", &Volume { bytes: 2 << 20, ..block }).await.expect("expanded");
        assert_eq!(std::fs::metadata(dir.path().join("pvc-1.img")).expect("a device").len(), 2 << 20);
        for handle in ["pvc-1", "pvc-2", "pvc-1"] {
            pool.delete(handle).await.expect("deleted, also twice");
        }
        let left: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").flatten().collect();
        assert_eq!(left.len(), 1, "only the folder of snapshots: {left:?}");
    }

    #[tokio::test]
    async fn what_was_left_half_done_is_made_again() {
        let (dir, pool) = pool().await;
        std::fs::create_dir(dir.path().join("pvc-1")).expect("a folder");
        std::fs::write(dir.path().join("pvc-1.img"), "left").expect("a file");
        std::fs::write(dir.path().join("pvc-1.new"), "{").expect("half a record");
        assert_eq!(pool.volume("pvc-1").await.expect("read"), None);
        assert!(pool.volumes().await.expect("listed").is_empty());
        pool.create("pvc-1", &Volume { bytes: 4, block: true, ..Volume::default() }).await.expect("made");
        assert_eq!(std::fs::read(dir.path().join("pvc-1.img")).expect("a device"), [0; 4]);
        assert!(!dir.path().join("pvc-1").exists());
    }

    /// On a filesystem without reflinks a copy of bytes would be made unnoticed, were it allowed.
    #[tokio::test]
    async fn a_snapshot_is_a_reflink_or_nothing() {
        let (dir, pool) = pool().await;
        pool.create("pvc-1", &Volume { bytes: 4, block: true, ..Volume::default() }).await.expect("made");
        let snapshot = Snapshot { volume: "pvc-1".into(), bytes: 4, block: true, created: 1 };
        let cloned = reflink(&dir.path().join("pvc-1.img"), &dir.path().join("copy")).await;
        let taken = pool.take("snapshot-1", &snapshot).await;
        assert_eq!(taken.is_ok(), cloned.is_ok(), "as this filesystem allows: {taken:?}");
        assert_eq!(pool.snapshot("snapshot-1").await.expect("read").is_some(), cloned.is_ok());
        pool.delete_snapshot("snapshot-1").await.expect("deleted");
        assert!(pool.snapshots().await.expect("listed").is_empty());
    }

    #[test]
    fn a_name_stays_in_the_pool() {
        assert!(is_name("pvc-0a1b-2") && is_name("snapshot-1"));
        for wrong in ["", "../x", "a/b", "snapshots", "a.json", "."] {
            assert!(!is_name(wrong), "{wrong:?}");
        }
    }
}
