//! Kernel modules: those that are asked for and those that these depend on.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::install;
use crate::artifact::process::run;

/// Files beside the modules that depmod and modprobe read.
const LISTS: &[&str] = &["modules.order", "modules.builtin", "modules.builtin.modinfo"];

/// The version of the one kernel in an unpacked package.
pub(super) fn kernel_version(kernel: &Path) -> Result<String> {
    let dir = kernel.join("lib/modules");
    let mut versions = std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    let first = versions.next().context("the kernel package has no modules")??;
    ensure!(versions.next().is_none(), "more than one kernel in {}", dir.display());
    first.file_name().into_string().ok().context("a kernel version that is not UTF-8")
}

/// Copies `wanted` and their dependencies into `<tree>/lib/modules/<version>` and indexes them. Built-in ones need nothing.
pub(super) async fn copy(kernel: &Path, version: &str, wanted: &[&str], tree: &Path) -> Result<()> {
    let mut command = Command::new("modprobe");
    command.arg("-d").arg(kernel).args(["-S", version, "-a", "--show-depends"]).args(wanted);
    let shown = run(&mut command).await.context("a module is missing from the kernel package")?;
    let from = kernel.join("lib/modules").join(version);
    let to = tree.join("lib/modules").join(version);
    for file in files(&shown) {
        let path = Path::new(file);
        let relative =
            path.strip_prefix(&from).with_context(|| format!("{file} is outside the kernel package"))?;
        install(path, &to.join(relative), 0o644)?;
    }
    for list in LISTS {
        install(&from.join(list), &to.join(list), 0o644)?;
    }
    run(Command::new("depmod").arg("-b").arg(tree).arg(version)).await.map(drop)
}

/// The files in `modprobe --show-depends`' answer: `insmod <path> [options]`, or `builtin <name>`.
fn files(shown: &str) -> BTreeSet<&str> {
    shown.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_files_once_each() {
        let shown = "insmod /k/a.ko \ninsmod /k/b.ko x=1\nbuiltin ext4\ninsmod /k/a.ko \n";
        assert_eq!(files(shown), BTreeSet::from(["/k/a.ko", "/k/b.ko"]));
    }
}
