//! Stands for the **storage system of the infra cluster** and its CSI sidecar external-provisioner: PVCs become PVs.
//! A block PV's data is one sparse file, a device's stand-in. A filesystem PV is a folder, in which CDI's importer
//! (`infra_pods`) makes the `disk.img`. The virt-handler simulator plugs the one or the other into machines.
//!
//! Rules (sig-storage-lib-external-provisioner): a pending PVC of our provisioner becomes a PV named
//! `pvc-<uid>` with the size, access modes and volume mode that it asks for; a `WaitForFirstConsumer` PVC only once the
//! scheduler has selected a node; PVCs with a data source of CDI are left to CDI's populator, which re-binds the PV of a
//! PVC of its own; a Released PV with reclaim policy Delete goes away with its file. Events as external-provisioner
//! words them. kube-controller-manager binds.
//!
//! What it does not do: snapshots, clones, expansion, topology, and attaching: infra pods need no device here. Nothing
//! keeps a folder's files within the size of its PV.

mod plan;

pub(super) use plan::{BLOCK, bytes};

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
    runtime::{Controller, controller::Action, watcher},
};
use serde::{Deserialize, Serialize};

use super::{
    Running,
    event::{Kind, Recorder},
    fault_plan::{FaultPlan, Hold, Pending, Verdict, selects, verdict},
    queue::{self, conflict, not_found},
};
use crate::cluster::{ApiServer, storage_classes::PROVISIONER};

/// The component that its events come from.
const COMPONENT: &str = "storage.bench.local_external-provisioner";
/// external-provisioner's first retry after a failure (`--retry-interval-start`); it doubles there, and not here.
const RETRY: Duration = Duration::from_secs(1);

/// The faults that the infra storage can inject.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Provisioning comes late, or not at all.
    Hold {
        /// How late.
        hold: Hold,
        /// Of which PVCs.
        #[serde(default)]
        at: Selector,
    },
    /// Provisioning fails with this gRPC answer of the storage's CSI driver.
    Refuse {
        /// The gRPC code's name, `InvalidArgument`.
        code: String,
        /// The driver's message.
        message: String,
        /// Of which PVCs.
        #[serde(default)]
        at: Selector,
    },
    /// A class has only so many bytes for all its volumes; a volume that exceeds them fails with `ResourceExhausted`.
    Capacity {
        /// The storage class.
        class: String,
        /// The bytes.
        bytes: u64,
    },
}

/// Which PVCs a fault is about; what is absent selects all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selector {
    /// The PVC's namespace.
    pub namespace: Option<String>,
    /// The PVC's storage class.
    pub class: Option<String>,
    /// The PVC's name.
    pub claim: Option<String>,
}

impl Selector {
    fn selects(&self, pvc: &PersistentVolumeClaim, class: &str) -> bool {
        selects(self.namespace.as_deref(), &pvc.namespace().unwrap_or_default())
            && selects(self.class.as_deref(), class)
            && selects(self.claim.as_deref(), &pvc.name_any())
    }
}

/// What the simulator needs.
pub struct Options {
    /// The infra cluster. Its storage classes and `CSIDriver` are there already (`cluster::storage_classes`).
    pub infra: ApiServer,
    /// The folder of the images.
    pub volumes: PathBuf,
    /// The faults to inject.
    pub faults: FaultPlan<Fault>,
}

/// The file in a filesystem volume that is the disk (CDI's `DiskImageName`, which virt-handler opens).
const DISK_IMAGE: &str = "disk.img";

/// The image of a PV that a machine gets: the device, or the disk in the filesystem. Of a filesystem PV it exists once
/// CDI has populated it. `volume_mode` is the claim's or the PV's; absent it means `Filesystem`.
pub fn image(volumes: &Path, pv: &str, volume_mode: Option<&str>) -> PathBuf {
    if volume_mode == Some(BLOCK) { device(volumes, pv) } else { folder(volumes, pv).join(DISK_IMAGE) }
}

fn device(volumes: &Path, pv: &str) -> PathBuf {
    volumes.join(format!("{pv}.img"))
}

fn folder(volumes: &Path, pv: &str) -> PathBuf {
    volumes.join(pv)
}

/// Starts provisioning.
pub fn start(options: Options) -> Running {
    let client = options.infra.client;
    let storage = Arc::new(Storage {
        client: client.clone(),
        volumes: options.volumes,
        faults: options.faults,
        pending: Pending::default(),
        events: Recorder::new(COMPONENT),
    });
    let claims =
        Controller::new(Api::<PersistentVolumeClaim>::all(client.clone()), watcher::Config::default())
            .reconcile_all_on(storage.faults.changes());
    let volumes = Controller::new(Api::<PersistentVolume>::all(client), watcher::Config::default());
    Running::new(vec![
        queue::run("infra-storage", claims, Arc::clone(&storage), provision),
        queue::run("infra-storage", volumes, storage, delete),
    ])
}

struct Storage {
    client: Client,
    volumes: PathBuf,
    faults: FaultPlan<Fault>,
    pending: Pending<String>,
    events: Recorder,
}

async fn provision(pvc: Arc<PersistentVolumeClaim>, storage: Arc<Storage>) -> Result<Action> {
    let uid = pvc.uid().unwrap_or_default();
    let Some(class) = storage.class(&pvc).await? else {
        storage.pending.retain(|pending| *pending != uid);
        return Ok(Action::await_change());
    };
    match storage.held(&pvc, &class.name_any()) {
        Verdict::Go => {}
        Verdict::Wait(left) => return Ok(Action::requeue(left)),
        Verdict::Stuck => return Ok(Action::await_change()),
    }
    storage.pending.retain(|pending| *pending != uid);
    let name = plan::pv_name(&pvc);
    if storage.pvs().get_metadata_opt(&name).await?.is_some() {
        // Provisioned; kube-controller-manager is about to bind it.
        return Ok(Action::await_change());
    }
    if let Some(refusal) = storage.refusal(&pvc, &class.name_any(), &name).await? {
        let message =
            format!("failed to provision volume with StorageClass \"{}\": {refusal}", class.name_any());
        storage.tell(&pvc, (Kind::Warning, "ProvisioningFailed", &message)).await;
        return Ok(Action::requeue(RETRY));
    }
    storage.create(&pvc, &class, &name).await?;
    Ok(Action::await_change())
}

async fn delete(pv: Arc<PersistentVolume>, storage: Arc<Storage>) -> Result<Action> {
    if plan::is_to_be_deleted(&pv) {
        let name = pv.name_any();
        remove(&storage.volumes, &name).await?;
        let this_one = Preconditions { uid: pv.uid(), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(this_one), ..DeleteParams::default() };
        match storage.pvs().delete(&name, &params).await {
            Err(error) if !not_found(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(Action::await_change())
}

impl Storage {
    fn pvs(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    /// The class of a PVC that is to be provisioned now; `None` when there is nothing to do.
    async fn class(&self, pvc: &PersistentVolumeClaim) -> Result<Option<StorageClass>> {
        let name = pvc.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
        if !plan::is_ours(pvc) || name.is_empty() {
            return Ok(None);
        }
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let class = classes.get_opt(&name).await?;
        Ok(class.filter(|class| class.provisioner == PROVISIONER && plan::may_begin(pvc, class)))
    }

    fn held(&self, pvc: &PersistentVolumeClaim, class: &str) -> Verdict {
        let holds = self.faults.active().into_iter().filter_map(|fault| match fault {
            Fault::Hold { hold, at } if at.selects(pvc, class) => Some(hold),
            _ => None,
        });
        verdict(self.pending.waited(pvc.uid().unwrap_or_default()), holds)
    }

    /// The CSI driver's refusal, if it refuses.
    async fn refusal(&self, pvc: &PersistentVolumeClaim, class: &str, pv: &str) -> Result<Option<String>> {
        for fault in self.faults.active() {
            match fault {
                Fault::Refuse { code, message, at } if at.selects(pvc, class) => {
                    return Ok(Some(format!("rpc error: code = {code} desc = {message}")));
                }
                Fault::Capacity { class: full, bytes } if full == class => {
                    let pvs = self.pvs().list(&ListParams::default()).await?;
                    let free = bytes.saturating_sub(plan::used(&pvs.items, class, pv));
                    let wanted = plan::requested(pvc)?;
                    if wanted > free {
                        return Ok(Some(format!(
                            "rpc error: code = ResourceExhausted desc = {wanted} bytes requested, {free} bytes free"
                        )));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    async fn create(&self, pvc: &PersistentVolumeClaim, class: &StorageClass, name: &str) -> Result<()> {
        let key = format!("{}/{}", pvc.namespace().unwrap_or_default(), pvc.name_any());
        let begin = format!("External provisioner is provisioning volume for claim \"{key}\"");
        self.tell(pvc, (Kind::Normal, "Provisioning", &begin)).await;
        self.store(pvc, name).await?;
        match self.pvs().create(&PostParams::default(), &plan::persistent_volume(pvc, class)?).await {
            // Made by an earlier try whose answer was lost.
            Err(error) if !conflict(&error) => return Err(error.into()),
            _ => {}
        }
        let done = format!("Successfully provisioned volume {name}");
        self.tell(pvc, (Kind::Normal, "ProvisioningSucceeded", &done)).await;
        Ok(())
    }

    /// Makes the place of a PV's data: a device of its size, or an empty filesystem.
    async fn store(&self, pvc: &PersistentVolumeClaim, name: &str) -> Result<()> {
        if plan::volume_mode(pvc) == Some(BLOCK) {
            return create_image(&device(&self.volumes, name), plan::requested(pvc)?).await;
        }
        let folder = folder(&self.volumes, name);
        tokio::fs::create_dir_all(&folder).await.with_context(|| format!("create {}", folder.display()))
    }

    async fn tell(&self, pvc: &PersistentVolumeClaim, words: (Kind, &str, &str)) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            namespace: pvc.namespace(),
            name: Some(pvc.name_any()),
            uid: pvc.uid(),
            ..ObjectReference::default()
        };
        self.events.tell(&self.client, &about, words).await;
    }
}

/// A sparse file of zeros; one that is there keeps its content.
pub(super) async fn create_image(path: &Path, bytes: u64) -> Result<()> {
    let doing = || format!("create {}", path.display());
    let file =
        tokio::fs::OpenOptions::new().create(true).append(true).open(path).await.with_context(doing)?;
    file.set_len(bytes).await.with_context(doing)
}

/// Removes the data of a PV, of whichever mode.
async fn remove(volumes: &Path, pv: &str) -> Result<()> {
    let (device, folder) = (device(volumes, pv), folder(volumes, pv));
    for (path, removed) in [
        (&device, tokio::fs::remove_file(&device).await),
        (&folder, tokio::fs::remove_dir_all(&folder).await),
    ] {
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_image_is_sparse_and_keeps_its_content() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a folder");
        let path = image(dir.path(), "pvc-1", Some(BLOCK));
        create_image(&path, 1 << 30).await.expect("created");
        let file = std::fs::metadata(&path).expect("a file");
        assert_eq!(file.len(), 1 << 30);
        assert!(file.blocks() < 64, "{} blocks", file.blocks());
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|f| {
                use std::os::unix::fs::FileExt;
                f.write_all_at(b"data", 0)
            })
            .expect("written");
        create_image(&path, 1 << 30).await.expect("created again");
        assert_eq!(&std::fs::read(&path).expect("read")[..4], b"data");
        remove(dir.path(), "pvc-1").await.expect("removed");
        assert!(!path.exists());
        remove(dir.path(), "pvc-1").await.expect("removed again");
    }

    #[tokio::test]
    async fn a_filesystem_goes_with_the_disk_in_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = image(dir.path(), "pvc-1", None);
        assert_eq!(disk, dir.path().join("pvc-1/disk.img"));
        std::fs::create_dir(dir.path().join("pvc-1")).expect("a filesystem");
        create_image(&disk, 1 << 20).await.expect("a disk in it");
        remove(dir.path(), "pvc-1").await.expect("removed");
        assert!(!dir.path().join("pvc-1").exists());
    }

    #[test]
    fn faults_are_plain_json() {
        let text = r#"{"refuse": {"code": "InvalidArgument", "message": "no", "at": {"class": "slow"}}}"#;
        let fault: Fault = serde_json::from_str(text).expect("a fault");
        let pvc = PersistentVolumeClaim::default();
        assert!(
            matches!(&fault, Fault::Refuse { at, .. } if at.selects(&pvc, "slow") && !at.selects(&pvc, "fast"))
        );
    }
}
