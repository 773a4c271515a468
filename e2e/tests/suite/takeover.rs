//! A guest is taken over from kubevirt/csi-driver while its pods run, and given back.
//!
//! What upstream leaves is committed beside this file as data, and made by its own calls ([`upstream`]): the objects of both clusters,
//! the disk in the VM, the filesystem that its node plugin makes, and its layout of mounts.

mod upstream;

use anyhow::{Context, Result, ensure};
use bench::{
    control::{Lock::Workers, Request as Ask},
    scenario::{Deadline, HCP_NAMESPACE, until, until_gone},
    vm::worker::KUBELET_LOG,
};
use csi_proto::v1::Volume;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::{
    Api,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use self::upstream::Upstream;
use crate::{
    controller_process::{VOLUME_BYTES, node_id},
    fixture::Fixture,
    guest_claims::{Claims, GROWN, GROWN_KIB, SIZE_KIB, Source, WRITTEN, has_grown, workers},
    node_socket::NodeSocket,
    provider::{administrator, kubectl_with},
    snapshots::{CLAIM, CLASS, taken, volume_snapshots},
    stack::instead_of_installed,
    trial::{name, trial},
};

const PERSISTENT_VOLUME: &str = include_str!("takeover/persistent-volume.yaml");

/// The pod that runs while the driver is exchanged, and one that uses the volume afterwards.
const RUNNING: &str = "running";
const LATER: &str = "later";

/// Upstream's snapshot, ours, and the claim that is restored from upstream's.
const BEFORE: &str = "before";
const AFTER: &str = "after";
const RESTORED: &str = "restored";
const READER: &str = "reader";

/// The finalizer of csi-attacher on a VolumeAttachment.
const ATTACHER_FINALIZER: &str = "external-attacher/csi-kubevirt-io";

/// Volumes that are taken over: content, infra class, whether the worker is reset too, and whether it is in the short list.
const TAKEN_OVER: [(&str, &str, bool, bool); 2] =
    [("ext4", "block-immediate", false, true), ("xfs", "filesystem-rwo", true, false)];

/// A trial for each volume that is taken over, and the one of the way back.
pub fn trials() -> Vec<Trial> {
    let taken_over = TAKEN_OVER.into_iter().map(|(content, class, resets, is_short)| {
        let name = name(module_path!(), &format!("a_running_pods_{content}_from_{class}_is_taken_over"));
        trial(name, Workers, move |fixture| is_taken_over(fixture, content, class, resets))
            .with_ignored_flag(!is_short)
    });
    let name = name(module_path!(), "a_volume_is_given_back_and_taken_over_again");
    taken_over.chain([trial(name, Workers, is_given_back)]).collect()
}

/// A volume as upstream leaves it.
struct Left {
    volume: String,
    /// Where the pod's volume is mounted in the worker.
    target: String,
    /// The size of the filesystem in the pod, in KiB.
    kib: u64,
}

async fn is_taken_over(fixture: Fixture, content: &str, class: &str, resets: bool) -> Result<()> {
    let (claims, mode) = Claims::with_content(&fixture, content, &[("infraStorageClassName", class)]).await?;
    let (first, last) = workers(&fixture).await?;
    let mut left = None;
    Box::pin(instead_of_installed(&fixture, async {
        left = Some(as_upstream_leaves_it(&fixture, &claims, (content, class), &first).await?);
        Ok(())
    }))
    .await?;
    let left = left.context("nothing was left")?;

    // From here on both roles are this driver's, in new processes.
    let node = NodeSocket::connect(&fixture, &first).await?;
    node.kill_driver().await?;
    let volume = Volume { volume_id: left.volume.clone(), ..Volume::default() };
    let bytes = node.total_bytes(&volume, &left.target).await.context("the statistics")?;
    let expected = i64::try_from(left.kib << 10)?;
    ensure!(bytes == expected, "expected {expected} bytes in the statistics, saw {bytes}");

    taken(&fixture, AFTER).await.context("a snapshot of the volume in use")?;
    restart_kubelet(&fixture, &first).await?;
    claims.request(CLAIM, GROWN).await?;
    claims.has_capacity(CLAIM, GROWN).await?;
    let growth = GROWN_KIB - SIZE_KIB;
    let is_larger = |found: &crate::guest_claims::Found| has_grown(left.kib, growth, found.kib);
    let found = claims.finds(RUNNING, "a larger disk", is_larger).await?;
    ensure!(found.content == WRITTEN, "expected {WRITTEN:?} on the larger disk, saw {found:?}");
    if resets {
        fixture.control.ask(&Ask::Reset { worker: first.clone() }).await?;
        let found = claims.finds(RUNNING, "its disk after the reset", is_larger).await?;
        ensure!(found.content == WRITTEN, "expected {WRITTEN:?} after the reset, saw {found:?}");
    }

    // What upstream's node plugin mounted is unmounted, what its controller plugged in is unplugged.
    claims.end(RUNNING).await?;
    claims.start(LATER, CLAIM, &last, mode, false).await?;
    claims.finds_written(LATER).await.context("the volume on another worker")?;
    let restored = claims.create_from(Source::Snapshot(BEFORE), RESTORED, GROWN, mode).await?;
    claims.start(READER, RESTORED, &first, mode, false).await?;
    claims.finds_written(READER).await.context("what is restored from upstream's snapshot")?;

    claims.end(LATER).await?;
    claims.end(READER).await?;
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    for snapshot in [BEFORE, AFTER] {
        snapshots.delete(snapshot, &DeleteParams::default()).await?;
        until_gone(&snapshots, snapshot, "VolumeSnapshot", Deadline::PodStart).await?;
    }
    claims.delete(RESTORED, &restored).await?;
    claims.delete(CLAIM, &left.volume).await?;
    claims.finish().await
}

/// Makes a volume as upstream does and starts a pod on it, takes a snapshot of it, and lays out its mounts as upstream's node plugin
/// does. No controller runs meanwhile. The node plugin that starts the pod is this driver's: it meets a volume, a disk and a
/// filesystem of upstream's.
async fn as_upstream_leaves_it(
    fixture: &Fixture,
    claims: &Claims<'_>,
    (content, class): (&str, &str),
    worker: &str,
) -> Result<Left> {
    let upstream = Upstream::new(fixture).await?;
    let volume = claims.create(CLAIM, "Filesystem").await?;
    let serial = upstream.create(&volume, class).await?;
    let object = PERSISTENT_VOLUME
        .replace("VOLUME", &volume)
        .replace("NAMESPACE", &fixture.word)
        .replace("UID", volume.strip_prefix("pvc-").context("no UID in the volume's name")?)
        .replace("CONTENT", content)
        .replace("SERIAL", &serial)
        .replace("CLAIM", CLAIM);
    kubectl_with(fixture, &administrator("tenant"), &["create"], &object).await?;
    claims.bound(CLAIM).await?;

    claims.start(RUNNING, CLAIM, worker, "Filesystem", false).await?;
    let attachment = attachment_of(fixture, &volume).await?;
    upstream.publish(&volume, worker).await?;
    let (device, formatted) = upstream.stage(worker, &serial, content).await?;
    ensure!(formatted, "expected a new disk to be formatted, saw a filesystem on {device}");
    let write = format!("echo {WRITTEN} > \"$1\"/file");
    upstream.with_mounted(worker, &device, content, &write).await?;
    mark_attached(fixture, &attachment, worker).await?;
    let kib = claims.finds_written(RUNNING).await?.kib;

    taken_by_upstream(fixture, &upstream, &volume).await?;
    let target = upstream.lay_out(worker, &volume, &device, content).await?;
    Ok(Left { volume, target, kib })
}

/// The name of the VolumeAttachment that kube-controller-manager makes for the volume of a scheduled pod.
async fn attachment_of(fixture: &Fixture, volume: &str) -> Result<String> {
    let attachments: Api<VolumeAttachment> = Api::all(fixture.guest.clone());
    until(&format!("an attachment of {volume}"), Deadline::Reaction, async || {
        let all = attachments.list(&ListParams::default()).await?.items;
        let of = |attachment: &VolumeAttachment| {
            attachment.spec.source.persistent_volume_name.as_deref() == Some(volume)
        };
        let found = all.into_iter().find(of).and_then(|attachment| attachment.metadata.name);
        Ok(found.ok_or_else(|| "none".to_owned()))
    })
    .await
}

/// Writes to a VolumeAttachment what csi-attacher writes once the volume is attached.
async fn mark_attached(fixture: &Fixture, attachment: &str, worker: &str) -> Result<()> {
    let attachments: Api<VolumeAttachment> = Api::all(fixture.guest.clone());
    let metadata = json!({"metadata": {
        "annotations": {"csi.alpha.kubernetes.io/node-id": node_id(worker)},
        "finalizers": [ATTACHER_FINALIZER],
    }});
    attachments.patch(attachment, &PatchParams::default(), &Patch::Merge(metadata)).await?;
    let status = Patch::Merge(json!({"status": {"attached": true}}));
    attachments.patch_status(attachment, &PatchParams::default(), &status).await?;
    Ok(())
}

/// Takes a snapshot with upstream's controller, and writes to the guest's objects what csi-snapshotter writes.
async fn taken_by_upstream(fixture: &Fixture, upstream: &Upstream<'_>, volume: &str) -> Result<()> {
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    let object = serde_json::from_value(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": BEFORE},
        "spec": {"volumeSnapshotClassName": CLASS, "source": {"persistentVolumeClaimName": CLAIM}},
    }))?;
    let made: DynamicObject = snapshots.create(&PostParams::default(), &object).await?;
    let uid = made.metadata.uid.context("a snapshot without a UID")?;
    let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotContent");
    let resource = ApiResource::from_gvk_with_plural(&kind, "volumesnapshotcontents");
    let contents: Api<DynamicObject> = Api::all_with(fixture.guest.clone(), &resource);
    let content = format!("snapcontent-{uid}");
    until("snapshot-controller to make the content", Deadline::Reaction, async || {
        Ok(contents.get_opt(&content).await?.map(drop).ok_or_else(|| "absent".to_owned()))
    })
    .await?;
    let status = upstream.snapshot(&format!("snapshot-{uid}"), volume).await?;
    let status: Patch<Value> = Patch::Merge(json!({"status": status}));
    contents.patch_status(&content, &PatchParams::default(), &status).await?;
    until("the guest's snapshot to be ready", Deadline::Reaction, async || {
        let status = snapshots.get(BEFORE).await?.data["status"].clone();
        Ok(if status["readyToUse"] == true { Ok(()) } else { Err(status.to_string()) })
    })
    .await
}

/// Ends kubelet and starts it with the same arguments: the next one learns its volumes from the mounts that it finds.
async fn restart_kubelet(fixture: &Fixture, worker: &str) -> Result<()> {
    const END: &str = "pid=$(pidof kubelet); cp /proc/$pid/cmdline /run/kubelet.arguments; kill $pid; \
         while [ -e /proc/$pid ]; do usleep 100000; done";
    const START: &str = "exec xargs -0 env GOGC=200 < /run/kubelet.arguments";
    let ended = fixture.control.run(worker, &["sh", "-ec", END]).await?;
    ensure!(ended.code == 0, "expected kubelet to end, saw {ended:?}");
    let argv = ["sh", "-c", START].map(str::to_owned).into();
    let ask = Ask::Spawn { worker: worker.to_owned(), argv, log: KUBELET_LOG.to_owned() };
    fixture.control.ask(&ask).await.map(drop)
}

/// The controller is upstream's again while a pod runs, and the node plugin after the pod has ended: they find the volume, its disk,
/// its filesystem and its snapshot. Then this driver has it back, with a holder on the claim that is long out of date.
async fn is_given_back(fixture: Fixture) -> Result<()> {
    let content = "ext4";
    let (claims, mode) = Claims::with_content(&fixture, content, &[]).await?;
    let (first, last) = workers(&fixture).await?;
    let volume = claims.create(CLAIM, mode).await?;
    claims.start(RUNNING, CLAIM, &first, mode, true).await?;
    claims.finds_written(RUNNING).await?;
    let snapshot = taken(&fixture, AFTER).await?;

    Box::pin(instead_of_installed(&fixture, async {
        let upstream = Upstream::new(&fixture).await?;
        let serial = upstream.finds(&volume, VOLUME_BYTES.try_into()?).await?;
        upstream.finds_snapshot(&snapshot, &volume).await?;
        let attachment = attachment_of(&fixture, &volume).await?;
        claims.end(RUNNING).await?;
        to_be_detached(&fixture, &attachment).await?;
        upstream.unpublish(&volume, &first).await?;
        mark_detached(&fixture, &attachment).await?;

        upstream.publish(&volume, &last).await?;
        let (device, formatted) = upstream.stage(&last, &serial, content).await?;
        ensure!(!formatted, "expected upstream to find the filesystem on {device}, saw it formatted");
        let read = upstream.with_mounted(&last, &device, content, "cat \"$1\"/file").await?;
        ensure!(read == WRITTEN, "expected {WRITTEN:?} in upstream's mount, saw {read:?}");
        upstream.unpublish(&volume, &last).await
    }))
    .await?;

    claims.start(LATER, CLAIM, &last, mode, false).await?;
    claims.finds_written(LATER).await.context("the volume after it was upstream's")?;
    claims.end(LATER).await?;
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    snapshots.delete(AFTER, &DeleteParams::default()).await?;
    until_gone(&snapshots, AFTER, "VolumeSnapshot", Deadline::PodStart).await?;
    let infra = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    until_gone(&infra, &snapshot, "infra VolumeSnapshot", Deadline::PodStart).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

/// Waits until kube-controller-manager deletes the VolumeAttachment, because no pod uses the volume on that worker any more.
async fn to_be_detached(fixture: &Fixture, attachment: &str) -> Result<()> {
    let attachments: Api<VolumeAttachment> = Api::all(fixture.guest.clone());
    until(&format!("{attachment} to be deleted"), Deadline::PodStart, async || {
        let metadata = attachments.get(attachment).await?.metadata;
        Ok(if metadata.deletion_timestamp.is_some() { Ok(()) } else { Err(format!("{metadata:?}")) })
    })
    .await
}

/// Does what csi-attacher does once the volume is detached.
async fn mark_detached(fixture: &Fixture, attachment: &str) -> Result<()> {
    let attachments: Api<VolumeAttachment> = Api::all(fixture.guest.clone());
    let without = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    attachments.patch(attachment, &PatchParams::default(), &without).await?;
    until_gone(&attachments, attachment, "VolumeAttachment", Deadline::Reaction).await
}
