//! What virt-controller and CDI cannot or will not do: the driver answers with their reason, and goes on when it has passed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bench::scenario::{
    Deadline, HCP_NAMESPACE, data_volumes, until, virtual_machine_instances, virtual_machines,
};
use csi_proto::v1::Volume;
use k8s_openapi::api::{
    authorization::v1::SubjectAccessReview,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tonic::Code;

use crate::{
    controller_process::{Controller, block},
    fixture::Fixture,
    infra_quota::under_quota,
    provider::{administrator, kubectl_with},
    refusing_policy::RefusingPolicy,
    rights::CONTROLLER_USER,
    volume_life::is_uncertain,
};

tests! {
    Calls:
        an_ended_vm_gives_its_volume_back_once_its_pods_are_gone,
        a_refused_attachment_pod_is_named,
        a_claim_that_its_data_volume_left_is_named_and_with_the_right_deleted,
        a_moved_volume_is_detached_and_not_attached_again,
        a_volume_that_a_quota_held_up_is_attached_when_there_is_room;
}

/// A deadline within which KubeVirt acts, and which a test may wait out.
const SHORT: Duration = Duration::from_secs(10);
/// A deadline within which the driver also asks for the warnings about a VMI that waits.
const UNTIL_ASKED: Duration = Duration::from_secs(25);
/// The optional right to list events.
const READ_EVENTS: &str = include_str!("../../../deploy/controller-infra/read-events/role.yaml");
/// The optional right to delete claims.
const DELETE_CLAIMS: &str = include_str!("../../../deploy/controller-infra/delete-claims/role.yaml");
/// A class of which no test beside this one makes volumes.
const COUNTED: &str = "block-rwo-fixed";
/// The message of the policy that refuses the attachment pod.
const REASON: &str = "this namespace has no room for one more pod";

/// A VM with runStrategy Once ends; KubeVirt keeps its VMI with the volume, and its completed pod. The error says what to do;
/// once the pod is deleted, virt-controller records it, and the volume is free although the VMI stays.
async fn an_ended_vm_gives_its_volume_back_once_its_pods_are_gone(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machines = virtual_machines(&fixture.infra, HCP_NAMESPACE);
    let instances = virtual_machine_instances(&fixture.infra, HCP_NAMESPACE);
    let (machine, other) = (format!("{}-vm", fixture.word), format!("{}-other", fixture.word));
    tokio::try_join!(fixture.empty_machine(&machine), fixture.empty_machine(&other))?;
    let once = json!({"spec": {"runStrategy": "Once"}});
    machines.patch(&machine, &PatchParams::default(), &Patch::Merge(once)).await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    controller.publish(&volume, &machine).await?;

    // Its QEMU ends, as when its guest powers off or crashes.
    let parts = fixture.control.status().await?;
    let part = parts.iter().find(|part| part.name == format!("vm-{machine}")).context("no QEMU of the VM")?;
    kill(Pid::from_raw(part.pid.try_into()?), Signal::SIGKILL).context("kill QEMU")?;
    until("the VMI's end", Deadline::Reaction, async || {
        let phase =
            instances.get(&machine).await?.data["status"]["phase"].as_str().unwrap_or_default().to_owned();
        Ok(if ["Failed", "Succeeded"].contains(&phase.as_str()) { Ok(()) } else { Err(phase) })
    })
    .await?;

    let status = match controller.unpublish_within(&volume, &machine, SHORT).await {
        Ok(()) => bail!("expected unpublish to wait while a pod of the ended VMI is left, saw OK"),
        Err(status) => status,
    };
    ensure!(
        status.code() == Code::DeadlineExceeded
            && status.message().contains("delete the completed virt-launcher pod"),
        "expected the error to say what to do, saw {status:?}"
    );
    match controller.publish_within(&volume, &other, SHORT).await {
        Ok(()) => bail!("expected publish to another VM to fail meanwhile, saw OK"),
        Err(status) => ensure!(
            status.code() == Code::FailedPrecondition && status.message().contains(&machine),
            "expected FAILED_PRECONDITION that names the VM, saw {status:?}"
        ),
    }

    let pods: Api<Pod> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let of_machine = ListParams::default().labels(&format!("vm.kubevirt.io/name={machine}"));
    ensure!(!pods.list(&of_machine).await?.items.is_empty(), "expected a pod of the ended VMI, saw none");
    pods.delete_collection(&DeleteParams::default(), &of_machine).await?;
    until("unpublish", Deadline::Reaction, async || {
        Ok(controller
            .unpublish_within(&volume, &machine, SHORT)
            .await
            .map_err(|status| format!("{status:?}")))
    })
    .await?;
    let left = instances.get_opt(&machine).await?.context("expected the ended VMI to stay, saw none")?;
    let kept = left.data["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    ensure!(
        kept.iter().any(|entry| entry["name"] == volume.volume_id.as_str()),
        "expected the ended VMI to keep the entry of the volume, saw {kept:?}"
    );
    controller.publish(&volume, &other).await.context("publish to another VM")?;
    controller.discard(&volume, &other).await?;
    tokio::try_join!(fixture.delete_machine(&machine), fixture.delete_machine(&other))?;
    Ok(())
}

/// The infra cluster refuses the pod by which KubeVirt plugs volumes in. With the right to list events the attach ends with the
/// refusal's own words; it succeeds when the refusal has passed.
async fn a_refused_attachment_pod_is_named(fixture: Fixture) -> Result<()> {
    let (kubectl, namespace) = (administrator("infra"), ["--namespace", HCP_NAMESPACE]);
    kubectl_with(&fixture, &kubectl, &[&["apply"], &namespace[..]].concat(), READ_EVENTS).await?;
    let named = Box::pin(is_named(&fixture)).await;
    let removed =
        kubectl_with(&fixture, &kubectl, &[&["delete"], &namespace[..]].concat(), READ_EVENTS).await;
    named.and(removed)
}

async fn is_named(fixture: &Fixture) -> Result<()> {
    let controller = Controller::start(fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    fixture.image_of(&volume.volume_id).await?;
    let policy = refuse_attachment_pods(fixture, &machine).await?;
    let error = until("an attach that names the refusal", Deadline::Reaction, async || {
        Ok(match controller.publish_within(&volume, &machine, UNTIL_ASKED).await {
            Ok(()) => bail!("expected the attach to fail while its pod is refused, saw OK"),
            Err(status) if status.message().contains(REASON) => Ok(status),
            Err(status) => Err(format!("{status:?}")),
        })
    })
    .await;
    policy.release().await?;
    let error = error?;
    ensure!(
        error.code() == Code::DeadlineExceeded,
        "expected a code that the sidecar retries, saw {error:?}"
    );
    until("the attach", Deadline::PodStart, async || {
        Ok(controller.publish(&volume, &machine).await.map_err(|status| format!("{status:?}")))
    })
    .await?;
    controller.discard(&volume, &machine).await?;
    fixture.delete_machine(&machine).await
}

/// Refuses the attachment pods of one VM, and waits until that is in force.
async fn refuse_attachment_pods<'a>(fixture: &'a Fixture, machine: &str) -> Result<RefusingPolicy<'a>> {
    // An attachment pod belongs to the launcher pod of its VM.
    let of_machine = format!(
        "has(object.metadata.ownerReferences) && object.metadata.ownerReferences.exists(owner, owner.name.startsWith('virt-launcher-{machine}-'))"
    );
    let rule =
        json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
    let conditions = json!([{"name": "which", "expression": of_machine}]);
    let policy = RefusingPolicy::of(fixture, rule, conditions, REASON).await?;
    policy.once_in_force(in_force(fixture, machine).await).await
}

/// Waits until such a pod is refused; the pod is a dry run.
async fn in_force(fixture: &Fixture, machine: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": format!("{}-probe", fixture.word), "ownerReferences": [{
            "apiVersion": "v1", "kind": "Pod", "name": format!("virt-launcher-{machine}-probe"), "uid": "none"}]},
        "spec": {"containers": [{"name": "probe", "image": "none"}]},
    }))?;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    until("the policy to be in force", Deadline::Reaction, async || match pods.create(&dry_run, &pod).await {
        Ok(_) => Ok(Err("the pod may be created".to_owned())),
        Err(kube::Error::Api(status)) if status.message.contains(REASON) => Ok(Ok(())),
        Err(error) => bail!("{error}"),
    })
    .await
}

/// A DataVolume is deleted and its claim left, as by `kubectl delete --cascade=orphan`. DeleteVolume does not report the volume as
/// deleted: it names the claim, and a controller that may delete claims deletes it.
async fn a_claim_that_its_data_volume_left_is_named_and_with_the_right_deleted(
    fixture: Fixture,
) -> Result<()> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let controller = Controller::start(&fixture, "a").await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    fixture.image_of(&volume.volume_id).await?;
    data_volumes(&fixture.infra, HCP_NAMESPACE).delete(&volume.volume_id, &DeleteParams::orphan()).await?;
    // The garbage collector takes the DataVolume out of the claim's owners before it lets the DataVolume go.
    until("the DataVolume's end", Deadline::Reaction, async || {
        let left = data_volumes(&fixture.infra, HCP_NAMESPACE).get_opt(&volume.volume_id).await?;
        Ok(if left.is_none() { Ok(()) } else { Err("still there".to_owned()) })
    })
    .await?;
    match controller.delete(&volume).await {
        Ok(()) => bail!("expected DeleteVolume to fail while the claim is left, saw OK"),
        Err(status) => ensure!(
            status.code() == Code::FailedPrecondition
                && status.message().contains(&format!("must delete PVC {}", volume.volume_id)),
            "expected FAILED_PRECONDITION that names the claim, saw {status:?}"
        ),
    }
    ensure!(claims.get_opt(&volume.volume_id).await?.is_some(), "expected the claim to be left, saw none");

    let (kubectl, namespace) = (administrator("infra"), ["--namespace", HCP_NAMESPACE]);
    kubectl_with(&fixture, &kubectl, &[&["apply"], &namespace[..]].concat(), DELETE_CLAIMS).await?;
    let deleted = Box::pin(is_deleted(&fixture, &volume.volume_id)).await;
    let removed =
        kubectl_with(&fixture, &kubectl, &[&["delete"], &namespace[..]].concat(), DELETE_CLAIMS).await;
    deleted.and(removed)
}

/// A controller that starts with the right deletes the claim.
async fn is_deleted(fixture: &Fixture, volume: &str) -> Result<()> {
    let reviews: Api<SubjectAccessReview> = Api::all(fixture.infra.clone());
    let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {
        "user": CONTROLLER_USER,
        "resourceAttributes": {"namespace": HCP_NAMESPACE, "verb": "delete", "resource": "persistentvolumeclaims"},
    }}))?;
    until("the right to be in force", Deadline::Reaction, async || {
        let answer = reviews.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        Ok(if answer.allowed { Ok(()) } else { Err(format!("{answer:?}")) })
    })
    .await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let controller = Controller::start(fixture, "b").await?;
    until("DeleteVolume", Deadline::Reaction, async || {
        Ok(controller.delete_id(volume).await.map_err(|status| format!("{status:?}")))
    })
    .await?;
    until("the claim's end", Deadline::Reaction, async || {
        let left = claims.get_opt(volume).await?;
        Ok(if left.is_none() { Ok(()) } else { Err("still there".to_owned()) })
    })
    .await
}

/// The administrator lets the VM have the volume from another claim under its old name. It is detached, and its own claim, with
/// older data, is not attached again until the administrator takes the record away.
async fn a_moved_volume_is_detached_and_not_attached_again(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machines = virtual_machines(&fixture.infra, HCP_NAMESPACE);
    let instances = virtual_machine_instances(&fixture.infra, HCP_NAMESPACE);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    let other = controller.create(&format!("pvc-{}-faster", fixture.word), block()).await?;
    fixture.image_of(&other.volume_id).await?;
    controller.publish(&volume, &machine).await?;

    let (old, new) = (volume.volume_id.as_str(), other.volume_id.as_str());
    let mut spec = machines.get(&machine).await?.data["spec"].clone();
    let entries = spec["template"]["spec"]["volumes"].as_array_mut().context("the VM has no volumes")?;
    let entry = entries.iter_mut().find(|entry| entry["name"] == old).context("the VM lacks the volume")?;
    entry["dataVolume"]["name"] = new.into();
    let moved = json!({"spec": {"template": {"spec": {"volumes": entries}}}});
    machines.patch(&machine, &PatchParams::default(), &Patch::Merge(moved)).await?;
    until("the VMI to have the other claim", Deadline::PodStart, async || {
        let vmi = instances.get(&machine).await?;
        let volumes = vmi.data["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        let status = vmi.data["status"]["volumeStatus"].as_array().cloned().unwrap_or_default();
        let has = volumes.iter().any(|entry| entry["name"] == old && entry["dataVolume"]["name"] == new);
        let ready = status.iter().any(|entry| entry["name"] == old && entry["phase"] == "Ready");
        Ok(if has && ready { Ok(()) } else { Err(format!("{volumes:?}, {status:?}")) })
    })
    .await?;

    controller.unpublish(&volume, &machine).await.context("unpublish the moved volume")?;
    let claim = claims.get(old).await?;
    let recorded = claim.metadata.annotations.unwrap_or_default();
    ensure!(
        recorded.get("csi.kubevirt.io/moved-to").map(String::as_str) == Some(new),
        "expected the move to be recorded, saw {recorded:?}"
    );
    match controller.publish_within(&volume, &machine, SHORT).await {
        Ok(()) => bail!("expected publish to refuse the older claim, saw OK"),
        Err(status) => ensure!(
            status.code() == Code::FailedPrecondition && status.message().contains(new),
            "expected FAILED_PRECONDITION that names the other claim, saw {status:?}"
        ),
    }
    let back = json!({"metadata": {"annotations": {"csi.kubevirt.io/moved-to": null}}});
    claims.patch(old, &PatchParams::default(), &Patch::Merge(back)).await?;
    controller.publish(&volume, &machine).await.context("publish once the record is gone")?;
    controller.discard(&volume, &machine).await?;
    controller.delete(&other).await?;
    fixture.delete_machine(&machine).await
}

/// A quota on the storage of a class has no room for the claim that CDI makes: the volume is created, its attach reports what is missing,
/// and succeeds by itself once there is room. CDI does not watch quotas; it tries again after pauses that grow to 16 minutes.
async fn a_volume_that_a_quota_held_up_is_attached_when_there_is_room(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let counted = format!("{COUNTED}.storageclass.storage.k8s.io/requests.storage");
    let held_up = is_held_up(&fixture, &controller, &machine);
    let volume = under_quota(&fixture, &counted, "1Mi", held_up).await?;

    let began = Instant::now();
    until("the attach, once there is room", Deadline::MachineStart, async || {
        Ok(controller.publish(&volume, &machine).await.map_err(|status| format!("{status:?}")))
    })
    .await?;
    fixture.figures.add(
        "attach of a volume that a quota held up",
        format!("{} s after there was room", began.elapsed().as_secs()),
        "CDI tries again after pauses that grow to 16 min",
    )?;
    controller.discard(&volume, &machine).await?;
    fixture.delete_machine(&machine).await
}

/// A volume of the class that the quota counts; its attach fails for want of its claim.
async fn is_held_up(fixture: &Fixture, controller: &Controller, machine: &str) -> Result<Volume> {
    let parameters = [("infraStorageClassName", COUNTED)];
    let volume = controller.create_of(&parameters, &format!("pvc-{}", fixture.word), block()).await?;
    let status = match controller.publish_within(&volume, machine, UNTIL_ASKED).await {
        Ok(()) => bail!("expected the attach to wait while the quota has no room, saw OK"),
        Err(status) => status,
    };
    ensure!(
        is_uncertain(status.code()) && status.message().contains("no infra claim yet"),
        "expected a code that the sidecar retries and what is missing, saw {status:?}"
    );
    Ok(volume)
}
