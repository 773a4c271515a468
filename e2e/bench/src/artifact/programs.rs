//! The programs that were built, by name.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Programs by name: `kube-apiserver`, `etcd`, `virt-api`, `kubevirt-csi-driver`, …
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs(BTreeMap<String, PathBuf>);

impl Programs {
    /// The program's file.
    pub fn path(&self, name: &str) -> Result<&Path> {
        self.0
            .get(name)
            .map(PathBuf::as_path)
            .with_context(|| format!("{name} is not among the bench's programs"))
    }

    pub(super) fn add(&mut self, name: &str, path: PathBuf) {
        self.0.insert(name.to_string(), path);
    }
}
