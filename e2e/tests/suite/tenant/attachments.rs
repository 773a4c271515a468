//! Recipes with the guest's own objects of storage, through the installed controller and its sidecars.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bench::scenario::{Deadline, HCP_NAMESPACE, STORAGE_CLASS, claim, until, until_gone};
use futures::future::try_join_all;
use k8s_openapi::api::{
    core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSINode, VolumeAttachment},
};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use serde_json::{Value, json};

use super::{Recipes, SERVED_WITHIN, is_accepted, other_volumes::OtherVolumes, recipe};
use crate::{
    controller_process::node_id,
    fixture::Fixture,
    rows::{
        self,
        Row::{Kind, Like},
    },
    snapshots::volume_snapshots,
};

/// The driver's name.
const DRIVER: &str = "csi.kubevirt.io";
/// The label of the installed controller's pods.
const POD_LABEL: &str = "app=kubevirt-csi-driver";
/// The message about a volume that is not the guest's.
const REFUSAL: &str = "invalid volume name";

/// The tenant's guest, and who must not be reached.
pub struct Storage {
    guest: Client,
    word: String,
    /// The tenant's own VM.
    machine: String,
    others: OtherVolumes,
}

fn recipes() -> Recipes<Storage> {
    vec![
        recipe(Kind, "attachments of foreign volumes", |storage| Box::pin(foreign_volumes(storage))),
        recipe(Kind, "Nodes that are foreign VMs", |storage| Box::pin(foreign_vms(storage))),
        recipe(Kind, "a claim cloned from a foreign volume", |storage| Box::pin(foreign_clone(storage))),
        recipe(Kind, "a released volume that is foreign", |storage| Box::pin(foreign_deletion(storage))),
        recipe(Kind, "the content of a foreign snapshot", |storage| Box::pin(foreign_snapshot(storage))),
        recipe(
            Like("attachments of foreign volumes: two hundred at once"),
            "a storm of attachments",
            |storage| Box::pin(storm(storage)),
        ),
    ]
}

/// What a guest's administrator can make by hand for the sidecars to act on.
pub async fn attachments_reach_nobody_else(fixture: Fixture) -> Result<()> {
    fixture.guest_namespace().await?;
    let machine = format!("{}-own", fixture.word);
    fixture.empty_machine(&machine).await?;
    let others = OtherVolumes::new(&fixture).await?;
    let storage = Storage { guest: fixture.guest.clone(), word: fixture.word.clone(), machine, others };
    let before = starts(&fixture.infra).await?;
    for recipe in rows::chosen(recipes()) {
        println!("the tenant tries: {}", recipe.name);
        (recipe.run)(&storage).await.with_context(|| recipe.name)?;
        storage.others.ensure_unchanged().await.with_context(|| recipe.name)?;
    }
    let took = storage.is_attached("fresh").await?;
    ensure!(took <= SERVED_WITHIN, "expected a new volume attached within {SERVED_WITHIN:?}, saw {took:?}");
    let after = starts(&fixture.infra).await?;
    ensure!(before == after, "expected no container started again, saw {after:?} after {before:?}");
    storage.others.end(&fixture).await?;
    fixture.delete_machine(&storage.machine).await
}

/// How often each container of the installed controller was started.
async fn starts(infra: &Client) -> Result<BTreeMap<String, i32>> {
    let pods: Api<Pod> = Api::namespaced(infra.clone(), HCP_NAMESPACE);
    let mut all = BTreeMap::new();
    for pod in pods.list(&ListParams::default().labels(POD_LABEL)).await? {
        let name = pod.name_any();
        for container in pod.status.and_then(|status| status.container_statuses).unwrap_or_default() {
            all.insert(format!("{name} {}", container.name), container.restart_count);
        }
    }
    ensure!(!all.is_empty(), "expected the installed controller's containers, saw none");
    Ok(all)
}

impl Storage {
    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.guest.clone())
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.guest.clone(), &self.word)
    }

    fn attachments(&self) -> Api<VolumeAttachment> {
        Api::all(self.guest.clone())
    }

    /// A volume by hand with this handle; `more` replaces fields of its spec.
    async fn volume(&self, name: &str, handle: &str, more: &Value) -> Result<()> {
        let mut object = json!({
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER}},
            "spec": {"capacity": {"storage": "320Mi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
                "storageClassName": STORAGE_CLASS, "persistentVolumeReclaimPolicy": "Retain",
                "csi": {"driver": DRIVER, "volumeHandle": handle}},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        self.volumes().create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// A Node of the guest, as far as attaching reads it, with this node id.
    async fn node(&self, name: &str, node_id: &str) -> Result<bool> {
        let object = json!({"metadata": {"name": name},
            "spec": {"drivers": [{"name": DRIVER, "nodeID": node_id, "topologyKeys": null}]}});
        let nodes: Api<CSINode> = Api::all(self.guest.clone());
        is_accepted(nodes.create(&PostParams::default(), &serde_json::from_value(object)?).await)
    }

    async fn attach(&self, name: &str, volume: &str, node: &str) -> Result<()> {
        let object = json!({"metadata": {"name": name},
            "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": volume}}});
        self.attachments().create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// Waits until the attachment has failed with a text.
    async fn is_refused(&self, name: &str) -> Result<String> {
        until(&format!("an error of the attachment {name}"), Deadline::PodStart, async || {
            let status = self.attachments().get(name).await?.status.unwrap_or_default();
            ensure!(!status.attached, "expected {name} to be refused, saw it attached");
            Ok(status.attach_error.and_then(|error| error.message).ok_or_else(|| "none yet".to_owned()))
        })
        .await
    }

    /// Deletes attachments, and what holds them: the driver may refuse to detach what is not the guest's.
    async fn detach(&self, names: &[String]) -> Result<()> {
        for name in names {
            is_accepted(self.attachments().delete(name, &DeleteParams::default()).await)?;
            free(&self.attachments(), name).await?;
        }
        for name in names {
            until_gone(&self.attachments(), name, "attachment", Deadline::Reaction).await?;
        }
        Ok(())
    }

    async fn remove_volume(&self, name: &str) -> Result<()> {
        is_accepted(self.volumes().delete(name, &DeleteParams::default()).await)?;
        free(&self.volumes(), name).await?;
        until_gone(&self.volumes(), name, "volume", Deadline::Reaction).await
    }

    async fn remove_node(&self, name: &str) -> Result<()> {
        let nodes: Api<CSINode> = Api::all(self.guest.clone());
        is_accepted(nodes.delete(name, &DeleteParams::default()).await)?;
        Ok(())
    }

    /// Waits until an event about a claim, volume or snapshot of the tenant has these words.
    async fn has_event(&self, kind: &str, name: &str, words: &str) -> Result<()> {
        let events: Api<Event> = Api::all(self.guest.clone());
        let about = format!("involvedObject.kind={kind},involvedObject.name={name}");
        until(&format!("an event about {kind} {name} with {words:?}"), Deadline::PodStart, async || {
            let all = events.list(&ListParams::default().fields(&about)).await?.items;
            let texts: Vec<_> = all.into_iter().filter_map(|event| event.message).collect();
            Ok(if texts.iter().any(|text| text.contains(words)) { Ok(()) } else { Err(format!("{texts:?}")) })
        })
        .await
    }

    /// Makes a claim, and attaches its volume to the tenant's own VM; how long that took.
    async fn is_attached(&self, name: &str) -> Result<Duration> {
        let (node, attachment) = (format!("{}-{name}", self.word), format!("{}-{name}", self.word));
        self.node(&node, &node_id(&self.machine)).await?;
        let began = Instant::now();
        self.claims().create(&PostParams::default(), &claim(name, STORAGE_CLASS, "Block")).await?;
        let volume = until("the new claim to be bound", Deadline::PodStart, async || {
            let claim = self.claims().get(name).await?;
            let is_bound = claim.status.and_then(|status| status.phase).as_deref() == Some("Bound");
            let volume = claim.spec.and_then(|spec| spec.volume_name).filter(|_| is_bound);
            Ok(volume.ok_or_else(|| "not bound".to_owned()))
        })
        .await?;
        self.attach(&attachment, &volume, &node).await?;
        until("the new volume to be attached", Deadline::PodStart, async || {
            let status = self.attachments().get(&attachment).await?.status.unwrap_or_default();
            Ok(if status.attached { Ok(()) } else { Err(format!("{:?}", status.attach_error)) })
        })
        .await?;
        let took = began.elapsed();
        self.attachments().delete(&attachment, &DeleteParams::default()).await?;
        until_gone(&self.attachments(), &attachment, "attachment", Deadline::PodStart).await?;
        self.claims().delete(name, &DeleteParams::default()).await?;
        until_gone(&self.volumes(), &volume, "volume", Deadline::PodStart).await?;
        self.remove_node(&node).await?;
        Ok(took)
    }
}

/// Takes an object's finalizers away.
async fn free<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    is_accepted(api.patch(name, &PatchParams::default(), &free).await)?;
    Ok(())
}

/// Handles of another guest, of nobody, and of no form, on the tenant's own Node.
async fn foreign_volumes(storage: &Storage) -> Result<()> {
    let node = format!("{}-node", storage.word);
    storage.node(&node, &node_id(&storage.machine)).await?;
    let long = "a".repeat(10_000);
    let handles = [
        storage.others.attached.volume_id.as_str(),
        storage.others.free.volume_id.as_str(),
        "../secrets/x",
        "pvc-%2e%2e?dryRun=All",
        "pvc-x\nlevel=error",
        long.as_str(),
    ];
    let names: Vec<String> = (0..handles.len()).map(|number| format!("{}-{number}", storage.word)).collect();
    for (name, handle) in names.iter().zip(handles) {
        storage.volume(name, handle, &json!({})).await?;
        storage.attach(name, name, &node).await?;
    }
    for name in &names {
        let error = storage.is_refused(name).await?;
        ensure!(
            !error.contains(&storage.others.machine),
            "expected nothing about the other guest's VM, saw {error:?}"
        );
    }
    for name in &names[..2] {
        let error = storage.is_refused(name).await?;
        ensure!(error.contains(REFUSAL), "expected {REFUSAL:?}, saw {error:?}");
    }
    storage.detach(&names).await?;
    for name in &names {
        storage.remove_volume(name).await?;
    }
    storage.remove_node(&node).await
}

/// H3: the tenant's own volume on Nodes whose ids are VMs of others, or paths.
async fn foreign_vms(storage: &Storage) -> Result<()> {
    storage.claims().create(&PostParams::default(), &claim("own", STORAGE_CLASS, "Block")).await?;
    let volume = until("the tenant's claim to be bound", Deadline::PodStart, async || {
        let claim = storage.claims().get("own").await?;
        let is_bound = claim.status.and_then(|status| status.phase).as_deref() == Some("Bound");
        Ok(claim
            .spec
            .and_then(|spec| spec.volume_name)
            .filter(|_| is_bound)
            .ok_or_else(|| "not bound".to_owned()))
    })
    .await?;
    let machine = &storage.others.machine;
    let ids = [
        node_id(machine),
        format!("kube-system/{machine}"),
        format!("{HCP_NAMESPACE}/../{HCP_NAMESPACE}/{machine}"),
        format!("{HCP_NAMESPACE}/{machine}?x=y"),
        format!("{HCP_NAMESPACE}%2f{machine}"),
    ];
    let mut names = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let name = format!("{}-vm-{number}", storage.word);
        if storage.node(&name, id).await? {
            storage.attach(&name, &volume, &name).await?;
            names.push(name);
        }
    }
    for name in &names {
        storage.is_refused(name).await?;
    }
    storage.detach(&names).await?;
    for name in &names {
        storage.remove_node(name).await?;
    }
    storage.claims().delete("own", &DeleteParams::default()).await?;
    until_gone(&storage.volumes(), &volume, "volume", Deadline::PodStart).await
}

/// A claim of the tenant has a foreign volume, by hand; another one is to be its clone.
async fn foreign_clone(storage: &Storage) -> Result<()> {
    let name = format!("{}-source", storage.word);
    let bound = json!({"claimRef": {"namespace": storage.word, "name": "source"}});
    storage.volume(&name, &storage.others.free.volume_id, &bound).await?;
    let mut source = claim("source", STORAGE_CLASS, "Block");
    source.spec.as_mut().context("a claim has a spec")?.volume_name = Some(name.clone());
    storage.claims().create(&PostParams::default(), &source).await?;
    until("the claim to have the foreign volume", Deadline::Reaction, async || {
        let phase = storage.claims().get("source").await?.status.and_then(|status| status.phase);
        Ok(if phase.as_deref() == Some("Bound") { Ok(()) } else { Err(format!("{phase:?}")) })
    })
    .await?;
    let mut clone = serde_json::to_value(claim("clone", STORAGE_CLASS, "Block"))?;
    clone["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": "source"});
    storage.claims().create(&PostParams::default(), &serde_json::from_value(clone)?).await?;
    storage.has_event("PersistentVolumeClaim", "clone", REFUSAL).await?;
    for name in ["clone", "source"] {
        storage.claims().delete(name, &DeleteParams::default()).await?;
        free(&storage.claims(), name).await?;
    }
    storage.remove_volume(&name).await
}

/// A volume with a foreign handle is released, so the provisioner deletes it: the driver does not.
async fn foreign_deletion(storage: &Storage) -> Result<()> {
    let name = format!("{}-released", storage.word);
    let released = json!({"persistentVolumeReclaimPolicy": "Delete",
        "claimRef": {"namespace": storage.word, "name": "gone", "uid": "11111111-2222-4333-8444-555555555555"}});
    storage.volume(&name, &storage.others.free.volume_id, &released).await?;
    storage.has_event("PersistentVolume", &name, REFUSAL).await?;
    storage.remove_volume(&name).await
}

/// A content by hand with a foreign handle: it is not found, and csi-snapshotter deletes no snapshot that it never found. That the driver
/// would refuse to is shown by `requests_for_volumes_reach_nobody_else`.
async fn foreign_snapshot(storage: &Storage) -> Result<()> {
    let name = format!("{}-content", storage.word);
    let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotContent");
    let contents: Api<DynamicObject> = Api::all_with(
        storage.guest.clone(),
        &ApiResource::from_gvk_with_plural(&kind, "volumesnapshotcontents"),
    );
    let content = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": name},
        "spec": {"deletionPolicy": "Delete", "driver": DRIVER, "volumeSnapshotClassName": "kubevirt-csi-snapclass",
            "source": {"snapshotHandle": storage.others.snapshot},
            "volumeSnapshotRef": {"name": "taken", "namespace": storage.word}},
    });
    contents.create(&PostParams::default(), &serde_json::from_value(content)?).await?;
    let snapshots = volume_snapshots(&storage.guest, &storage.word);
    let snapshot = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "taken"},
        "spec": {"source": {"volumeSnapshotContentName": name}, "volumeSnapshotClassName": "kubevirt-csi-snapclass"},
    });
    snapshots.create(&PostParams::default(), &serde_json::from_value(snapshot)?).await?;
    until("the snapshot to be refused", Deadline::PodStart, async || {
        let status = contents.get(&name).await?.data["status"].clone();
        ensure!(status["readyToUse"] != true, "expected the foreign snapshot to be refused, saw {status}");
        let text = status["error"]["message"].as_str().unwrap_or_default();
        Ok(if text.is_empty() { Err(status.to_string()) } else { Ok(()) })
    })
    .await?;
    snapshots.delete("taken", &DeleteParams::default()).await?;
    is_accepted(contents.delete(&name, &DeleteParams::default()).await)?;
    for _ in 0..2 {
        free(&contents, &name).await?;
        free(&snapshots, "taken").await?;
    }
    until_gone(&contents, &name, "content", Deadline::Reaction).await
}

/// Two hundred attachments that can't succeed, all at once, each tried again and again by the attacher.
async fn storm(storage: &Storage) -> Result<()> {
    const COUNT: usize = 200;
    let node = format!("{}-storm", storage.word);
    storage.node(&node, &node_id(&storage.others.machine)).await?;
    let names: Vec<String> = (0..COUNT).map(|number| format!("{}-storm-{number}", storage.word)).collect();
    try_join_all(names.iter().map(async |name| {
        // Of a class of their own: the claim beside the storm would be bound to one of them.
        let class = json!({"storageClassName": "storm"});
        storage.volume(name, &storage.others.free.volume_id, &class).await?;
        storage.attach(name, name, &node).await
    }))
    .await?;
    let took = storage.is_attached("beside-storm").await?;
    ensure!(took <= 2 * SERVED_WITHIN, "expected a new volume attached beside the storm, saw {took:?}");
    for name in &names {
        storage.is_refused(name).await?;
    }
    storage.detach(&names).await?;
    for name in &names {
        storage.remove_volume(name).await?;
    }
    storage.remove_node(&node).await
}
