//! The image a worker boots from: a Debian kernel, a small initramfs, a read-only squashfs root.
//!
//! The root holds what a worker needs and no distribution: programs picked out of Debian packages with the libraries
//! they load, udev with the rules for disks, kubelet, containerd, crun, CNI plugins, the guest agent. The
//! driver comes later, as a container image ([`WorkerImage::driver`]).

mod modules;
mod root_tree;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

pub(super) use self::root_tree::needs;
use super::{process::run, programs::Programs};

/// Kernel modules of the initramfs: up to the root disk.
const INITRAMFS_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "overlay", "squashfs"];

/// What the initramfs' script calls.
const INITRAMFS_APPLETS: &[&str] =
    &["sh", "mount", "umount", "mkdir", "modprobe", "usleep", "switch_root", "grep", "poweroff"];

/// File names in the image's artifact folder.
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd";
const ROOT: &str = "root.squashfs";

/// Sources that lay out the image: part of its key, so that changing them makes a new one.
pub const RECIPE: &[&str] = &[
    include_str!("worker_image.rs"),
    include_str!("worker_image/modules.rs"),
    include_str!("worker_image/root_tree.rs"),
];

/// What a worker boots from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerImage {
    /// bzImage.
    pub kernel: PathBuf,
    /// lz4 cpio.
    pub initrd: PathBuf,
    /// Read-only squashfs root; all workers share it.
    pub root: PathBuf,
    /// The driver's container image, a docker-archive that is plugged as a disk and imported when the worker joins; without
    /// it the worker has none.
    pub driver: Option<PathBuf>,
    /// Identifies kernel, initrd and root (not the driver's image).
    pub key: String,
}

impl WorkerImage {
    /// The image in the folder that [`assemble`] filled.
    pub fn in_folder(dir: &Path, key: String) -> Self {
        Self { kernel: dir.join(KERNEL), initrd: dir.join(INITRD), root: dir.join(ROOT), driver: None, key }
    }
}

/// What an image is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Debian packages of the user space, unpacked into one merged-/usr tree.
    pub debian: &'a Path,
    /// The Debian kernel package, unpacked, with `modules.dep`.
    pub kernel: &'a Path,
    /// Go programs: kubelet, containerd and its company.
    pub programs: &'a Programs,
    /// Container images, docker-archive tars.
    pub images: &'a [PathBuf],
    /// The guest's static entropy helper.
    pub reseed: &'a Path,
    /// `e2e/guest`.
    pub guest: &'a Path,
}

/// Lays out and packs the image into `dir`.
pub async fn assemble(parts: &Parts<'_>, dir: &Path) -> Result<()> {
    let version = modules::kernel_version(parts.kernel)?;
    std::fs::copy(parts.kernel.join(format!("boot/vmlinuz-{version}")), dir.join(KERNEL))
        .context("copy the kernel")?;
    let scratch = tempfile::tempdir_in(dir).context("create a scratch folder")?;

    let root = scratch.path().join("root");
    root_tree::lay_out(parts, &root).await?;
    modules::copy(parts.kernel, &version, root_tree::MODULES, &root.join("usr")).await?;
    pack_squashfs(&root, &dir.join(ROOT)).await?;

    let initramfs = scratch.path().join("initramfs");
    lay_out_initramfs(parts, &initramfs)?;
    modules::copy(parts.kernel, &version, INITRAMFS_MODULES, &initramfs).await?;
    pack_initramfs(&initramfs, &dir.join(INITRD)).await
}

fn lay_out_initramfs(parts: &Parts<'_>, tree: &Path) -> Result<()> {
    for dir in ["bin", "proc", "sys", "dev"] {
        std::fs::create_dir_all(tree.join(dir))?;
    }
    install(&parts.debian.join("usr/bin/busybox"), &tree.join("bin/busybox"), 0o755)?;
    for applet in INITRAMFS_APPLETS {
        link("busybox", &tree.join("bin").join(applet))?;
    }
    link("bin", &tree.join("sbin"))?;
    install(&parts.guest.join("initramfs-init"), &tree.join("init"), 0o755)
}

/// lz4 unpacks fastest under software emulation; all files belong to root whoever packs.
async fn pack_squashfs(tree: &Path, image: &Path) -> Result<()> {
    let mut command = Command::new("mksquashfs");
    command.arg(tree).arg(image).args(["-comp", "lz4", "-all-root", "-noappend", "-quiet", "-no-progress"]);
    run(&mut command).await.map(drop)
}

/// `find | cpio | lz4 -l`: the kernel reads lz4's legacy frame only.
async fn pack_initramfs(tree: &Path, image: &Path) -> Result<()> {
    let list = run(Command::new("find").arg(".").current_dir(tree)).await?;
    let names = tree.with_extension("names");
    std::fs::write(&names, list)?;
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=+0:+0"])
        .current_dir(tree)
        .stdin(std::fs::File::open(&names)?)
        .stdout(Stdio::piped())
        .spawn()
        .context("start cpio")?;
    let archive: Stdio = cpio.stdout.take().context("cpio has no output")?.try_into()?;
    let mut lz4 = Command::new("lz4");
    lz4.args(["-l", "-1", "-q", "-c"]).stdin(archive);
    let lz4 = lz4_to(lz4, image).await;
    ensure!(cpio.wait().await?.success(), "cpio failed");
    lz4
}

async fn lz4_to(mut lz4: Command, image: &Path) -> Result<()> {
    let status = lz4.stdout(std::fs::File::create(image)?).status().await.context("run lz4")?;
    ensure!(status.success(), "lz4 failed");
    Ok(())
}

/// Copies a file, creating its folder, and gives it `mode`.
fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    std::fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Makes `at` a symbolic link to `target`; its folder is created.
fn link(target: &str, at: &Path) -> Result<()> {
    if let Some(dir) = at.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::os::unix::fs::symlink(target, at) {
        Ok(()) => Ok(()),
        Err(error) => bail!("link {}: {error}", at.display()),
    }
}
