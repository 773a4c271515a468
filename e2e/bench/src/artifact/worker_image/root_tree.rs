//! Lays out the worker's root: what is picked, from where, and under which name.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::{Parts, install, link};
use crate::artifact::process::run;

/// Modules for disks, file systems, the pods' network, and what udev's coldplug may ask for.
pub(super) const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "sd_mod",
    "sg",
    "ext4",
    "xfs",
    "crc32c_generic",
    "overlay",
    "squashfs",
    "loop",
    "veth",
    "bridge",
    "br_netfilter",
    "nf_tables",
    "nf_conntrack_netlink",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_objref",
    "nft_redir",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
];

/// Programs from Debian packages. kubelet calls mount, umount, losetup, kube-proxy calls nft; the others are for tests that
/// look inside or break something. What the node plugin calls is in its image.
const DEBIAN_PROGRAMS: &[&str] = &[
    "blkid",
    "blockdev",
    "crun",
    "debugfs",
    "dumpe2fs",
    "e2fsck",
    "findmnt",
    "flock",
    "fsck",
    "fsfreeze",
    "fstrim",
    "kmod",
    "losetup",
    "lsblk",
    "mke2fs",
    "mkfs.xfs",
    "mount",
    "mountpoint",
    "nft",
    "nsenter",
    "qemu-ga",
    "resize2fs",
    "setsid",
    "socat",
    "tune2fs",
    "udevadm",
    "umount",
    "unshare",
    "wipefs",
    "xfs_db",
    "xfs_growfs",
    "xfs_io",
    "xfs_repair",
];

/// Scripts and static programs: no libraries to look for.
const DEBIAN_FILES: &[&str] = &["busybox", "fsck.xfs"];

/// udev's rules for disks and virtio ports, and the helpers that these rules run.
const UDEV_RULES: &[&str] = &["50-udev-default", "60-block", "60-persistent-storage", "80-drivers"];
const UDEV_HELPERS: &[&str] = &["ata_id", "cdrom_id", "scsi_id"];

const NODE_PROGRAMS: &[&str] = &["kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "ctr"];
const CNI_PLUGINS: &[&str] = &["bridge", "host-local", "loopback"];

/// From `e2e/guest` to the worker, with their modes.
const GUEST_FILES: &[(&str, &str, u32)] = &[
    ("worker-boot", "usr/local/sbin/worker-boot", 0o755),
    ("oci-runtime", "usr/local/sbin/oci-runtime", 0o755),
    ("inittab", "etc/inittab", 0o644),
    ("group", "etc/group", 0o644),
    ("containerd.toml", "etc/containerd/config.toml", 0o644),
    ("kubelet.yaml", "etc/kubernetes/kubelet.yaml", 0o644),
    ("kube-proxy.yaml", "etc/kubernetes/kube-proxy.yaml", 0o644),
    ("pods.nft", "etc/pods.nft", 0o644),
    ("cni.conflist", "usr/share/worker/pods.conflist", 0o644),
];

/// Files whose text is all there is to say. The machine id is replaced after a restore and never used before.
const TEXTS: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/os-release", "PRETTY_NAME=\"Debian packages, worker of the bench\"\nID=debian\n"),
    ("etc/resolv.conf", ""),
    ("etc/nsswitch.conf", "hosts: files\n"),
    ("etc/machine-id", "00000000000000000000000000000001\n"),
];

const EMPTY_FOLDERS: &[&str] = &[
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "mnt",
    "root",
    "var/lib",
    "var/log",
    "usr/local/bin",
    "etc/udev",
    "etc/cni/net.d",
];

/// Multi-name programs: link, target in the same folder tree.
const LINKS: &[(&str, &str)] = &[
    ("usr/sbin/mkfs.ext2", "mke2fs"),
    ("usr/sbin/mkfs.ext3", "mke2fs"),
    ("usr/sbin/mkfs.ext4", "mke2fs"),
    ("usr/sbin/fsck.ext2", "e2fsck"),
    ("usr/sbin/fsck.ext3", "e2fsck"),
    ("usr/sbin/fsck.ext4", "e2fsck"),
    ("usr/sbin/modprobe", "../bin/kmod"),
    ("usr/sbin/insmod", "../bin/kmod"),
    ("usr/sbin/rmmod", "../bin/kmod"),
    ("usr/sbin/lsmod", "../bin/kmod"),
    ("usr/sbin/init", "../bin/busybox"),
    // The guest agent refuses to set the time unless it finds this one, under this very path.
    ("usr/sbin/hwclock", "../bin/busybox"),
    ("usr/lib/systemd/systemd-udevd", "../../bin/udevadm"),
    ("var/run", "../run"),
];

/// Debian's folders of shared libraries and of the loader on amd64.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Fills the empty folder `root`.
pub(super) async fn lay_out(parts: &Parts<'_>, root: &Path) -> Result<()> {
    for dir in EMPTY_FOLDERS {
        std::fs::create_dir_all(root.join(dir))?;
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(root.join("usr").join(dir))?;
        link(&format!("usr/{dir}"), &root.join(dir))?;
    }
    copy_debian(parts.debian, root).await?;
    for (at, target) in LINKS {
        link(target, &root.join(at))?;
    }
    link_applets(root).await?;
    for name in NODE_PROGRAMS {
        install(parts.programs.path(name)?, &root.join("usr/local/bin").join(name), 0o755)?;
    }
    for name in CNI_PLUGINS {
        install(parts.programs.path(name)?, &root.join("opt/cni/bin").join(name), 0o755)?;
    }
    install(parts.reseed, &root.join("usr/local/sbin/reseed"), 0o755)?;
    for (from, to, mode) in GUEST_FILES {
        install(&parts.guest.join(from), &root.join(to), *mode)?;
    }
    for (path, text) in TEXTS {
        std::fs::write(root.join(path), text).with_context(|| format!("write {path}"))?;
    }
    for image in parts.images {
        let name = image.file_name().context("a container image without a name")?;
        install(image, &root.join("usr/share/worker/images").join(name), 0o644)?;
    }
    Ok(())
}

/// Programs, udev, and the closure of the libraries that they load.
async fn copy_debian(debian: &Path, root: &Path) -> Result<()> {
    let mut dynamic = Vec::new();
    for name in DEBIAN_PROGRAMS {
        dynamic.push(find(debian, name)?);
    }
    dynamic.extend(UDEV_HELPERS.iter().map(|helper| Path::new("usr/lib/udev").join(helper)));
    let plain: Vec<PathBuf> = DEBIAN_FILES.iter().map(|name| find(debian, name)).collect::<Result<_>>()?;
    for path in dynamic.iter().chain(&plain) {
        install(&debian.join(path), &root.join(path), 0o755)?;
    }
    for rule in UDEV_RULES {
        let path = format!("usr/lib/udev/rules.d/{rule}.rules");
        install(&debian.join(&path), &root.join(&path), 0o644)?;
    }
    install(&debian.join("etc/mke2fs.conf"), &root.join("etc/mke2fs.conf"), 0o644)?;

    let folder = debian.join(LIBRARIES);
    let mut libraries: BTreeSet<PathBuf> = BTreeSet::new();
    for program in &dynamic {
        libraries.extend(loads(&folder, &debian.join(program)).await?);
    }
    for library in libraries {
        let name = library.file_name().context("a library without a name")?;
        install(&library, &root.join(LIBRARIES).join(name), 0o755)?;
    }
    install(&folder.join(LOADER), &root.join("usr/lib64").join(LOADER), 0o755)
}

/// Where a package put a program, relative to the tree.
fn find(debian: &Path, name: &str) -> Result<PathBuf> {
    let places = ["usr/sbin", "usr/bin"].map(|dir| Path::new(dir).join(name));
    places
        .into_iter()
        .find(|path| debian.join(path).is_file())
        .with_context(|| format!("no package has the program {name}; has it moved to another package?"))
}

/// What a program of a package needs beside itself: its libraries and their loader, each with its place in a root.
pub(in crate::artifact) async fn needs(debian: &Path, program: &Path) -> Result<Vec<(PathBuf, String)>> {
    let folder = debian.join(LIBRARIES);
    let loader = (folder.join(LOADER), format!("lib64/{LOADER}"));
    let place = |library: PathBuf| {
        let name = library.file_name().context("a library without a name")?.to_string_lossy().into_owned();
        Ok((library, format!("{LIBRARIES}/{name}")))
    };
    let libraries = loads(&folder, program).await?.into_iter().map(place);
    std::iter::once(Ok(loader)).chain(libraries).collect()
}

/// The libraries that the packages' own loader gives a program, all from `folder`.
async fn loads(folder: &Path, program: &Path) -> Result<Vec<PathBuf>> {
    let mut loader = Command::new(folder.join(LOADER));
    loader.args(["--inhibit-cache", "--library-path"]).arg(folder).arg("--list").arg(program);
    let listed = run(&mut loader).await.with_context(|| format!("libraries of {}", program.display()))?;
    let libraries = resolved(&listed);
    for library in &libraries {
        let ours = library.starts_with(folder);
        ensure!(ours, "{} needs {}, which no package brings", program.display(), library.display());
    }
    Ok(libraries)
}

/// The paths in the loader's list: `name => path (address)`, or `name => not found`.
fn resolved(listed: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let (_, found) = line.split_once(" => ")?;
        Some(found.split(" (").next().unwrap_or(found).trim().into())
    };
    listed.lines().filter_map(path).collect()
}

/// Links to busybox for what no real tool is there for.
async fn link_applets(root: &Path) -> Result<()> {
    let applets = run(Command::new(root.join("usr/bin/busybox")).arg("--list")).await?;
    for applet in applets.lines() {
        let taken = |dir: &str| root.join(dir).join(applet).symlink_metadata().is_ok();
        if !taken("usr/bin") && !taken("usr/sbin") {
            link("busybox", &root.join("usr/bin").join(applet))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_not_taken_for_a_path_of_ours() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tliba.so.1 => /x/liba.so.1 (0x2)\n\tlibb.so => not found\n";
        assert_eq!(resolved(listed), [PathBuf::from("/x/liba.so.1"), PathBuf::from("not found")]);
    }
}
