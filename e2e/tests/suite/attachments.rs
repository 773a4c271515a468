//! What a test asks of external-provisioner and external-attacher: claims, and `VolumeAttachment`s to nodes that stand for
//! virtual machines in which no guest runs; and the results in both clusters.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use bench::scenario::{
    Deadline, HCP_NAMESPACE, STORAGE_CLASS, claim, data_volumes, until, until_gone,
    virtual_machine_instances, virtual_machines,
};
use futures::future::try_join_all;
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolumeClaim},
    storage::v1::{CSINode, VolumeAttachment},
};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, PostParams},
};
use serde_json::json;

use crate::{
    controller_process::{INFRA_LABELS, node_id},
    fixture::Fixture,
};

/// The driver's name.
const DRIVER: &str = "csi.kubevirt.io";

/// A guest node by which the attacher finds a virtual machine; no kubelet runs on it.
pub struct FakeNode {
    /// Name of node and virtual machine.
    pub name: String,
}

impl FakeNode {
    /// Starts an empty virtual machine, and creates the Node and CSINode that make it a worker of the guest.
    pub async fn start(fixture: &Fixture, suffix: &str) -> Result<Self> {
        let name = format!("{}-{suffix}", fixture.word);
        fixture.empty_machine(&name).await?;
        let nodes: Api<Node> = Api::all(fixture.guest.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let node = nodes.create(&PostParams::default(), &node).await?;
        let csi_nodes: Api<CSINode> = Api::all(fixture.guest.clone());
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid}]);
        let csi_node = serde_json::from_value(json!({
            "metadata": {"name": name, "ownerReferences": owner},
            "spec": {"drivers": [{"name": DRIVER, "nodeID": node_id(&name), "topologyKeys": null}]},
        }))?;
        csi_nodes.create(&PostParams::default(), &csi_node).await?;
        Ok(Self { name })
    }

    /// Takes all of it away.
    pub async fn end(self, fixture: &Fixture) -> Result<()> {
        let csi_nodes: Api<CSINode> = Api::all(fixture.guest.clone());
        csi_nodes.delete(&self.name, &DeleteParams::default()).await?;
        let nodes: Api<Node> = Api::all(fixture.guest.clone());
        nodes.delete(&self.name, &DeleteParams::default()).await?;
        fixture.delete_machine(&self.name).await
    }
}

/// Claims of one guest namespace and what is attached of them.
pub struct Volumes<'a> {
    fixture: &'a Fixture,
    claims: Api<PersistentVolumeClaim>,
    attachments: Api<VolumeAttachment>,
}

impl<'a> Volumes<'a> {
    /// Of the test's own guest namespace.
    pub async fn new(fixture: &'a Fixture) -> Result<Self> {
        let namespace = fixture.guest_namespace().await?;
        Ok(Self {
            fixture,
            claims: Api::namespaced(fixture.guest.clone(), &namespace),
            attachments: Api::all(fixture.guest.clone()),
        })
    }

    /// Creates a block claim for each volume.
    pub async fn ask(&self, names: &[String]) -> Result<()> {
        let made = names.iter().map(|name| async {
            let object = claim(name, STORAGE_CLASS, "Block");
            self.claims.create(&PostParams::default(), &object).await
        });
        try_join_all(made).await?;
        Ok(())
    }

    /// Waits until all claims are bound; their volumes, in the same order.
    pub async fn bound(&self, names: &[String]) -> Result<Vec<String>> {
        until(&format!("{} claims to be bound", names.len()), Deadline::MachineStart, async || {
            let list = self.claims.list(&ListParams::default()).await?;
            let volumes: BTreeMap<_, _> = list.items.into_iter().filter_map(bound_volume).collect();
            let found: Vec<String> = names.iter().filter_map(|name| volumes.get(name).cloned()).collect();
            Ok(if found.len() == names.len() { Ok(found) } else { Err(format!("{} are bound", found.len())) })
        })
        .await
    }

    /// Creates attachments of the volumes to the nodes in turn. An attachment is named after its volume.
    pub async fn attach(&self, volumes: &[String], nodes: &[FakeNode]) -> Result<()> {
        let made = volumes.iter().enumerate().map(|(index, volume)| async move {
            let object: VolumeAttachment = serde_json::from_value(json!({
                "metadata": {"name": volume},
                "spec": {
                    "attacher": DRIVER,
                    "nodeName": nodes[index % nodes.len()].name,
                    "source": {"persistentVolumeName": volume},
                },
            }))?;
            anyhow::Ok(self.attachments.create(&PostParams::default(), &object).await?)
        });
        try_join_all(made).await?;
        Ok(())
    }

    /// Waits until all are attached, and checks that each is in exactly one virtual machine.
    pub async fn attached(&self, volumes: &[String]) -> Result<()> {
        until(&format!("{} volumes to be attached", volumes.len()), Deadline::MachineStart, async || {
            let list = self.attachments.list(&ListParams::default()).await?.items;
            let done = list.iter().filter(|attachment| {
                let name = attachment.metadata.name.as_ref();
                attachment.status.as_ref().is_some_and(|status| status.attached)
                    && name.is_some_and(|name| volumes.contains(name))
            });
            let done = done.count();
            Ok(if done == volumes.len() { Ok(()) } else { Err(format!("{done} are attached")) })
        })
        .await?;
        let infra = &self.fixture.infra;
        let machines = virtual_machines(infra, HCP_NAMESPACE).list(&ListParams::default()).await?.items;
        let instances = virtual_machine_instances(infra, HCP_NAMESPACE).list(&ListParams::default()).await?;
        for volume in volumes {
            let in_spec: Vec<_> =
                machines.iter().filter(|vm| names(vm, MACHINE_VOLUMES, volume) > 0).collect();
            let times: usize = machines.iter().map(|vm| names(vm, MACHINE_VOLUMES, volume)).sum();
            ensure!(
                in_spec.len() == 1 && times == 1,
                "expected {volume} once in one VM, saw it {times} times in {} VMs",
                in_spec.len()
            );
            let shown: usize = instances.items.iter().map(|vmi| names(vmi, INSTANCE_STATUS, volume)).sum();
            ensure!(shown == 1, "expected {volume} in the status of one instance, saw it {shown} times");
        }
        Ok(())
    }

    /// Detaches and deletes all, and waits until both clusters have nothing left of them.
    pub async fn end(&self, names_of_claims: &[String], volumes: &[String]) -> Result<()> {
        let parameters = DeleteParams::default();
        for volume in volumes {
            if self.attachments.get_opt(volume).await?.is_some() {
                self.attachments.delete(volume, &parameters).await?;
            }
        }
        for volume in volumes {
            until_gone(&self.attachments, volume, "VolumeAttachment", Deadline::MachineStart).await?;
        }
        for name in names_of_claims {
            self.claims.delete(name, &parameters).await?;
        }
        let infra = &self.fixture.infra;
        let objects = data_volumes(infra, HCP_NAMESPACE);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(infra.clone(), HCP_NAMESPACE);
        for volume in volumes {
            until_gone(&objects, volume, "DataVolume", Deadline::MachineStart).await?;
            until_gone(&claims, volume, "infra claim", Deadline::PodStart).await?;
        }
        let machines = virtual_machines(infra, HCP_NAMESPACE).list(&ListParams::default()).await?.items;
        for volume in volumes {
            let left: usize = machines.iter().map(|vm| names(vm, MACHINE_VOLUMES, volume)).sum();
            ensure!(left == 0, "expected {volume} in no VM, saw it in {left}");
        }
        Ok(())
    }
}

/// Names of this guest's DataVolumes in infra.
pub async fn our_data_volumes(fixture: &Fixture) -> Result<BTreeSet<String>> {
    let ours = ListParams::default().labels(INFRA_LABELS);
    let list = data_volumes(&fixture.infra, HCP_NAMESPACE).list(&ours).await?;
    Ok(list.items.into_iter().filter_map(|object| object.metadata.name).collect())
}

/// Where a VirtualMachine names its volumes.
const MACHINE_VOLUMES: &str = "/spec/template/spec/volumes";
/// Where an instance reports their state.
const INSTANCE_STATUS: &str = "/status/volumeStatus";

/// How often the list at `path` names `volume`.
fn names(object: &DynamicObject, path: &str, volume: &str) -> usize {
    let entries = object.data.pointer(path).and_then(|list| list.as_array());
    entries.map_or(0, |entries| entries.iter().filter(|entry| entry["name"] == volume).count())
}

fn bound_volume(claim: PersistentVolumeClaim) -> Option<(String, String)> {
    let bound = claim.status?.phase? == "Bound";
    Some((claim.metadata.name?, claim.spec?.volume_name?)).filter(|_| bound)
}
