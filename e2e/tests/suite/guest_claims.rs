//! What a user of the guest does with claims: a class of the test's own, claims with or without a source, pods that print what
//! they find, larger requests, and the events about all that.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use bench::{
    scenario::{
        DEVICE_PATH, Deadline, HCP_NAMESPACE, MOUNT_PATH, PodOnVolume, STORAGE_CLASS, claim, data_volumes,
        pod, until, until_gone,
    },
    simulator::quantity::bytes,
};
use k8s_openapi::{
    api::{
        core::v1::{Event, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::fixture::Fixture;

/// What pods write, and others find.
pub const WRITTEN: &str = "kept";

/// The size of a claim ([`bench::scenario::claim`]), as a quantity and in KiB.
pub const SIZE: &str = "320Mi";
pub const SIZE_KIB: u64 = 320 << 10;

/// Twice that.
pub const GROWN: &str = "640Mi";
pub const GROWN_KIB: u64 = 640 << 10;

/// The parameter with which a StorageClass chooses the filesystem (external-provisioner's).
const FILESYSTEM_PARAMETER: &str = "csi.storage.k8s.io/fstype";

/// Claims and pods in a guest namespace of the test's own.
pub struct Claims<'a> {
    fixture: &'a Fixture,
    api: Api<PersistentVolumeClaim>,
    pods: Api<Pod>,
    classes: Api<StorageClass>,
}

/// What a pod of [`Claims::start`] finds on its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What was written.
    pub content: String,
    /// The size of the filesystem, or of the device.
    pub kib: u64,
}

/// Where a claim's content comes from: another claim, or a snapshot, of the same namespace.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    Claim(&'a str),
    Snapshot(&'a str),
}

impl<'a> Claims<'a> {
    /// Makes the namespace, and a copy of the shipped class with further parameters, both named as the test.
    pub async fn new(fixture: &'a Fixture, parameters: &[(&str, &str)]) -> Result<Self> {
        let namespace = fixture.guest_namespace().await?;
        let classes: Api<StorageClass> = Api::all(fixture.guest.clone());
        let mut class = classes.get(STORAGE_CLASS).await?;
        class.metadata = ObjectMeta { name: Some(fixture.word.clone()), ..ObjectMeta::default() };
        let all = class.parameters.get_or_insert_default();
        all.extend(parameters.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())));
        classes.create(&PostParams::default(), &class).await?;
        Ok(Self {
            fixture,
            api: Api::namespaced(fixture.guest.clone(), &namespace),
            pods: Api::namespaced(fixture.guest.clone(), &namespace),
            classes,
        })
    }

    /// As [`Self::new`], for volumes with a content: a type of filesystem, or `block`. Also the volume mode of their claims.
    pub async fn with_content(
        fixture: &'a Fixture,
        content: &str,
        parameters: &[(&str, &str)],
    ) -> Result<(Self, &'static str)> {
        let mut parameters = parameters.to_vec();
        let mode = if content == "block" {
            "Block"
        } else {
            parameters.push((FILESYSTEM_PARAMETER, content));
            "Filesystem"
        };
        Ok((Self::new(fixture, &parameters).await?, mode))
    }

    /// Creates a claim of [`SIZE`]; the id of its volume.
    pub async fn create(&self, name: &str, volume_mode: &str) -> Result<String> {
        self.create_with(claim(name, &self.fixture.word, volume_mode)).await
    }

    /// Creates a claim of another size, with a source.
    pub async fn create_from(
        &self,
        source: Source<'_>,
        name: &str,
        size: &str,
        volume_mode: &str,
    ) -> Result<String> {
        let mut object = serde_json::to_value(claim(name, &self.fixture.word, volume_mode))?;
        object["spec"]["resources"]["requests"]["storage"] = json!(size);
        object["spec"]["dataSource"] = match source {
            Source::Claim(name) => json!({"kind": "PersistentVolumeClaim", "name": name}),
            Source::Snapshot(name) => {
                json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name})
            }
        };
        self.create_with(serde_json::from_value(object)?).await
    }

    async fn create_with(&self, claim: PersistentVolumeClaim) -> Result<String> {
        let made = self.api.create(&PostParams::default(), &claim).await?;
        Ok(format!("pvc-{}", made.uid().context("a claim without uid")?))
    }

    /// Waits until a claim is bound.
    pub async fn bound(&self, name: &str) -> Result<()> {
        until(&format!("the claim {name} to be bound"), Deadline::PodStart, async || {
            let status = self.api.get(name).await?.status.unwrap_or_default();
            Ok(if status.phase.as_deref() == Some("Bound") { Ok(()) } else { Err(format!("{status:?}")) })
        })
        .await
    }

    /// Sets what a claim requests.
    pub async fn request(&self, name: &str, size: &str) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"resources": {"requests": {"storage": size}}}}));
        self.api.patch(name, &PatchParams::default(), &patch).await.map(drop)?;
        Ok(())
    }

    /// What a claim reports as its size.
    pub async fn capacity(&self, name: &str) -> Result<String> {
        let status = self.api.get(name).await?.status.unwrap_or_default();
        let capacity = status.capacity.and_then(|mut all| all.remove("storage"));
        Ok(capacity.unwrap_or_else(|| Quantity("none".to_owned())).0)
    }

    /// Waits until a claim reports this size, and that nothing is left to do.
    pub async fn has_capacity(&self, name: &str, size: &str) -> Result<()> {
        until(&format!("the claim {name} to have {size}"), Deadline::PodStart, async || {
            let status = self.api.get(name).await?.status.unwrap_or_default();
            let has =
                status.capacity.as_ref().and_then(|all| all.get("storage")).is_some_and(|has| has.0 == size);
            let is_settled = status.conditions.as_ref().is_none_or(Vec::is_empty)
                && status.allocated_resource_statuses.as_ref().is_none_or(BTreeMap::is_empty);
            Ok(if has && is_settled { Ok(()) } else { Err(format!("{status:?}")) })
        })
        .await
    }

    /// Waits until a claim has grown in infra, and its filesystem waits for a pod.
    pub async fn waits_for_a_pod(&self, name: &str) -> Result<()> {
        until(&format!("the claim {name} to wait for a node"), Deadline::PodStart, async || {
            let status = self.api.get(name).await?.status.unwrap_or_default();
            let waits = status.conditions.iter().flatten().any(|c| c.type_ == "FileSystemResizePending");
            Ok(if waits { Ok(()) } else { Err(format!("{status:?}")) })
        })
        .await
    }

    /// Starts a pod on a claim that prints, each second, what [`Found`] holds; a pod that `writes` writes first.
    pub async fn start(
        &self,
        name: &str,
        claim: &str,
        worker: &str,
        volume_mode: &str,
        writes: bool,
    ) -> Result<()> {
        let (write, read) = if volume_mode == "Block" {
            (
                format!("printf {WRITTEN} | dd of={DEVICE_PATH} conv=fsync 2>/dev/null"),
                format!(
                    "$(dd if={DEVICE_PATH} bs={} count=1 2>/dev/null) $(($(blockdev --getsize64 {DEVICE_PATH}) / 1024))",
                    WRITTEN.len()
                ),
            )
        } else {
            (
                format!("echo {WRITTEN} > {MOUNT_PATH}/file; sync"),
                format!(
                    "$(cat {MOUNT_PATH}/file) $(df -kP {MOUNT_PATH} | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2)"
                ),
            )
        };
        let first = if writes { write } else { "true".to_owned() };
        let script = format!("{first}; {{ while true; do echo \"{read}\"; sleep 1; done & }}");
        self.run(&PodOnVolume { name, claim, node: Some(worker), volume_mode, script: &script }).await
    }

    /// Starts a pod on a claim.
    pub async fn run(&self, wanted: &PodOnVolume<'_>) -> Result<()> {
        self.pods.create(&PostParams::default(), &pod(wanted)).await?;
        Ok(())
    }

    /// Waits until a pod finds what `is_right` accepts; `what` completes "expected the pod to find …".
    pub async fn finds(&self, name: &str, what: &str, is_right: impl Fn(&Found) -> bool) -> Result<Found> {
        self.prints(name, what, |line| {
            let (content, kib) = line.split_once(' ')?;
            Some(Found { content: content.to_owned(), kib: kib.parse().ok()? }).filter(&is_right)
        })
        .await
    }

    /// Waits until `parse` accepts the last line that a pod printed; `what` completes "expected the pod to find …".
    pub async fn prints<T>(&self, name: &str, what: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
        until(&format!("the pod {name} to find {what}"), Deadline::PodStart, async || {
            let status = self.pods.get(name).await?.status.unwrap_or_default();
            if status.phase.as_deref() != Some("Running") {
                return Ok(Err(format!("the pod is {:?}", status.phase)));
            }
            let last = LogParams { tail_lines: Some(1), ..LogParams::default() };
            let line = self.pods.logs(name, &last).await?;
            Ok(parse(line.trim()).ok_or(line))
        })
        .await
    }

    /// The same for what was written, on a volume of any size.
    pub async fn finds_written(&self, name: &str) -> Result<Found> {
        self.finds(name, "what was written", |found| found.content == WRITTEN).await
    }

    /// Deletes a pod and waits until it is gone.
    pub async fn end(&self, pod: &str) -> Result<()> {
        self.pods.delete(pod, &DeleteParams::default()).await?;
        until_gone(&self.pods, pod, "pod", Deadline::PodStart).await
    }

    /// The message of an event of the namespace, about an object of this name, that contains `words`.
    pub async fn event(&self, object: &str, words: &str) -> Result<String> {
        let events: Api<Event> = Api::namespaced(self.fixture.guest.clone(), &self.fixture.word);
        let about = ListParams::default().fields(&format!("involvedObject.name={object}"));
        until(
            &format!("an event about {object} that contains {words:?}"),
            Deadline::MachineStart,
            async || {
                let mut messages: Vec<String> =
                    events.list(&about).await?.items.into_iter().filter_map(|event| event.message).collect();
                let found = messages.iter().position(|message| message.contains(words));
                Ok(found.map(|index| messages.swap_remove(index)).ok_or_else(|| format!("{messages:?}")))
            },
        )
        .await
    }

    /// Deletes a claim, and waits until the volume is gone in infra.
    pub async fn delete(&self, name: &str, volume: &str) -> Result<()> {
        self.api.delete(name, &DeleteParams::default()).await?;
        until_gone(&self.api, name, "claim", Deadline::PodStart).await?;
        let infra = data_volumes(&self.fixture.infra, HCP_NAMESPACE);
        until_gone(&infra, volume, "DataVolume", Deadline::MachineStart).await
    }

    /// Deletes the class, after all claims.
    pub async fn finish(self) -> Result<()> {
        self.classes.delete(&self.fixture.word, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// Whether a disk of `now` KiB has grown from `before` by about `by`: a filesystem keeps a part for itself.
pub fn has_grown(before: u64, by: u64, now: u64) -> bool {
    now >= before + by * 85 / 100
}

/// Whether a disk of `now` KiB is as large as its source of `before` KiB. On a filesystem of infra it is larger by the overhead that
/// CDI demands of a copy's request (6 % by default, rounded up to MiB), because CDI adds it to that request once more.
pub fn has_size_of_source(before: u64, now: u64) -> bool {
    (before..=before + before * 10 / 100).contains(&now)
}

/// The first and the last worker.
pub async fn workers(fixture: &Fixture) -> Result<(String, String)> {
    let all = fixture.control.workers().await?;
    let (first, last) = (all.first().context("no worker")?, all.last().context("no worker")?);
    Ok((first.clone(), last.clone()))
}

/// The bytes that an infra claim requests.
pub async fn infra_request(fixture: &Fixture, volume: &str) -> Result<u64> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let resources = claims.get(volume).await?.spec.and_then(|spec| spec.resources).unwrap_or_default();
    let requests = resources.requests.unwrap_or_default();
    bytes(requests.get("storage").context("expected the infra claim to request a size")?)
}

/// The bytes that an infra claim has.
pub async fn infra_capacity(fixture: &Fixture, volume: &str) -> Result<u64> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let status = claims.get(volume).await?.status.unwrap_or_default();
    let capacity = status.capacity.unwrap_or_default();
    bytes(capacity.get("storage").context("expected the infra claim to have a size")?)
}
