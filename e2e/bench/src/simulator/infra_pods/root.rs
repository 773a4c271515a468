//! The inside of a program's container: a root filesystem of its own, as an image without a distribution would have it.
//!
//! [`enter`] runs in the container's process before its program: it builds the root in a mount namespace of its own and
//! becomes the program, so the process id stays. The root of an image is its layers with an empty one over them, as a
//! runtime has it; the root of a program without an image is a tmpfs with the host's `/usr` and a few files of `/etc`
//! (read-only), the program as `/<its file name>`, and empty `/tmp`, `/run` and `/var`. In both: `/proc`, `/sys` and `/dev`,
//! and the pod's volumes. Nothing else of the host is visible inside, and no mount of it is visible outside.
//!
//! What it does not do: network, PID and user namespaces, capabilities, cgroups.

use std::{
    convert::Infallible,
    ffi::OsString,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, pivot_root, setgid, setgroups, sethostname, setuid},
};
use serde::{Deserialize, Serialize};

/// The command by which the bench becomes the first process of a container, and calls [`enter`].
pub const COMMAND: &str = "container-init";

/// Directories of the host that hold programs and libraries; links on most distributions (`/bin` → `usr/bin`).
const SYSTEM: [&str; 6] = ["usr", "bin", "sbin", "lib", "lib32", "lib64"];
/// Files of the host's `/etc` that images without a distribution have as well.
const ETC: [&str; 9] = [
    "group",
    "hosts",
    "ld.so.cache",
    "localtime",
    "nsswitch.conf",
    "passwd",
    "resolv.conf",
    "services",
    "ssl",
];
/// Files of `/etc` that a kubelet gives every container.
const KUBELET_ETC: [&str; 2] = ["hosts", "resolv.conf"];
/// Kernel filesystems.
const KERNEL: [&str; 3] = ["proc", "sys", "dev"];
/// Empty directories, and their modes.
const EMPTY: [(&str, u32); 6] = [
    ("run", 0o755),
    ("tmp", 0o1777),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
    ("root", 0o700),
];

/// A container to enter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Its host name.
    pub hostname: String,
    /// An empty directory on which its root is mounted.
    pub root: PathBuf,
    /// The image's content, which stays as it is; absent for a program without an image.
    pub image: Option<PathBuf>,
    /// What is mounted into it.
    pub mounts: Vec<Mount>,
    /// Whether its root can't be written.
    pub read_only: bool,
    /// Where it starts; `/` if absent.
    pub working_directory: Option<PathBuf>,
    /// Its user; root if absent.
    pub user: Option<u32>,
    /// Its group; root's if absent.
    pub group: Option<u32>,
}

/// A file or directory mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Outside.
    pub source: PathBuf,
    /// Inside, absolute.
    pub target: PathBuf,
    /// Whether it can't be written there.
    pub read_only: bool,
}

/// Becomes `command` inside the container that the file `plan` describes. Call it before the process has other threads.
///
/// # Errors
/// When it could not; the process is then in no usable state and has to end.
pub fn enter(plan: &Path, command: &[OsString]) -> Result<Infallible> {
    let text = std::fs::read(plan).with_context(|| format!("read {}", plan.display()))?;
    let plan: Plan = serde_json::from_slice(&text).with_context(|| format!("read {}", plan.display()))?;
    let (program, args) = command.split_first().context("no program was given")?;
    let program = Path::new(program);
    let inner_program = if plan.image.is_some() { program.into() } else { inside(program)? };
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .context("unshare mount and UTS namespaces")?;
    mount_at(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    build(&plan, program)?;
    move_into(&plan.root)?;
    sethostname(&plan.hostname).context("set the host name")?;
    let directory = plan.working_directory.as_deref().unwrap_or(Path::new("/"));
    std::env::set_current_dir(directory).with_context(|| format!("enter {}", directory.display()))?;
    become_user(plan.user, plan.group)?;
    let error = std::process::Command::new(&inner_program).args(args).exec();
    Err(error).with_context(|| format!("execute {}", inner_program.display()))
}

/// Where a program of the host lies in its container: at the top, because folders on the host's way to it may be closed
/// to the container's user.
fn inside(program: &Path) -> Result<PathBuf> {
    let name = program.file_name().with_context(|| format!("{} has no file name", program.display()))?;
    Ok(Path::new("/").join(name))
}

fn build(plan: &Plan, program: &Path) -> Result<()> {
    let root = &plan.root;
    mount_at(Some(Path::new("tmpfs")), root, Some("tmpfs"), MsFlags::MS_NOSUID)?;
    std::fs::set_permissions(root, PermissionsExt::from_mode(0o755)).context("open the root to all")?;
    match &plan.image {
        Some(image) => lay_over(image, root)?,
        None => lay_out_host(root, program)?,
    }
    for name in KERNEL {
        let path = Path::new("/").join(name);
        bind(&Mount { source: path.clone(), target: path, read_only: false }, root)?;
    }
    for mount in in_order(&plan.mounts) {
        bind(mount, root)?;
    }
    if plan.read_only {
        mount_at(None, root, None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY)?;
    }
    Ok(())
}

/// The image's content with an empty layer over it, in which the places of mounts are made. Both halves of that layer lie in
/// the tmpfs that is `root` until the overlay covers it.
fn lay_over(image: &Path, root: &Path) -> Result<()> {
    let (upper, work) = (root.join("upper"), root.join("work"));
    for folder in [&upper, &work] {
        std::fs::create_dir(folder).with_context(|| format!("create {}", folder.display()))?;
        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755))?;
    }
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", image.display(), upper.display(), work.display());
    let overlay = Some("overlay");
    mount(overlay, root, overlay, MsFlags::empty(), Some(layers.as_str()))
        .with_context(|| format!("mount the layers {layers}"))?;
    bind_etc(&KUBELET_ETC, root)
}

fn lay_out_host(root: &Path, program: &Path) -> Result<()> {
    for name in SYSTEM {
        system(root, name)?;
    }
    bind_etc(&ETC, root)?;
    for (name, mode) in EMPTY {
        let path = root.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))
            .with_context(|| format!("set the mode of {}", path.display()))?;
    }
    // Relative, because it is followed before this root is the root.
    std::os::unix::fs::symlink("../run", root.join("var/run")).context("link /var/run")?;
    bind(&Mount { source: program.into(), target: inside(program)?, read_only: true }, root)
}

/// Those of the host's files of `/etc` that exist.
fn bind_etc(names: &[&str], root: &Path) -> Result<()> {
    for name in names {
        let source = Path::new("/etc").join(name);
        if source.exists() {
            bind(&Mount { target: source.clone(), source, read_only: true }, root)?;
        }
    }
    Ok(())
}

/// Outer targets before those inside them.
fn in_order(mounts: &[Mount]) -> Vec<&Mount> {
    let mut mounts: Vec<&Mount> = mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.target.components().count());
    mounts
}

fn system(root: &Path, name: &str) -> Result<()> {
    let source = Path::new("/").join(name);
    let Ok(metadata) = source.symlink_metadata() else { return Ok(()) };
    if metadata.is_symlink() {
        let to = std::fs::read_link(&source).with_context(|| format!("read {}", source.display()))?;
        return std::os::unix::fs::symlink(to, root.join(name))
            .with_context(|| format!("link {}", source.display()));
    }
    bind(&Mount { target: source.clone(), source, read_only: true }, root)
}

fn bind(what: &Mount, root: &Path) -> Result<()> {
    let inside = what
        .target
        .strip_prefix("/")
        .with_context(|| format!("{} is not absolute", what.target.display()))?;
    let target = root.join(inside);
    make_target(&what.source, &target)?;
    mount_at(Some(&what.source), &target, None, MsFlags::MS_BIND | MsFlags::MS_REC)?;
    if what.read_only {
        mount_at(None, &target, None, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
    }
    Ok(())
}

fn make_target(source: &Path, target: &Path) -> Result<()> {
    let doing = || format!("make a place for {}", target.display());
    if source.metadata().with_context(|| format!("read the metadata of {}", source.display()))?.is_dir() {
        return std::fs::create_dir_all(target).with_context(doing);
    }
    std::fs::create_dir_all(target.parent().unwrap_or(target)).with_context(doing)?;
    std::fs::OpenOptions::new().create(true).append(true).open(target).map(drop).with_context(doing)
}

fn move_into(root: &Path) -> Result<()> {
    std::env::set_current_dir(root).context("enter the new root")?;
    // The old root comes to lie on the new one and is then taken away (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".").context("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("let go of the old root")
}

fn become_user(user: Option<u32>, group: Option<u32>) -> Result<()> {
    if user.is_some() || group.is_some() {
        setgroups(&[]).context("drop the supplementary groups")?;
    }
    if let Some(group) = group {
        setgid(Gid::from_raw(group)).context("set the group")?;
    }
    if let Some(user) = user {
        setuid(Uid::from_raw(user)).context("set the user")?;
    }
    Ok(())
}

fn mount_at(source: Option<&Path>, target: &Path, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(source, target, kind, flags, None::<&str>).with_context(|| {
        format!("mount {} on {}", source.unwrap_or(Path::new("nothing")).display(), target.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_mounts_come_first() {
        let at = |target: &str| Mount { source: "/s".into(), target: target.into(), read_only: false };
        let mounts = [at("/a/b/c"), at("/a"), at("/a/b")];
        let targets: Vec<_> =
            in_order(&mounts).into_iter().map(|mount| mount.target.display().to_string()).collect();
        assert_eq!(targets, ["/a", "/a/b", "/a/b/c"]);
    }
}
