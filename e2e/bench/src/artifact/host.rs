//! The tools of the host that the bench calls, and the Debian packages that bring them.

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::process::{run, search_path};
use crate::report::Progress;

/// Tool and the package that brings it.
const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("buildah", "buildah"),
    ("cpio", "cpio"),
    ("lz4", "lz4"),
    ("zstd", "zstd"),
    ("mksquashfs", "squashfs-tools"),
    ("modprobe", "kmod"),
    ("depmod", "kmod"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("mount", "mount"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("gcc", "gcc"),
    ("strip", "binutils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("cryptsetup", "cryptsetup-bin"),
    ("sfdisk", "fdisk"),
];

/// Compilers that no package of ours brings in the right version.
const COMPILERS: &[(&str, &str)] = &[
    ("go", "install Go, at least as new as e2e/go/kubernetes/go.mod says"),
    ("cargo", "install Rust with rustup"),
];

/// Makes sure that all tools are there; as root, installs the missing ones.
pub(super) async fn ensure(progress: &dyn Progress) -> Result<()> {
    for (compiler, advice) in COMPILERS {
        if !on_path(compiler) {
            bail!("{compiler} is not on PATH; {advice}");
        }
    }
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the bench needs these Debian packages: apt-get install {}", missing.join(" "));
    }
    progress.step(&format!("installing {}", missing.join(" ")));
    if install(&missing).await.is_err() {
        // Package lists that are absent or old are the ordinary reason.
        update().await?;
        install(&missing).await.context("install the host's tools")?;
    }
    let still = self::missing();
    if !still.is_empty() {
        bail!("still missing after their installation: {}", still.join(" "));
    }
    Ok(())
}

/// Refreshes apt's package lists. Needs root.
pub(super) async fn update() -> Result<()> {
    run(Command::new("apt-get").args(["update", "-qq"]))
        .await
        .context("refresh apt's package lists")
        .map(drop)
}

/// The packages of what is not there, each once.
fn missing() -> Vec<&'static str> {
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| !on_path(tool)).map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

async fn install(packages: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    run(apt.env("DEBIAN_FRONTEND", "noninteractive")).await.map(drop)
}

fn on_path(tool: &str) -> bool {
    std::env::split_paths(&search_path()).any(|folder| folder.join(tool).is_file())
}
