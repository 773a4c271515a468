//! Debian packages of the worker and of the driver's image: downloaded with apt, which checks their signatures, and
//! unpacked; nothing is installed.
//!
//! A few packages are named; the libraries they depend on are followed, other dependencies (perl, python, maintainer
//! scripts' tools) are not. Whether that was enough is checked where the image is laid out.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::{
    host,
    process::run,
    store::{Key, cached},
};
use crate::{paths, report::Progress};

/// Packages with something in the worker, in an image of test pods, or in the driver's image (`deploy/image/packages.sh` names those of
/// the driver's image).
const USER_SPACE: &[&str] = &[
    "base-files",
    "busybox-static",
    "ca-certificates",
    "coreutils",
    "crun",
    "e2fsprogs",
    "kmod",
    "mount",
    "nftables",
    "qemu-guest-agent",
    "socat",
    "udev",
    "util-linux",
    "xfsprogs",
];

/// The kernel for virtual machines; this package only depends on the current one.
const KERNEL: &str = "linux-image-cloud-amd64";

/// The name of the packages in the store.
const NAME: &str = "debian";

/// Unpacked packages.
#[derive(Clone, Debug)]
pub(super) struct Debian {
    dir: PathBuf,
    /// Identifies their exact versions.
    pub(super) key: String,
}

impl Debian {
    /// The store names the folder by its key.
    fn in_folder(dir: PathBuf) -> Self {
        let key = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { dir, key }
    }

    /// The user space's tree, `/bin` and its like merged into `/usr`.
    pub(super) fn user_space(&self) -> PathBuf {
        self.dir.join("user-space")
    }

    /// The user space's packages as they were downloaded.
    pub(super) fn packages(&self) -> PathBuf {
        self.dir.join("packages")
    }

    /// The kernel package's tree, with `modules.dep`.
    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("kernel")
    }
}

/// The packages in the versions that apt knows as the newest. Where apt can't be asked or doesn't reach its servers,
/// those that were unpacked last.
pub(super) async fn unpacked(progress: &dyn Progress) -> Result<Debian> {
    let error = match current(progress).await {
        Ok(debian) => return Ok(debian),
        Err(error) => error,
    };
    let Some(dir) = newest_in_store()? else {
        return Err(error);
    };
    progress.step(&format!("apt gives no packages ({error:#}); using those in {}", dir.display()));
    Ok(Debian::in_folder(dir))
}

async fn current(progress: &dyn Progress) -> Result<Debian> {
    match fetch(progress).await {
        Ok(debian) => Ok(debian),
        // Absent lists, or lists that name a version which the servers have replaced since.
        Err(first) if nix::unistd::geteuid().is_root() => {
            progress.step(&format!("refreshing apt's package lists, because: {first:#}"));
            host::update().await?;
            fetch(progress).await
        }
        Err(error) => Err(error.context("as root, apt-get update may help")),
    }
}

async fn fetch(progress: &dyn Progress) -> Result<Debian> {
    let selection = Selection::resolve().await?;
    let key = selection.key().await?;
    let dir = cached(NAME, &key, async |dir: &Path| {
        progress.step(&format!("downloading {} Debian packages", selection.user_space.len() + 1));
        unpack(&selection, dir).await
    })
    .await?;
    Ok(Debian::in_folder(dir))
}

/// Package names.
#[derive(Debug)]
struct Selection {
    user_space: BTreeSet<String>,
    kernel: String,
}

impl Selection {
    async fn resolve() -> Result<Self> {
        let mut apt = Command::new("apt-cache");
        apt.args([
            "depends",
            "--recurse",
            "--no-recommends",
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
        ]);
        apt.args(["--no-replaces", "--no-enhances"]).args(USER_SPACE).arg(KERNEL);
        let graph = dependencies(&run(&mut apt).await?);
        let kernel = graph.get(KERNEL).into_iter().flatten().find(|name| name.starts_with("linux-image-"));
        let kernel = kernel.with_context(|| format!("{KERNEL} names no kernel"))?.clone();
        Ok(Self { user_space: with_libraries(&graph, USER_SPACE), kernel })
    }

    /// apt names file, size and digest of what it would download.
    async fn key(&self) -> Result<String> {
        let mut apt = Command::new("apt-get");
        apt.args(["--print-uris", "-qq", "download", &self.kernel]).args(&self.user_space);
        let listed = run(&mut apt).await?;
        let mut lines: Vec<&str> =
            listed.lines().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest).collect();
        ensure!(
            lines.len() > self.user_space.len(),
            "apt names {} of {} packages",
            lines.len(),
            self.user_space.len()
        );
        lines.sort_unstable();
        Ok(Key::new().text(&lines.join("\n")).text(include_str!("deb.rs")).finish())
    }
}

/// Downloads into a scratch folder and unpacks into `dir`.
async fn unpack(selection: &Selection, dir: &Path) -> Result<()> {
    let debian = Debian::in_folder(dir.into());
    let user_space = debian.user_space();
    for folder in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(user_space.join("usr").join(folder))?;
        std::os::unix::fs::symlink(format!("usr/{folder}"), user_space.join(folder))?;
    }
    let names: Vec<&str> = selection.user_space.iter().map(String::as_str).collect();
    download_and_extract(&names, &user_space, &debian.packages()).await?;

    let kernel = debian.kernel();
    let scratch = tempfile::tempdir_in(dir)?;
    download_and_extract(&[&selection.kernel], &kernel, scratch.path()).await?;
    if !kernel.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", kernel.join("lib"))?;
    }
    for entry in std::fs::read_dir(kernel.join("lib/modules")).context("the kernel package has no modules")? {
        run(Command::new("depmod").arg("-b").arg(&kernel).arg(entry?.file_name())).await?;
    }
    Ok(())
}

/// Downloads packages into the folder `packages` and unpacks them into `tree`.
async fn download_and_extract(names: &[&str], tree: &Path, packages: &Path) -> Result<()> {
    std::fs::create_dir_all(packages)?;
    let mut apt = Command::new("apt-get");
    // apt's own unprivileged user can't write into this folder; signatures are checked all the same.
    apt.args(["-o", "APT::Sandbox::User=root", "-qq", "download"]).args(names).current_dir(packages);
    run(&mut apt).await?;
    std::fs::create_dir_all(tree)?;
    for entry in std::fs::read_dir(packages)? {
        extract(&entry?.path(), tree).await?;
    }
    Ok(())
}

/// Unpacks one package; links like `/bin` stay links, which `dpkg-deb --extract` doesn't promise.
async fn extract(package: &Path, tree: &Path) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("start dpkg-deb")?;
    let archive: Stdio = dpkg.stdout.take().context("dpkg-deb has no output")?.try_into()?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--directory"]).arg(tree);
    let status = tar.stdin(archive).status().await.context("run tar")?;
    ensure!(status.success() && dpkg.wait().await?.success(), "can't unpack {}", package.display());
    Ok(())
}

/// The unpacked packages that are youngest in the store.
fn newest_in_store() -> Result<Option<PathBuf>> {
    let mut newest: Option<(SystemTime, PathBuf)> = None;
    for entry in std::fs::read_dir(paths::artifacts()?)? {
        let entry = entry?;
        let ours = entry.file_name().to_string_lossy().starts_with(&format!("{NAME}-"));
        let made = entry.metadata()?.modified()?;
        if ours && newest.as_ref().is_none_or(|(when, _)| made > *when) {
            newest = Some((made, entry.path()));
        }
    }
    Ok(newest.map(|(_, dir)| dir))
}

/// Reads `apt-cache depends`: a package at the line's start, its dependencies below it. Of alternatives (`|Depends`)
/// the first counts, as apt itself prefers it; virtual packages (`<x>`) are left out.
fn dependencies(listed: &str) -> BTreeMap<String, Vec<String>> {
    let mut graph: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut package = String::new();
    let mut chosen = false;
    for line in listed.lines() {
        if !line.starts_with(' ') {
            package = line.trim().to_string();
            graph.entry(package.clone()).or_default();
            chosen = false;
        } else if let Some((kind, name)) = line.split_once("epends: ") {
            let virtual_package = name.starts_with('<');
            if !chosen && !virtual_package {
                graph.entry(package.clone()).or_default().push(name.to_string());
            }
            // A bar means that the next line is another way to satisfy the same dependency.
            chosen = kind.contains('|') && (chosen || !virtual_package);
        }
    }
    graph
}

/// `names` and the libraries that they need, and that these need; libgcc's licence is in a package of its own.
fn with_libraries(graph: &BTreeMap<String, Vec<String>>, names: &[&str]) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<String> = names.iter().map(ToString::to_string).collect();
    while let Some(name) = open.pop() {
        let needs = graph.get(&name).into_iter().flatten();
        let wanted = |need: &str| need.starts_with("lib") || need.starts_with("gcc-");
        open.extend(needs.filter(|need| wanted(need) && !all.contains(*need)).cloned());
        all.insert(name);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "udev\n  PreDepends: init-helpers\n |Depends: libfirst\n  Depends: libsecond\n  Depends: <libvirtual>\n    libreal\n  Depends: libc6\nlibc6\n  Depends: libgcc\nlibfirst\n";

    #[test]
    fn of_alternatives_the_first_is_taken() {
        let graph = dependencies(LISTED);
        assert_eq!(graph["udev"], ["init-helpers", "libfirst", "libc6"]);
    }

    #[test]
    fn only_libraries_are_followed() {
        let all = with_libraries(&dependencies(LISTED), &["udev"]);
        assert_eq!(
            all.iter().map(String::as_str).collect::<Vec<_>>(),
            ["libc6", "libfirst", "libgcc", "udev"]
        );
    }
}
