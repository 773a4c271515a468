//! The store of artifacts: folders named `<name>-<key>`, the key being a digest of everything the content depends on.
//!
//! A folder is made beside its place and renamed into it, so it is whole or absent; a lock file keeps two benches from
//! making the same one.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::paths;

/// Characters of the key in a folder's name: 48 bits distinguish all that one machine ever makes.
const KEY_IN_NAME: usize = 12;

/// A digest in the making. Each part is preceded by its length, so that no two lists of parts run together.
#[derive(Clone, Debug, Default)]
pub struct Key(Sha256);

impl Key {
    /// The key of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes.len().to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds a text.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Adds a file's content (not its name).
    pub fn file(self, path: &Path) -> Result<Self> {
        let mut content = Vec::new();
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        file.read_to_end(&mut content).with_context(|| format!("read {}", path.display()))?;
        Ok(self.bytes(&content))
    }

    /// Adds names and contents of all files below `dir` that `wanted` accepts.
    pub fn tree(mut self, dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Self> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
            entries.push(entry?.path());
        }
        entries.sort();
        for path in entries {
            if path.is_dir() {
                self = self.tree(&path, wanted)?;
            } else if wanted(&path) {
                self = self.text(&path.file_name().unwrap_or_default().to_string_lossy()).file(&path)?;
            }
        }
        Ok(self)
    }

    /// The key: 64 hexadecimal digits.
    pub fn finish(self) -> String {
        self.0.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    }
}

/// The folder `<name>-<key>`, made by `make` (given an empty folder to fill) if it isn't there.
pub async fn cached(name: &str, key: &str, make: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let artifacts = paths::artifacts()?;
    let place = artifacts.join(format!("{name}-{}", key.get(..KEY_IN_NAME).unwrap_or(key)));
    if place.is_dir() {
        return Ok(place);
    }
    let _lock = lock(artifacts.join(format!("{name}.lock"))).await?;
    // Another bench may have made it while this one waited for the lock.
    if !place.is_dir() {
        let prefix = format!(".{name}.");
        remove_leftovers(&artifacts, &prefix)?;
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(&artifacts)?;
        make(folder.path()).await?;
        std::fs::rename(folder.keep(), &place).with_context(|| format!("move into {}", place.display()))?;
    }
    Ok(place)
}

/// How many folders of one name stay in the store. Each change of the sources makes another.
const KEPT: usize = 4;

/// Removes the oldest folders of `name`, but never `used`. A bench that still runs one of their programs has it open.
pub fn prune(name: &str, used: &Path) -> Result<()> {
    let (mut folders, prefix) = (Vec::new(), format!("{name}-"));
    for entry in std::fs::read_dir(paths::artifacts()?)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) && entry.path() != used {
            folders.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    folders.sort();
    let surplus = (folders.len() + 1).saturating_sub(KEPT);
    for (_, folder) in folders.into_iter().take(surplus) {
        match std::fs::remove_dir_all(&folder) {
            // Another bench removed it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.with_context(|| format!("remove {}", folder.display()))?,
        }
    }
    Ok(())
}

/// Removes what killed makers left: the holder of the lock is the only maker.
fn remove_leftovers(artifacts: &Path, prefix: &str) -> Result<()> {
    for entry in std::fs::read_dir(artifacts)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Holds the lock until dropped; waits for its current holder.
async fn lock(path: PathBuf) -> Result<File> {
    let locked = tokio::task::spawn_blocking(move || {
        let file = File::options().create(true).append(true).open(&path)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    });
    locked.await.context("the lock's task ended")?.context("lock the artifact")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        let split = Key::new().text("ab").text("c").finish();
        assert_ne!(split, Key::new().text("a").text("bc").finish());
        assert_eq!(split.len(), 64);
    }

    #[test]
    fn a_tree_is_its_names_and_contents() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = || Key::new().tree(dir.path(), &|_| true).expect("readable").finish();
        let empty = key();
        std::fs::create_dir(dir.path().join("d")).expect("a folder");
        std::fs::write(dir.path().join("d/a.go"), "x").expect("a file");
        let one = key();
        std::fs::rename(dir.path().join("d/a.go"), dir.path().join("d/b.go")).expect("a rename");
        assert!(empty != one && one != key());
    }
}
