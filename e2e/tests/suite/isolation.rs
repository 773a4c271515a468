//! A guest can reach only volumes that belong to it (CVE-2024-1725 of kubevirt/csi-driver).

use anyhow::{Context, Result, ensure};
use bench::scenario::{
    Deadline, HCP_NAMESPACE, PodOnVolume, claim, data_volumes, pod, until, virtual_machines,
};
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use tonic::Code;

use crate::{
    controller_process::{Controller, INFRA_LABELS, block},
    fixture::Fixture,
};

tests! {
    Calls:
        a_volume_without_our_labels_is_refused,
        a_vm_that_says_another_guest_is_refused;
}

/// The message of kubevirt/csi-driver; the tests of its users match it in the event.
const REFUSAL: &str = "invalid volume name";

/// A guest's administrator makes a PV by hand for a DataVolume of the infra namespace that lacks the guest's labels: the
/// attach is refused, and the pod's FailedAttachVolume event says why.
async fn a_volume_without_our_labels_is_refused(fixture: Fixture) -> Result<()> {
    let namespace = fixture.guest_namespace().await?;
    let foreign = format!("pvc-{}", fixture.word);
    let data_volumes = data_volumes(&fixture.infra, HCP_NAMESPACE);
    let object = serde_json::from_value(json!({
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": {"name": foreign},
        "spec": {"source": {"blank": {}}, "storage": {"resources": {"requests": {"storage": "1Gi"}}}},
    }))?;
    data_volumes.create(&PostParams::default(), &object).await?;

    let controller = Controller::start(&fixture, "a").await?;
    let refusals = [
        ("validate", controller.validate(&foreign, block()).await.err(), Code::NotFound),
        ("delete", controller.delete_id(&foreign).await.err(), Code::FailedPrecondition),
        ("validate what is absent", controller.validate("pvc-absent", block()).await.err(), Code::NotFound),
    ];
    for (rpc, refusal, code) in refusals {
        let status = refusal.with_context(|| format!("{rpc} was not refused"))?;
        ensure!(
            status.code() == code && status.message().contains(REFUSAL),
            "expected {code:?} with {REFUSAL:?} from {rpc}, saw {status:?}"
        );
    }
    controller.delete_id("pvc-absent").await.context("delete a volume that does not exist")?;

    let volumes: Api<PersistentVolume> = Api::all(fixture.guest.clone());
    let volume = serde_json::from_value(json!({
        "metadata": {"name": foreign},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": "csi.kubevirt.io", "volumeHandle": foreign, "fsType": "ext4"},
            "claimRef": {"namespace": namespace, "name": "claim"},
        },
    }))?;
    volumes.create(&PostParams::default(), &volume).await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.guest.clone(), &namespace);
    let mut wanted = claim("claim", "", "Filesystem");
    wanted.spec.as_mut().context("a claim has a spec")?.volume_name = Some(foreign.clone());
    claims.create(&PostParams::default(), &wanted).await?;
    let pods: Api<Pod> = Api::namespaced(fixture.guest.clone(), &namespace);
    let user =
        PodOnVolume { name: "user", claim: "claim", node: None, volume_mode: "Filesystem", script: "true" };
    pods.create(&PostParams::default(), &pod(&user)).await?;

    let events: Api<Event> = Api::namespaced(fixture.guest.clone(), &namespace);
    until("the FailedAttachVolume event", Deadline::PodStart, async || {
        let list = events.list(&ListParams::default().fields("reason=FailedAttachVolume")).await?;
        let messages: Vec<String> = list.items.into_iter().filter_map(|event| event.message).collect();
        Ok(if messages.iter().any(|message| message.contains(REFUSAL)) {
            Ok(())
        } else {
            Err(format!("{messages:?}"))
        })
    })
    .await?;

    pods.delete("user", &DeleteParams::default()).await?;
    claims.delete("claim", &DeleteParams::default()).await?;
    volumes.delete(&foreign, &DeleteParams::default()).await?;
    data_volumes.delete(&foreign, &DeleteParams::default()).await?;
    Ok(())
}

/// A guest's administrator names a VM of another guest as one of its nodes. The VMs of this test are halted: a VM that may
/// be this guest's is refused for that, after its labels were found right.
async fn a_vm_that_says_another_guest_is_refused(fixture: Fixture) -> Result<()> {
    const HALTED: &str = "the VM is not running";
    let machines = virtual_machines(&fixture.infra, HCP_NAMESPACE);
    let (key, ours) = INFRA_LABELS.split_once('=').context("a label")?;
    let cases = [
        ("other", json!({ key: "another" }), key),
        ("unlabelled", json!({}), HALTED),
        ("ours", json!({ key: ours }), HALTED),
        ("named", json!({ "cluster.x-k8s.io/cluster-name": "another" }), HALTED),
    ];
    let controller = Controller::start(&fixture, "a").await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    for (suffix, labels, text) in cases {
        let name = format!("{}-{suffix}", fixture.word);
        let object = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name, "labels": labels},
            "spec": {"runStrategy": "Halted", "template": {
                "spec": {"domain": {"devices": {}, "resources": {"requests": {"memory": "64Mi"}}}},
            }},
        }))?;
        machines.create(&PostParams::default(), &object).await?;
        let refusal = controller.publish(&volume, &name).await.err();
        let status = refusal.with_context(|| format!("the {suffix} VM was not refused"))?;
        ensure!(
            status.code() == Code::FailedPrecondition && status.message().contains(text),
            "expected {text:?} of the {suffix} VM, saw {status:?}"
        );
        ensure!(!status.message().contains("\"another\""), "the other guest's value is shown: {status:?}");
        machines.delete(&name, &DeleteParams::default()).await?;
    }
    controller.delete(&volume).await?;
    Ok(())
}
