//! The six-step flow of KubeVirt CSI, and the way back: a claim in the guest becomes a file in a pod; the pod goes, the
//! disk is unplugged, and another pod reads the file.
//!
//! The steps are awaited at the same time and reported in the order in which they come: the guest's PV may be bound long
//! before the disk is plugged.

use std::{future::ready, time::Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Pod},
    storage::v1::VolumeAttachment,
};
use kube::{
    Api, Client,
    api::{AttachParams, DeleteParams, ListParams, LogParams, PostParams},
};
use tokio::io::AsyncReadExt;

use super::{
    Chain, Deadline, HCP_NAMESPACE, Narrator, PodOnVolume,
    guest_objects::{MOUNT_PATH, claim, pod},
    infra_objects::{data_volumes, hotplugged},
    until, until_gone,
};

/// What the first pod writes and the second must read.
const GREETING: &str = "written by the first pod";

/// A step of the flow, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The user created a PersistentVolumeClaim in the guest.
    GuestClaim,
    /// The driver mirrored it as a DataVolume in the infra namespace.
    DataVolume,
    /// Infra storage provisioned a PersistentVolume and it is bound.
    InfraVolume,
    /// The disk is plugged into the worker's virtual machine and Ready.
    Hotplug,
    /// A PersistentVolume appeared in the guest and the claim is bound.
    GuestVolume,
    /// The pod runs on the worker and wrote its file.
    FirstPod,
    /// The pod is deleted; the disk is unplugged and the attachment gone.
    Unplugged,
    /// A new pod read the file.
    SecondPod,
    /// The claim is deleted; nothing is left in infra.
    Deleted,
}

/// One run of the flow.
#[derive(Clone)]
pub struct SixSteps<'a> {
    /// A client of the infra cluster.
    pub infra: Client,
    /// A client of the guest cluster.
    pub guest: Client,
    /// The guest namespace to work in; it exists.
    pub namespace: &'a str,
    /// Prefix of the names of claim and pods.
    pub name: &'a str,
    /// The guest StorageClass.
    pub storage_class: &'a str,
    /// The worker of the first pod.
    pub first_worker: &'a str,
    /// The worker of the second pod; may be the same.
    pub second_worker: &'a str,
}

impl SixSteps<'_> {
    /// Runs the flow forth and back and returns the chain as it was while the first pod ran.
    ///
    /// # Errors
    /// When a step is not seen within its deadline, with the state seen last.
    pub async fn run(&self, narrator: &Narrator<'_, Step>) -> Result<Chain> {
        let started = Instant::now();
        let saw = |step: Step, detail: &str| narrator(step, detail, started.elapsed());

        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.guest.clone(), self.namespace);
        let created = claims
            .create(&PostParams::default(), &claim(self.name, self.storage_class, "Filesystem"))
            .await?;
        let uid = created.metadata.uid.context("the claim has no uid")?;
        // external-provisioner's name for a claim's volume; legal as it stands, so the driver keeps it.
        let volume = format!("pvc-{uid}");
        saw(Step::GuestClaim, &format!("{}/{}", self.namespace, self.name));

        let writer = format!("{}-writer", self.name);
        let script = format!("echo '{GREETING}' > {MOUNT_PATH}/greeting; sync; cat {MOUNT_PATH}/greeting");
        self.create_pod(&writer, self.first_worker, &script).await?;
        tokio::try_join!(
            self.data_volume_appears(&volume, &saw),
            self.infra_volume_is_bound(&volume, &saw),
            self.disk_is_ready(&volume, &saw),
            self.guest_volume_is_bound(&saw),
            self.pod_printed(&writer, Step::FirstPod, &saw),
        )?;
        let chain = self.chain(&volume, &writer).await?;

        self.delete_pod(&writer).await?;
        self.disk_is_gone(&volume, &chain.guest_volume).await?;
        saw(Step::Unplugged, &format!("{} no longer has the disk", chain.virtual_machine));

        let reader = format!("{}-reader", self.name);
        self.create_pod(&reader, self.second_worker, &format!("cat {MOUNT_PATH}/greeting")).await?;
        self.pod_printed(&reader, Step::SecondPod, &saw).await?;

        self.delete_pod(&reader).await?;
        claims.delete(self.name, &DeleteParams::default()).await?;
        self.nothing_is_left(&volume).await?;
        saw(Step::Deleted, "the DataVolume is gone from infra");
        Ok(chain)
    }

    async fn create_pod(&self, name: &str, worker: &str, script: &str) -> Result<()> {
        let wanted =
            PodOnVolume { name, claim: self.name, node: Some(worker), volume_mode: "Filesystem", script };
        self.pods().create(&PostParams::default(), &pod(&wanted)).await?;
        Ok(())
    }

    async fn delete_pod(&self, name: &str) -> Result<()> {
        self.pods().delete(name, &DeleteParams::default()).await?;
        until_gone(&self.pods(), name, "pod", Deadline::PodStart).await
    }

    async fn data_volume_appears(&self, volume: &str, saw: &(impl Fn(Step, &str) + Sync)) -> Result<()> {
        let data_volumes = data_volumes(&self.infra, HCP_NAMESPACE);
        until("the DataVolume in infra", Deadline::Reaction, async || {
            Ok(data_volumes.get_opt(volume).await?.map(|_| ()).ok_or_else(|| "absent".to_owned()))
        })
        .await?;
        saw(Step::DataVolume, &format!("{HCP_NAMESPACE}/{volume}"));
        Ok(())
    }

    async fn infra_volume_is_bound(&self, volume: &str, saw: &(impl Fn(Step, &str) + Sync)) -> Result<()> {
        let bound = bound_volume(&self.infra, HCP_NAMESPACE, volume, "the infra PersistentVolume").await?;
        saw(Step::InfraVolume, &bound);
        Ok(())
    }

    async fn guest_volume_is_bound(&self, saw: &(impl Fn(Step, &str) + Sync)) -> Result<()> {
        let bound =
            bound_volume(&self.guest, self.namespace, self.name, "the guest PersistentVolume").await?;
        saw(Step::GuestVolume, &bound);
        Ok(())
    }

    async fn disk_is_ready(&self, volume: &str, saw: &(impl Fn(Step, &str) + Sync)) -> Result<()> {
        let disk = until("the hotplugged disk", Deadline::PodStart, async || {
            let found = hotplugged(&self.infra, HCP_NAMESPACE, volume).await?;
            Ok(found.iter().find(|disk| disk.phase == "Ready").cloned().ok_or_else(|| format!("{found:?}")))
        })
        .await?;
        saw(Step::Hotplug, &format!("{}, serial {}", disk.vmi, disk.serial));
        Ok(())
    }

    async fn pod_printed(&self, name: &str, step: Step, saw: &(impl Fn(Step, &str) + Sync)) -> Result<()> {
        until("the pod's greeting", Deadline::PodStart, async || {
            let Some(pod) = self.pods().get_opt(name).await? else {
                return Ok(Err("the pod does not exist".to_owned()));
            };
            if phase(&pod) != "Running" {
                return Ok(Err(format!("pod {name} is {}: {}", phase(&pod), self.last_event(name).await?)));
            }
            let log = self.pods().logs(name, &LogParams::default()).await?;
            Ok(if log.trim() == GREETING { Ok(()) } else { Err(format!("it printed {log:?}")) })
        })
        .await?;
        saw(step, &format!("{name} printed: {GREETING}"));
        Ok(())
    }

    async fn disk_is_gone(&self, volume: &str, guest_volume: &str) -> Result<()> {
        let attachments: Api<VolumeAttachment> = Api::all(self.guest.clone());
        until("the unplugged disk", Deadline::PodStart, async || {
            let left = hotplugged(&self.infra, HCP_NAMESPACE, volume).await?;
            let attached = attachments.list(&ListParams::default()).await?;
            let of_volume = attached
                .items
                .iter()
                .any(|a| a.spec.source.persistent_volume_name.as_deref() == Some(guest_volume));
            Ok(if left.is_empty() && !of_volume {
                Ok(())
            } else {
                Err(format!("{left:?}, attachment: {of_volume}"))
            })
        })
        .await
    }

    async fn nothing_is_left(&self, volume: &str) -> Result<()> {
        let data_volumes = data_volumes(&self.infra, HCP_NAMESPACE);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.infra.clone(), HCP_NAMESPACE);
        until("the end of the infra volume", Deadline::PodStart, async || {
            let data_volume = data_volumes.get_opt(volume).await?.is_some();
            let claim = claims.get_opt(volume).await?.is_some();
            Ok(if data_volume || claim {
                Err(format!("DataVolume: {data_volume}, claim: {claim}"))
            } else {
                Ok(())
            })
        })
        .await
    }

    /// The newest event about a pod, for messages.
    async fn last_event(&self, pod: &str) -> Result<String> {
        let events: Api<k8s_openapi::api::core::v1::Event> =
            Api::namespaced(self.guest.clone(), self.namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={pod}"));
        let list = events.list(&about).await?;
        Ok(list.items.last().and_then(|event| event.message.clone()).unwrap_or_default())
    }

    async fn chain(&self, volume: &str, pod: &str) -> Result<Chain> {
        let guest_volume =
            bound_volume(&self.guest, self.namespace, self.name, "the guest PersistentVolume").await?;
        let infra_volume =
            bound_volume(&self.infra, HCP_NAMESPACE, volume, "the infra PersistentVolume").await?;
        let disk =
            hotplugged(&self.infra, HCP_NAMESPACE, volume).await?.pop().context("the disk vanished")?;
        let mounts = self.output_of(pod, &["cat", "/proc/self/mountinfo"]).await?;
        let (device, mount) = mount_at(&mounts, MOUNT_PATH)
            .with_context(|| format!("no mount at {MOUNT_PATH} in the pod: {mounts}"))?;
        Ok(Chain {
            guest_claim: format!("{}/{}", self.namespace, self.name),
            guest_volume,
            data_volume: volume.to_owned(),
            infra_claim: volume.to_owned(),
            infra_volume,
            virtual_machine: disk.vmi,
            serial: disk.serial,
            device,
            mount,
        })
    }

    /// What a command in a pod printed, through `exec` of the guest's API server.
    async fn output_of(&self, pod: &str, command: &[&str]) -> Result<String> {
        let params = AttachParams::default().stdout(true).stderr(false);
        let mut process = self.pods().exec(pod, command.iter().copied(), &params).await?;
        let mut output = String::new();
        process.stdout().context("exec gave no output stream")?.read_to_string(&mut output).await?;
        process.join().await?;
        Ok(output)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.guest.clone(), self.namespace)
    }
}

/// The PersistentVolume that a claim is bound to, when it is.
async fn bound_volume(client: &Client, namespace: &str, name: &str, what: &str) -> Result<String> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    until(what, Deadline::PodStart, async || {
        let Some(claim) = claims.get_opt(name).await? else {
            return Ok(Err("the claim does not exist".to_owned()));
        };
        let phase = claim.status.and_then(|status| status.phase).unwrap_or_default();
        let volume = claim.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
        ready(Ok(if phase == "Bound" { Ok(volume) } else { Err(format!("the claim is {phase}")) })).await
    })
    .await
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("without a status")
}

/// Device and `<fs> at <path>` of the mount at `path` in the text of `/proc/<pid>/mountinfo` (`proc(5)`).
fn mount_at(mountinfo: &str, path: &str) -> Option<(String, String)> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        (mount.split(' ').nth(4)? == path).then_some(())?;
        let mut source = source.split(' ');
        let filesystem = source.next()?;
        Some((source.next()?.to_owned(), format!("{filesystem} at {path}")))
    })
}

#[cfg(test)]
mod tests {
    use super::mount_at;

    #[test]
    fn the_mount_of_a_path_names_device_and_filesystem() {
        let text =
            "100 90 0:40 / / rw - overlay overlay rw\n101 100 8:0 / /data rw,relatime - ext4 /dev/sda rw\n";
        assert_eq!(mount_at(text, "/data"), Some(("/dev/sda".to_owned(), "ext4 at /data".to_owned())));
        assert_eq!(mount_at(text, "/other"), None);
    }
}
