//! Where the bench keeps things. Three places, each with one lifetime:
//!
//! * the **cache** (`$XDG_CACHE_HOME/kubevirt-bench`, else `~/.cache/kubevirt-bench`): artifacts keyed by content; kept;
//! * a **run folder** inside it (`runs/<id>`): logs, etcd data, the pool of volume images; its logs outlive the bench;
//! * [`RUNTIME`], a tmpfs that only the sandbox sees: sockets, keys, kubeconfigs; gone with the sandbox.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result};

/// A tmpfs private to the sandbox: short paths, because a unix socket's path holds 107 bytes at most (`unix(7)`).
pub const RUNTIME: &str = "/run/bench";

/// Names the cache folder inside the user's cache directory.
const CACHE_NAME: &str = "kubevirt-bench";

/// The cache directory of this user; created if absent.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    create(base.join(CACHE_NAME))
}

/// This program's file. Asked first at the start of `main` and remembered: cargo may replace the file while the bench runs
/// (`bench test` builds the tests), and the kernel then calls the old one "(deleted)".
pub fn program() -> Result<PathBuf> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program.clone());
    }
    let program = std::env::current_exe().context("the path of this program")?;
    Ok(PROGRAM.get_or_init(|| program).clone())
}

/// The kubeconfig of a running bench: contexts `infra` and `tenant`, administrators of both. Seen inside the sandbox only.
pub fn kubeconfig() -> PathBuf {
    Path::new(RUNTIME).join("kubeconfig")
}

/// The socket of the infra storage's CSI plugin. Seen inside the sandbox only.
pub fn infra_storage_socket() -> PathBuf {
    Path::new(RUNTIME).join("infra-storage.sock")
}

/// Built artifacts, each in a folder `<name>-<key>`.
pub fn artifacts() -> Result<PathBuf> {
    create(cache()?.join("artifacts"))
}

/// The repository's root: where the workspace's `Cargo.toml` is.
pub fn repository() -> PathBuf {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
    // It stands in `e2e/bench`.
    bench.ancestors().nth(2).unwrap_or(bench).to_path_buf()
}

/// The folders of one run of the bench.
#[derive(Clone, Debug)]
pub struct Run {
    root: PathBuf,
}

impl Run {
    /// Opens the run folder `root`, creating it and its sub-folders.
    pub fn open(root: PathBuf) -> Result<Self> {
        let run = Self { root };
        for dir in [run.logs(), run.volumes()] {
            create(dir)?;
        }
        Ok(run)
    }

    /// The run folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One file per part of the bench.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The file that holds the filesystem of infra storage, mounted on [`Self::volumes`] inside the sandbox.
    pub fn pool(&self) -> PathBuf {
        self.root.join("pool.xfs")
    }

    /// Images of infra PersistentVolumes, `<pv name>.img`. Filled inside the sandbox only.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }
}

fn create(dir: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}
