//! Thirty guest claims with pods through the real sidecars. The pods are bound to a Node whose VM runs no kubelet: what is
//! measured is the way from the claim to the attached disk and back, not how fast an emulated worker starts containers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench::{
    report::human,
    scenario::{Deadline, HCP_NAMESPACE, PodOnVolume, STORAGE_CLASS, claim, pod, until, until_gone},
};
use futures::future::join_all;
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolumeClaim, Pod},
    storage::v1::{CSINode, VolumeAttachment},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use crate::fixture::Fixture;

tests! {
    Exclusive, long:
        thirty_claims_with_pods;
}

/// How many claims.
const COUNT: usize = 30;

/// Creates all claims and pods at once; reports when all are bound, attached, detached.
async fn thirty_claims_with_pods(fixture: Fixture) -> Result<()> {
    let namespace = fixture.guest_namespace().await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let node = GuestNode::create(&fixture, &machine).await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.guest.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(fixture.guest.clone(), &namespace);
    let names: Vec<String> = (0..COUNT).map(|index| format!("claim-{index}")).collect();

    let began = Instant::now();
    for result in join_all(names.iter().map(|name| create(&claims, &pods, name, &machine))).await {
        result?;
    }
    let bound = async {
        until("all claims to be bound", Deadline::PodStart, async || {
            let all = claims.list(&ListParams::default()).await?.items;
            let bound = all
                .iter()
                .filter(|claim| {
                    claim.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"))
                })
                .count();
            Ok(if bound == COUNT { Ok(()) } else { Err(format!("{bound} of {COUNT}")) })
        })
        .await?;
        anyhow::Ok(began.elapsed())
    };
    let (bound, attached) = tokio::try_join!(bound, async {
        node.attachments(COUNT).await?;
        Ok(began.elapsed())
    })?;

    let began = Instant::now();
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    for result in join_all(names.iter().map(|name| pods.delete(name, &at_once))).await {
        result?;
    }
    node.attachments(0).await?;
    let detached = began.elapsed();

    for name in &names {
        claims.delete(name, &DeleteParams::default()).await?;
    }
    for name in &names {
        until_gone(&claims, name, "claim", Deadline::PodStart).await?;
    }
    node.delete().await?;
    tell(&fixture, "bound", bound, "reference 13 s on a faked KubeVirt; goal 3 s")?;
    tell(&fixture, "attached", attached, "reference 38 s; goal 5 s")?;
    tell(&fixture, "detached", detached, "reference 31 s; goal 5 s")?;
    fixture.delete_machine(&machine).await
}

fn tell(fixture: &Fixture, what: &str, time: Duration, beside: &str) -> Result<()> {
    fixture.figures.add(&format!("{COUNT} claims with pods, all {what}"), human(time), beside)
}

async fn create(claims: &Api<PersistentVolumeClaim>, pods: &Api<Pod>, name: &str, node: &str) -> Result<()> {
    claims.create(&PostParams::default(), &claim(name, STORAGE_CLASS, "Block")).await?;
    let wanted = PodOnVolume { name, claim: name, node: None, volume_mode: "Block", script: "true" };
    let mut pod = pod(&wanted);
    let spec = pod.spec.as_mut().context("a pod without spec")?;
    spec.node_name = Some(node.to_owned());
    // No kubelet reports this node as Ready.
    spec.tolerations = Some(serde_json::from_value(json!([{"operator": "Exists"}]))?);
    pods.create(&PostParams::default(), &pod).await?;
    Ok(())
}

/// A Node of the guest whose VM runs no guest system.
struct GuestNode<'a> {
    fixture: &'a Fixture,
    name: &'a str,
}

impl<'a> GuestNode<'a> {
    /// What kubelet and its registration of the driver would write.
    async fn create(fixture: &'a Fixture, name: &'a str) -> Result<Self> {
        let node: Node = serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            },
            "spec": {"providerID": format!("kubevirt://{name}")},
        }))?;
        Api::<Node>::all(fixture.guest.clone()).create(&PostParams::default(), &node).await?;
        let drivers: CSINode = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"drivers": [{
                "name": "csi.kubevirt.io",
                "nodeID": format!("{HCP_NAMESPACE}/{name}"),
                "topologyKeys": null,
            }]},
        }))?;
        Api::<CSINode>::all(fixture.guest.clone()).create(&PostParams::default(), &drivers).await?;
        Ok(Self { fixture, name })
    }

    /// Waits until so many volumes are attached to the node, and no other attachment is left or under way.
    async fn attachments(&self, count: usize) -> Result<()> {
        let attachments: Api<VolumeAttachment> = Api::all(self.fixture.guest.clone());
        until(&format!("{count} attachments to {}", self.name), Deadline::MachineStart, async || {
            let all = attachments.list(&ListParams::default()).await?.items;
            let ours: Vec<_> = all.iter().filter(|one| one.spec.node_name == self.name).collect();
            let attached =
                ours.iter().filter(|one| one.status.as_ref().is_some_and(|status| status.attached)).count();
            let done = ours.len() == count && attached == count;
            Ok(if done { Ok(()) } else { Err(format!("{} attachments, {attached} attached", ours.len())) })
        })
        .await
    }

    async fn delete(&self) -> Result<()> {
        Api::<CSINode>::all(self.fixture.guest.clone()).delete(self.name, &DeleteParams::default()).await?;
        Api::<Node>::all(self.fixture.guest.clone()).delete(self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}
