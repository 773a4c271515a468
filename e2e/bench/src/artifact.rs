//! Everything the bench runs that isn't in the machine already: Go programs of Kubernetes, KubeVirt and CDI, Debian
//! packages, container images, the worker's image, and our own programs. Built or downloaded before the sandbox is
//! entered, because the sandbox has no network; kept in the store under a key of all their inputs.

mod cargo;
mod container_image;
mod deb;
mod go;
mod host;
pub mod process;
mod programs;
mod shipped_image;
pub mod store;
pub mod worker_image;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

pub use self::{
    container_image::ANSWERER,
    programs::Programs,
    shipped_image::{CLOUD_CONTROLLER_MANAGER, DRIVER, Shipped, ShippedImage},
};
use self::{
    process::run,
    store::{Key, cached},
    worker_image::{Parts, WorkerImage},
};
use crate::{paths, report::Progress};

/// What [`build`] made. The outer process hands it to the one in the sandbox as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifacts {
    /// Programs of the host's side, and the guest's where a test inspects one.
    pub programs: Programs,
    /// What workers boot from.
    pub worker: WorkerImage,
    /// The driver as it is shipped.
    pub driver_image: ShippedImage,
    /// The cloud controller manager as it is shipped.
    pub ccm_image: ShippedImage,
    /// The images of the pods of Kubernetes' storage tests, one docker-archive.
    pub conformance_images: PathBuf,
    /// Identifies all of it, our own programs included.
    pub key: String,
    /// How long each stage took, in the order of their ends.
    pub stages: Vec<(String, Duration)>,
}

/// Installs the Debian packages that the bench, and the tests of real disks, need and the machine lacks.
pub async fn ensure_host_tools(progress: &dyn Progress) -> Result<()> {
    host::ensure(progress).await
}

/// Builds the end-to-end tests; the program that runs them.
pub async fn suite(progress: &dyn Progress) -> Result<PathBuf> {
    cargo::suite(progress).await
}

/// Builds and downloads what is missing. With everything in the store it takes about a second.
pub async fn build(progress: &dyn Progress) -> Result<Artifacts> {
    let stages = Stages::default();
    stages.time("host tools", host::ensure(progress)).await?;

    // Downloads wait for the network while compilers wait for the processor. The compilers themselves take turns: Go's
    // and Rust's linkers together would want more memory than a small machine has.
    let compile = async {
        let programs = stages.time("go programs", go::build(progress)).await?;
        Ok::<_, anyhow::Error>((programs, stages.time("our programs", cargo::build(progress)).await?))
    };
    let download = stages.time("debian packages", deb::unpacked(progress));
    let ((mut programs, ours), debian) = tokio::try_join!(compile, download)?;

    let helpers = stages.time("guest helpers", guest_helpers()).await?;
    let bases = async {
        let driver = shipped_image::base(DRIVER, &debian).await?;
        Ok((driver, shipped_image::base(CLOUD_CONTROLLER_MANAGER, &debian).await?))
    };
    let (driver_base, ccm_base) = stages.time("bases of our images", bases).await?;
    let images = container_images(&programs, &debian, &helpers);
    let mut images = stages.time("container images", images).await?;
    images.push(driver_base.archive());
    let conformance = conformance_images(&programs, &debian);
    let conformance_images = stages.time("images of the conformance tests", conformance).await?;
    let worker = stages.time("worker image", boot_image(progress, &programs, &debian, &helpers, &images));
    let mut worker = worker.await?;
    let shipped = async {
        let driver_image = shipped_image::build(&driver_base, &ours.driver).await?;
        Ok((driver_image, shipped_image::build(&ccm_base, &ours.ccm).await?))
    };
    let (driver_image, ccm_image) = stages.time("our images", shipped).await?;
    worker.driver = Some(driver_image.archive.clone());
    programs.add(DRIVER.program, ours.driver);
    programs.add(CLOUD_CONTROLLER_MANAGER.program, ours.ccm);
    let key = key_of(&programs, &worker)?;
    let stages = stages.into_inner();
    Ok(Artifacts { programs, worker, driver_image, ccm_image, conformance_images, key, stages })
}

/// The seconds of each stage.
#[derive(Default)]
struct Stages(Mutex<Vec<(String, Duration)>>);

impl Stages {
    async fn time<T>(&self, name: &str, stage: impl Future<Output = Result<T>>) -> Result<T> {
        let began = Instant::now();
        let result = stage.await.with_context(|| format!("artifacts: {name}"))?;
        let mut list = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        list.push((name.to_string(), began.elapsed()));
        Ok(result)
    }

    fn into_inner(self) -> Vec<(String, Duration)> {
        self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Static C programs of the guest: the entropy helper and the pods' pause.
async fn guest_helpers() -> Result<PathBuf> {
    let guest = paths::repository().join("e2e/guest");
    let compiler = run(Command::new("gcc").arg("--version")).await?;
    let mut key = Key::new().text(&compiler);
    for name in HELPERS {
        key = key.file(&guest.join(format!("{name}.c")))?;
    }
    cached("guest-helpers", &key.finish(), async |dir: &Path| {
        for name in HELPERS {
            let mut gcc = Command::new("gcc");
            gcc.args(["-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o"]).arg(dir.join(name));
            run(gcc.arg(guest.join(format!("{name}.c")))).await?;
        }
        Ok(())
    })
    .await
}

const HELPERS: [&str; 2] = ["pause", "reseed"];

/// The images that the bench's pods run beside the driver's.
async fn container_images(programs: &Programs, debian: &deb::Debian, helpers: &Path) -> Result<Vec<PathBuf>> {
    let pause = helpers.join("pause");
    let (answerer, registrar) = (programs.path("answerer")?, programs.path("plugin-registrar")?);
    let key = Key::new().text(&debian.key).file(&pause)?.file(answerer)?.file(registrar)?;
    let key = key.text(include_str!("artifact/container_image.rs")).finish();
    let dir = cached("container-images", &key, async |dir: &Path| {
        container_image::busybox(&debian.user_space().join("usr/bin/busybox"), &dir.join("busybox.tar"))
            .await?;
        container_image::pause(&pause, &dir.join("pause.tar"))?;
        container_image::answerer(answerer, &dir.join("answerer.tar"))?;
        container_image::registrar(registrar, &dir.join("registrar.tar"))
    })
    .await?;
    Ok(["answerer.tar", "busybox.tar", "pause.tar", "registrar.tar"].map(|name| dir.join(name)).into())
}

/// The images of the pods of Kubernetes' storage tests. They are in no worker from its boot on: what runs those tests plugs them,
/// because images take memory of a worker.
async fn conformance_images(programs: &Programs, debian: &deb::Debian) -> Result<PathBuf> {
    const ARCHIVE: &str = "images.tar";
    let listed = run(Command::new(programs.path("external-storage")?).arg("-images")).await?;
    let agnhost = programs.path("agnhost")?;
    let key = Key::new().text(&debian.key).file(agnhost)?.text(&listed);
    let key = key.text(include_str!("artifact/container_image.rs")).finish();
    let dir = cached("conformance-images", &key, async |dir: &Path| {
        let tools = debian.user_space();
        let (busybox, dd) = (tools.join("usr/bin/busybox"), tools.join("usr/bin/dd"));
        let libraries = worker_image::needs(&tools, &dd).await?;
        let parts =
            container_image::StorageTests { busybox: &busybox, dd: &dd, libraries: &libraries, agnhost };
        let names: BTreeMap<&str, &str> = listed.lines().filter_map(|line| line.split_once(' ')).collect();
        container_image::storage_tests(&parts, &names, &dir.join(ARCHIVE)).await
    })
    .await?;
    Ok(dir.join(ARCHIVE))
}

async fn boot_image(
    progress: &dyn Progress,
    programs: &Programs,
    debian: &deb::Debian,
    helpers: &Path,
    images: &[PathBuf],
) -> Result<WorkerImage> {
    let guest = paths::repository().join("e2e/guest");
    let reseed = helpers.join("reseed");
    let mut key = Key::new().text(&debian.key).text(&go::keys_of_node_programs(programs)?).file(&reseed)?;
    for image in images {
        key = key.file(image)?;
    }
    for source in worker_image::RECIPE {
        key = key.text(source);
    }
    let key = key.tree(&guest, &|path| path.extension().is_none_or(|extension| extension != "c"))?.finish();
    let (user_space, kernel) = (debian.user_space(), debian.kernel());
    let parts =
        Parts { debian: &user_space, kernel: &kernel, programs, images, reseed: &reseed, guest: &guest };
    let dir = cached("worker-image", &key, async |dir: &Path| {
        progress.step("packing the worker image");
        worker_image::assemble(&parts, dir).await
    })
    .await?;
    Ok(WorkerImage::in_folder(&dir, key))
}

/// Store folders are named by their keys, so the paths identify what lies there; the driver's image is one of them.
fn key_of(programs: &Programs, worker: &WorkerImage) -> Result<String> {
    Ok(Key::new().text(&serde_json::to_string(programs)?).text(&serde_json::to_string(worker)?).finish())
}
