//! Claims, snapshots and pods of an infra namespace that a test has for itself.

use std::path::PathBuf;

use anyhow::{Context, Result};
use bench::{
    cluster::storage_classes::{CLASSES, FURTHER_CLASSES, SNAPSHOT_CLASS},
    paths::Run,
    scenario::{Deadline, until, until_gone},
    simulator::infra_storage,
};
use k8s_openapi::api::core::v1::{Event, Namespace, PersistentVolumeClaim, Pod, ServiceAccount};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use serde_json::{Value, json};

use super::is_size;
use crate::fixture::{EMPTY_IMAGE, Fixture};

/// The size of the claims in bytes.
pub const SIZE: u64 = 64 << 20;

/// What a claim's content is at first.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    Blank,
    Snapshot(&'a str),
    Claim(&'a str),
}

/// A namespace of infra and what a test does in it.
pub struct Claims {
    /// Its name.
    pub namespace: String,
    client: Client,
    api: Api<PersistentVolumeClaim>,
    snapshots: Api<DynamicObject>,
    pods: Api<Pod>,
    volumes: PathBuf,
}

impl Claims {
    /// Creates the namespace.
    pub async fn new(fixture: &Fixture) -> Result<Self> {
        let (client, namespace) = (fixture.infra.clone(), fixture.word.clone());
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        namespaces.create(&PostParams::default(), &object).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
        until("the namespace's default ServiceAccount", Deadline::Reaction, async || {
            Ok(accounts.get_opt("default").await?.map(|_| ()).ok_or_else(|| "absent".to_owned()))
        })
        .await?;
        let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshot");
        let kind = ApiResource::from_gvk(&kind);
        Ok(Self {
            api: Api::namespaced(client.clone(), &namespace),
            snapshots: Api::namespaced_with(client.clone(), &namespace, &kind),
            pods: Api::namespaced(client.clone(), &namespace),
            volumes: Run::open(fixture.run.clone())?.volumes(),
            client,
            namespace,
        })
    }

    /// Deletes the namespace.
    pub async fn end(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Creates a claim of the class, in the volume mode that the class offers first.
    pub async fn apply(&self, name: &str, class: &str, bytes: u64, origin: Origin<'_>) -> Result<()> {
        let class = CLASSES.iter().chain(&FURTHER_CLASSES).find(|known| known.name == class);
        let class = class.context("no such class")?;
        let (access, mode) = class.modes[0];
        let mut wanted = json!({
            "metadata": {"name": name},
            "spec": {
                "storageClassName": class.name, "accessModes": [access], "volumeMode": mode,
                "resources": {"requests": {"storage": bytes.to_string()}},
            },
        });
        let source = match origin {
            Origin::Blank => Value::Null,
            Origin::Claim(source) => json!({"kind": "PersistentVolumeClaim", "name": source}),
            Origin::Snapshot(source) => {
                json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": source})
            }
        };
        wanted["spec"]["dataSource"] = source;
        self.api.create(&PostParams::default(), &serde_json::from_value(wanted)?).await?;
        Ok(())
    }

    /// Creates a claim, waits until it is bound, and returns its image.
    pub async fn create(&self, name: &str, class: &str, bytes: u64, origin: Origin<'_>) -> Result<PathBuf> {
        self.apply(name, class, bytes, origin).await?;
        self.bound(name).await?;
        self.image(name).await
    }

    /// Waits until a claim is bound.
    pub async fn bound(&self, name: &str) -> Result<()> {
        self.claim_until(name, "be bound", |status| status["phase"] == "Bound").await
    }

    /// Where the data of a bound claim is.
    pub async fn image(&self, name: &str) -> Result<PathBuf> {
        let spec = self.api.get(name).await?.spec.context("a claim has no spec")?;
        let volume = spec.volume_name.with_context(|| format!("the claim {name} is not bound"))?;
        Ok(infra_storage::image(&self.volumes, &volume, spec.volume_mode.as_deref()))
    }

    /// Asks for another size.
    pub async fn request(&self, name: &str, bytes: u64) -> Result<()> {
        let patch = json!({"spec": {"resources": {"requests": {"storage": bytes.to_string()}}}});
        self.api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Waits until the claim says that only a node has work left.
    pub async fn waits_for_a_node(&self, name: &str) -> Result<()> {
        self.claim_until(name, "wait for a node", |status| {
            status["allocatedResourceStatuses"]["storage"] == "NodeResizePending"
        })
        .await
    }

    /// Waits until the claim says that it can't be so large.
    pub async fn is_infeasible(&self, name: &str) -> Result<()> {
        self.claim_until(name, "be infeasible", |status| {
            status["allocatedResourceStatuses"]["storage"] == "ControllerResizeInfeasible"
        })
        .await
    }

    /// Waits until the claim has the size, and no expansion is left.
    pub async fn has_capacity(&self, name: &str, bytes: u64) -> Result<()> {
        self.claim_until(name, &format!("have {bytes} bytes"), |status| {
            let is_left = !status["allocatedResourceStatuses"]["storage"].is_null()
                || status["conditions"].as_array().is_some_and(|all| !all.is_empty());
            is_size(&status["capacity"]["storage"], bytes) && !is_left
        })
        .await
    }

    async fn claim_until(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        until(&format!("the claim {name} to {what}"), Deadline::PodStart, async || {
            let status = serde_json::to_value(self.api.get(name).await?.status)?;
            Ok(if holds(&status) { Ok(()) } else { Err(status.to_string()) })
        })
        .await
    }

    /// The newest message of a claim's events for that reason.
    pub async fn event(&self, claim: &str, reason: &str) -> Result<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let wanted = ListParams::default().fields(&format!("involvedObject.name={claim},reason={reason}"));
        until(&format!("an event {reason} of {claim}"), Deadline::PodStart, async || {
            let found =
                events.list(&wanted).await?.items.into_iter().filter_map(|event| event.message).next_back();
            Ok(found.ok_or_else(|| "none".to_owned()))
        })
        .await
    }

    /// Deletes a claim and waits until its volume is gone.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let image = self.image(name).await?;
        self.api.delete(name, &DeleteParams::default()).await?;
        self.gone(name).await?;
        until(&format!("the image of {name} to be gone"), Deadline::PodStart, async || {
            Ok(if image.exists() { Err(format!("{} exists", image.display())) } else { Ok(()) })
        })
        .await
    }

    /// Waits until there is no such claim.
    pub async fn gone(&self, name: &str) -> Result<()> {
        until_gone(&self.api, name, "claim", Deadline::PodStart).await
    }

    /// Asks for a snapshot of a claim.
    pub async fn snapshot(&self, name: &str, claim: &str) -> Result<()> {
        let wanted = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
            "spec": {"volumeSnapshotClassName": SNAPSHOT_CLASS, "source": {"persistentVolumeClaimName": claim}},
        });
        self.snapshots.create(&PostParams::default(), &serde_json::from_value(wanted)?).await?;
        Ok(())
    }

    /// Waits until a snapshot is ready; how often it was seen to exist and not to be.
    pub async fn snapshot_ready(&self, name: &str) -> Result<u32> {
        let unready = std::cell::Cell::new(0);
        until(&format!("the snapshot {name} to be ready"), Deadline::PodStart, async || {
            let status = self.snapshots.get(name).await?.data["status"].take();
            if status["readyToUse"] == false {
                unready.set(unready.get() + 1);
            }
            Ok(if status["readyToUse"] == true { Ok(()) } else { Err(status.to_string()) })
        })
        .await?;
        Ok(unready.get())
    }

    /// Waits until a snapshot's error contains the words.
    pub async fn snapshot_says(&self, name: &str, words: &str) -> Result<()> {
        until(&format!("an error of the snapshot {name}"), Deadline::PodStart, async || {
            let status = self.snapshots.get(name).await?.data["status"].take();
            let told = status["error"]["message"].as_str().unwrap_or_default();
            Ok(if told.contains(words) { Ok(()) } else { Err(status.to_string()) })
        })
        .await
    }

    /// Deletes a snapshot and waits until it is gone.
    pub async fn delete_snapshot(&self, name: &str) -> Result<()> {
        self.snapshots.delete(name, &DeleteParams::default()).await?;
        until_gone(&self.snapshots, name, "snapshot", Deadline::PodStart).await
    }

    /// Creates a pod that uses a claim; what it would run does not matter to the claim.
    pub async fn start_pod(&self, claim: &str) -> Result<()> {
        let spec = json!({
            "containers": [{"name": "user", "image": EMPTY_IMAGE}],
            "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": claim}}],
        });
        let pod = serde_json::from_value(json!({"metadata": {"name": claim}, "spec": spec}))?;
        self.pods.create(&PostParams::default(), &pod).await?;
        Ok(())
    }

    /// Deletes the pod that uses a claim.
    pub async fn stop_pod(&self, claim: &str) -> Result<()> {
        let now = DeleteParams::default().grace_period(0);
        let pod = self.pods.get(claim).await?;
        self.pods.delete(&pod.name_any(), &now).await?;
        until_gone(&self.pods, claim, "pod", Deadline::PodStart).await
    }
}
