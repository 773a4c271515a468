//! The container images that we ship, made by the scripts of `deploy/image/` with which `make image` makes them too.
//!
//! The first layer of each (Debian's files) is also an image of its own: workers have that of the driver from their boot on,
//! and take over from the whole image only the layer with the driver.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::{
    deb::Debian,
    process::run,
    store::{Key, cached},
};
use crate::paths;

/// A program that we ship as an image.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    /// Its name, and its file's.
    pub program: &'static str,
    /// The image's name in the bench; `e2e/installation/` puts it into the manifests.
    pub image: &'static str,
}

/// The CSI driver.
pub const DRIVER: Shipped =
    Shipped { program: "kubevirt-csi-driver", image: "bench.local/kubevirt-csi-driver:bench" };

/// The cloud controller manager.
pub const CLOUD_CONTROLLER_MANAGER: Shipped = Shipped {
    program: "kubevirt-cloud-controller-manager",
    image: "bench.local/kubevirt-cloud-controller-manager:bench",
};

/// File and folder names in the artifacts' folders.
const ARCHIVE: &str = "image.tar";
const ROOT: &str = "root";
const CONFIG: &str = "config.json";

/// An image, in the two forms in which the bench runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShippedImage {
    /// A docker-archive, for the workers' containerd.
    pub archive: PathBuf,
    /// Its layers, unpacked, for infra's nodes.
    pub root: PathBuf,
    /// What its containers run, inside.
    pub entry_point: PathBuf,
    /// Their `PATH`.
    pub search_path: String,
}

/// The first layer of an image.
#[derive(Clone, Debug)]
pub(super) struct Base {
    of: Shipped,
    dir: PathBuf,
}

impl Base {
    /// The image of the first layer alone, a docker-archive.
    pub(super) fn archive(&self) -> PathBuf {
        self.dir.join(format!("{}-base.tar", self.of.program))
    }

    fn root(&self) -> PathBuf {
        self.dir.join(ROOT)
    }
}

/// Lays out the first layer of an image from Debian packages. No pod runs that layer alone.
pub(super) async fn base(of: Shipped, debian: &Debian) -> Result<Base> {
    let key =
        Key::new().text(of.program).text(&debian.key).file(&script("root.sh"))?.file(&script("build.sh"))?;
    let dir = cached("image-base", &key.finish(), async |dir: &Path| {
        let base = Base { of, dir: dir.into() };
        run(Command::new(script("root.sh")).arg(debian.packages()).arg(base.root()).arg(of.program)).await?;
        let mut build = Command::new(script("build.sh"));
        let name = format!("bench.local/{}-base:bench", of.program);
        run(build.arg(base.root()).arg(base.archive()).arg(name)).await?;
        Ok(())
    })
    .await?;
    Ok(Base { of, dir })
}

/// Puts the program, the file `program`, on top.
pub(super) async fn build(base: &Base, program: &Path) -> Result<ShippedImage> {
    let key = Key::new()
        .text(&base.dir.display().to_string())
        .file(program)?
        .text(include_str!("shipped_image.rs"));
    let dir = cached("shipped-image", &key.finish(), async |dir: &Path| {
        let archive = dir.join(ARCHIVE);
        let mut build = Command::new(script("build.sh"));
        run(build.arg(base.root()).arg(&archive).arg(base.of.image).arg(program)).await?;
        unpack(&archive, base, dir).await
    })
    .await?;
    let config = std::fs::read(dir.join(CONFIG)).context("read the image's configuration")?;
    let config: Config = serde_json::from_slice(&config).context("the image's configuration")?;
    let search_path = config.config.env.iter().find_map(|variable| variable.strip_prefix("PATH="));
    Ok(ShippedImage {
        archive: dir.join(ARCHIVE),
        root: dir.join(ROOT),
        entry_point: config.config.entrypoint.first().context("the image has no entry point")?.into(),
        search_path: search_path.context("the image has no PATH")?.to_owned(),
    })
}

/// Unpacks the archive's layers into `<dir>/root`, one over the other as a runtime does (none removes anything), and keeps
/// its configuration.
async fn unpack(archive: &Path, base: &Base, dir: &Path) -> Result<()> {
    let (image, root) = (tempfile::tempdir_in(dir)?, dir.join(ROOT));
    extract(archive, image.path()).await?;
    std::fs::create_dir(&root)?;
    let manifest = manifest(image.path())?;
    for layer in &manifest.layers {
        extract(&image.path().join(layer), &root).await?;
    }
    std::fs::rename(image.path().join(&manifest.config), dir.join(CONFIG))?;

    let first = tempfile::tempdir_in(dir)?;
    extract(&base.archive(), first.path()).await?;
    let same = self::manifest(first.path())?.layers.first() == manifest.layers.first();
    ensure!(same, "the same root gave two layers: workers would take the first one over again");
    Ok(())
}

async fn extract(archive: &Path, to: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    run(tar.args(["--extract", "--numeric-owner", "--directory"]).arg(to).arg("--file").arg(archive))
        .await
        .map(drop)
}

/// A docker-archive's `manifest.json` (Docker Image Specification v1.2), about its one image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    config: String,
    layers: Vec<String>,
}

fn manifest(image: &Path) -> Result<Manifest> {
    let text = std::fs::read(image.join("manifest.json")).context("an archive without a manifest")?;
    let mut images: Vec<Manifest> = serde_json::from_slice(&text).context("the archive's manifest")?;
    images.pop().context("an archive without an image")
}

/// The image's configuration, as far as a container needs it.
#[derive(Deserialize)]
struct Config {
    config: ContainerConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerConfig {
    entrypoint: Vec<String>,
    env: Vec<String>,
}

fn script(name: &str) -> PathBuf {
    paths::repository().join("deploy/image").join(name)
}
