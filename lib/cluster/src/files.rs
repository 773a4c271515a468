//! Values that are made of files, and made again when the files change: credentials, certificates, keys, bundles of
//! certificate authorities.
//!
//! Kubelet replaces the files of a mounted Secret, ConfigMap or token by swapping a symlink, which a watch on a file
//! does not notice. Other programs write a file in place, so that a read may find half of it. Therefore the files are
//! read again and their content is compared, and a value stays in use until a newer one could be made.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use tokio::{select, time::sleep};

use crate::chain;

/// Makes a value of files.
pub trait FromFiles {
    /// What is made.
    type Value;
    /// Why it can't be made.
    type Error: Error + 'static;

    /// Reads every file that the value depends on through `contents`, and then makes the value. A file that is read in
    /// another way must have been read through `contents` before, so that a change in between is noticed.
    fn make(&self, contents: &mut Contents) -> impl Future<Output = Result<Self::Value, Self::Error>> + Send;
}

/// Files with the contents that were read. It has no `Debug`, because it holds keys and tokens.
#[derive(Default)]
pub struct Contents(Vec<(PathBuf, Option<Vec<u8>>)>);

/// The source of a value, and the contents of which the value in use was made.
pub struct Followed<S> {
    source: S,
    /// Names the value in log lines.
    name: String,
    used: Contents,
    /// Why the newest contents are not in use; logged once.
    complaint: Option<String>,
}

impl Contents {
    /// Reads a file and keeps its content.
    ///
    /// # Errors
    /// The file can't be read. A later check notices when it can.
    pub async fn read(&mut self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let path = path.as_ref();
        let read = tokio::fs::read(path).await;
        self.0.push((path.to_owned(), read.as_ref().ok().cloned()));
        read
    }

    /// Whether one of the files has another content now.
    async fn have_changed(&self) -> bool {
        for (path, content) in &self.0 {
            if tokio::fs::read(path).await.ok() != *content {
                return true;
            }
        }
        false
    }
}

impl<S: FromFiles> Followed<S> {
    /// Makes the first value. `name` stands for it in log lines: "the … changed".
    ///
    /// # Errors
    /// The value can't be made.
    pub async fn open(name: impl Into<String>, source: S) -> Result<(Self, S::Value), S::Error> {
        let mut used = Contents::default();
        let value = source.make(&mut used).await?;
        Ok((Self { source, name: name.into(), used, complaint: None }, value))
    }

    /// A newer value, if a file has changed since the last value was made. If none can be made, because a file is half
    /// written or gone for example, the reason is logged once, and the next call tries again.
    pub async fn newer(&mut self) -> Option<S::Value> {
        if !self.used.have_changed().await {
            self.complaint = None;
            return None;
        }
        let mut contents = Contents::default();
        match self.source.make(&mut contents).await {
            Ok(value) => {
                (self.used, self.complaint) = (contents, None);
                tracing::info!("the {} changed; the new content is used", self.name);
                Some(value)
            }
            Err(error) => {
                let complaint = chain(&error);
                if self.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!(
                        error = complaint,
                        "the {} changed and can't be used; the last good content stays in use",
                        self.name
                    );
                    self.complaint = Some(complaint);
                }
                None
            }
        }
    }

    /// Checks the files after each `interval` and hands newer values to `take`, until `ended`.
    pub async fn follow(
        mut self,
        interval: Duration,
        ended: impl Future<Output = ()>,
        mut take: impl FnMut(S::Value),
    ) {
        let mut ended = pin!(ended);
        loop {
            select! {
                () = sleep(interval) => {}
                () = &mut ended => return,
            }
            if let Some(value) = self.newer().await {
                take(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use tokio::sync::{mpsc, oneshot};

    /// Two files that fit together if both name the same version: `<version> certificate end` and `<version> key end`.
    struct Pair(PathBuf);

    #[derive(Debug, thiserror::Error)]
    enum PairError {
        #[error("unreadable")]
        Read(#[from] io::Error),
        #[error("{0:?} is not whole")]
        Half(String),
        #[error("versions differ")]
        Mismatch,
    }

    impl FromFiles for Pair {
        type Value = String;
        type Error = PairError;

        async fn make(&self, contents: &mut Contents) -> Result<String, PairError> {
            let mut versions = Vec::new();
            for name in ["certificate", "key"] {
                let text = String::from_utf8(contents.read(self.0.join(name)).await?).unwrap();
                let version = text.strip_suffix(&format!(" {name} end"));
                versions.push(version.ok_or(PairError::Half(text.clone()))?.to_owned());
            }
            let [certificate, key] = versions.try_into().unwrap();
            if certificate == key { Ok(certificate) } else { Err(PairError::Mismatch) }
        }
    }

    fn write(folder: &Path, name: &str, version: &str) {
        fs::write(folder.join(name), format!("{version} {name} end")).unwrap();
    }

    fn write_pair(folder: &Path, version: &str) {
        write(folder, "certificate", version);
        write(folder, "key", version);
    }

    /// A folder with version `1` of both files, from which the first value was made.
    async fn first() -> (tempfile::TempDir, Followed<Pair>) {
        let folder = tempfile::tempdir().unwrap();
        write_pair(folder.path(), "1");
        let (followed, value) = Followed::open("pair", Pair(folder.path().to_owned())).await.unwrap();
        assert_eq!(value, "1");
        (folder, followed)
    }

    #[tokio::test]
    async fn an_unusable_file_is_an_error_at_first() {
        let folder = tempfile::tempdir().unwrap();
        let open = async || Followed::open("pair", Pair(folder.path().to_owned())).await.err();
        assert!(matches!(open().await, Some(PairError::Read(_))));
        write_pair(folder.path(), "1");
        fs::write(folder.path().join("key"), "1 ke").unwrap();
        assert!(matches!(open().await, Some(PairError::Half(_))));
    }

    #[tokio::test]
    async fn replaced_files_make_one_newer_value() {
        let (folder, mut followed) = first().await;
        assert_eq!(followed.newer().await, None, "nothing changed");
        for name in ["certificate", "key"] {
            write(folder.path(), name, "2");
            let temporary = folder.path().join("temporary");
            fs::rename(folder.path().join(name), &temporary).unwrap();
            fs::rename(temporary, folder.path().join(name)).unwrap();
        }
        assert_eq!(followed.newer().await.as_deref(), Some("2"));
        assert_eq!(followed.newer().await, None, "it was handed over");
    }

    #[tokio::test]
    async fn files_of_the_same_content_are_not_newer() {
        let (folder, mut followed) = first().await;
        for name in ["certificate", "key"] {
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        write_pair(folder.path(), "1");
        assert_eq!(followed.newer().await, None);
    }

    #[tokio::test]
    async fn a_half_written_file_changes_nothing_until_it_is_whole() {
        let (folder, mut followed) = first().await;
        write(folder.path(), "certificate", "2");
        assert_eq!(followed.newer().await, None, "the key is still the old one");
        for half in ["", "2 k", "2 key en"] {
            fs::write(folder.path().join("key"), half).unwrap();
            assert_eq!(followed.newer().await, None);
            assert!(followed.complaint.as_ref().unwrap().contains("is not whole"));
        }
        write(folder.path(), "key", "2");
        assert_eq!(followed.newer().await.as_deref(), Some("2"));
        assert_eq!(followed.complaint, None, "the next failure is logged again");
    }

    #[tokio::test]
    async fn a_file_that_is_gone_changes_nothing_until_it_is_back() {
        let (folder, mut followed) = first().await;
        let key = folder.path().join("key");
        fs::remove_file(&key).unwrap();
        assert_eq!(followed.newer().await, None);
        assert!(followed.complaint.is_some());
        write(folder.path(), "key", "1");
        assert_eq!(followed.newer().await, None, "it is what it was");
        assert_eq!(followed.complaint, None, "the next failure is logged again");

        fs::remove_file(&key).unwrap();
        assert_eq!(followed.newer().await, None);
        write_pair(folder.path(), "2");
        assert_eq!(followed.newer().await.as_deref(), Some("2"));
    }

    /// Writes a version as kubelet does: a folder of its own, and a symlink `..data` that is replaced by a rename
    /// (Kubernetes, `pkg/volume/util/atomic_writer.go`).
    fn publish(volume: &Path, version: &str) {
        let payload = volume.join(format!("..{version}"));
        fs::create_dir(&payload).unwrap();
        write_pair(&payload, version);
        let temporary = volume.join("..data_tmp");
        symlink(format!("..{version}"), &temporary).unwrap();
        let old = fs::read_link(volume.join("..data"));
        fs::rename(temporary, volume.join("..data")).unwrap();
        match old {
            Ok(old) => fs::remove_dir_all(volume.join(old)).unwrap(),
            Err(_) => ["certificate", "key"]
                .iter()
                .for_each(|name| symlink(format!("..data/{name}"), volume.join(name)).unwrap()),
        }
    }

    #[tokio::test]
    async fn kubelet_s_swapped_symlink_is_noticed() {
        let volume = tempfile::tempdir().unwrap();
        publish(volume.path(), "1");
        let (mut followed, value) = Followed::open("pair", Pair(volume.path().to_owned())).await.unwrap();
        assert_eq!(value, "1");
        for version in ["2", "3"] {
            publish(volume.path(), version);
            assert_eq!(followed.newer().await.as_deref(), Some(version));
            assert_eq!(followed.newer().await, None);
        }
    }

    /// The clock is paused: it advances when all tasks wait for it.
    #[tokio::test(start_paused = true)]
    async fn newer_values_are_handed_over_until_the_end() {
        let (folder, followed) = first().await;
        let (newer, mut values) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel::<()>();
        let following = tokio::spawn(followed.follow(
            Duration::from_mins(1),
            async { drop(ended.await) },
            move |value| newer.send(value).unwrap(),
        ));
        for version in ["2", "3"] {
            write_pair(folder.path(), version);
            assert_eq!(values.recv().await.as_deref(), Some(version));
        }
        drop(end);
        following.await.unwrap();
        assert_eq!(values.recv().await, None);
    }
}
