//! Snapshots of the guest: taken while a pod writes or not, restored into claims of the same and of a larger size, over each kind of
//! infra volume; infra's own messages; and snapshots that are not this guest's.

use anyhow::{Context, Result, ensure};
use bench::{
    bring_up::Fault,
    control::Lock::OneWorker,
    scenario::{Deadline, HCP_NAMESPACE, data_volumes, until, until_gone},
    simulator::infra_storage,
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams},
};
use libtest_mimic::Trial;
use serde_json::json;
use tonic::Code;

use crate::{
    controller_process::{Content, Controller, RPC_DEADLINE, VOLUME_BYTES, block},
    fixture::Fixture,
    guest_claims::{
        Claims, GROWN, GROWN_KIB, SIZE, SIZE_KIB, Source, WRITTEN, has_grown, has_size_of_source,
    },
    trial::{name, trial},
};

tests! {
    Calls:
        infras_message_is_in_the_guests_snapshot,
        a_class_that_infra_does_not_have_is_an_error_of_the_snapshot,
        the_operators_mapping_decides_the_class,
        a_snapshot_without_our_labels_is_refused;
    OneWorker, long:
        a_copy_without_a_filesystem_is_not_formatted;
}

/// The `VolumeSnapshotClass` of `deploy/tenant/snapshots`.
pub const CLASS: &str = "kubevirt-csi-snapclass";

/// The claim of which [`taken`] takes a snapshot.
pub const CLAIM: &str = "claim";
const SNAPSHOT: &str = "snapshot";
const WRITER: &str = "writer";

/// The storage's message in an injected answer.
const WORDS: &str = "said by the storage";

/// The message by which a guest's user learns that a snapshot is not the guest's.
const REFUSAL: &str = "invalid snapshot name";

/// A snapshot class that infra does not have.
const NO_CLASS: &str = "no-such-snapshot-class";

/// Volumes whose snapshots are restored: content, infra class, and whether it is in the short list. On a filesystem infra's
/// snapshot is larger than the guest's volume.
const RESTORED: [(&str, &str, bool); 5] = [
    ("ext4", "block-immediate", false),
    ("xfs", "filesystem-rwo", true),
    ("block", "block-rwo", false),
    ("block", "filesystem-rwx", false),
    ("ext4", "block-wffc", false),
];

/// A trial for each volume whose snapshots are restored.
pub fn trials_restored() -> Vec<Trial> {
    RESTORED
        .into_iter()
        .map(|(content, class, is_short)| {
            let name = name(module_path!(), &format!("restored_{content}_from_{class}"));
            trial(name, OneWorker, move |fixture| restored(fixture, content, class))
                .with_ignored_flag(!is_short)
        })
        .collect()
}

/// `VolumeSnapshots` of a namespace.
pub fn volume_snapshots(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshot");
    let resource = ApiResource::from_gvk_with_plural(&kind, "volumesnapshots");
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// `VolumeSnapshotClasses` of a cluster.
fn volume_snapshot_classes(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotClass");
    let resource = ApiResource::from_gvk_with_plural(&kind, "volumesnapshotclasses");
    Api::all_with(client.clone(), &resource)
}

/// A snapshot is taken while a pod runs. Claims of the same and of a larger size are restored from it: both contain what was
/// written before the snapshot, and the larger one's filesystem is larger. With the guest's snapshot infra's goes.
async fn restored(fixture: Fixture, content: &str, class: &str) -> Result<()> {
    let (claims, mode) = Claims::with_content(&fixture, content, &[("infraStorageClassName", class)]).await?;
    let volume = claims.create(CLAIM, mode).await?;
    claims.start(WRITER, CLAIM, fixture.worker()?, mode, true).await?;
    let before = claims.finds_written(WRITER).await?.kib;

    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    let infra_snapshot = taken(&fixture, SNAPSHOT).await?;
    claims.end(WRITER).await?;
    claims.delete(CLAIM, &volume).await.context("delete the source before it is restored")?;

    let same = claims.create_from(Source::Snapshot(SNAPSHOT), "same", SIZE, mode).await?;
    claims.start("reader-same", "same", fixture.worker()?, mode, false).await?;
    let found = claims.finds_written("reader-same").await?;
    ensure!(has_size_of_source(before, found.kib), "expected a restored disk of {before} KiB, saw {found:?}");
    claims.end("reader-same").await?;

    let larger = claims.create_from(Source::Snapshot(SNAPSHOT), "larger", GROWN, mode).await?;
    claims.start("reader-larger", "larger", fixture.worker()?, mode, false).await?;
    let growth = GROWN_KIB - SIZE_KIB;
    let found =
        claims.finds("reader-larger", "a larger disk", |found| has_grown(before, growth, found.kib)).await?;
    ensure!(found.content == WRITTEN, "expected {WRITTEN:?} on the larger disk, saw {found:?}");
    claims.end("reader-larger").await?;

    snapshots.delete(SNAPSHOT, &DeleteParams::default()).await?;
    until_gone(&snapshots, SNAPSHOT, "VolumeSnapshot", Deadline::PodStart).await?;
    let infra = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    until_gone(&infra, &infra_snapshot, "infra VolumeSnapshot", Deadline::PodStart).await?;
    claims.delete("same", &same).await?;
    claims.delete("larger", &larger).await?;
    claims.finish().await
}

/// Makes a snapshot of [`CLAIM`] with a class.
async fn create(fixture: &Fixture, name: &str, class: &str) -> Result<()> {
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    let object = serde_json::from_value(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": class, "source": {"persistentVolumeClaimName": CLAIM}},
    }))?;
    snapshots.create(&PostParams::default(), &object).await.map(drop)?;
    Ok(())
}

/// Takes a snapshot of [`CLAIM`] and waits until it is ready and reports the guest's size; the name of infra's.
pub async fn taken(fixture: &Fixture, name: &str) -> Result<String> {
    create(fixture, name, CLASS).await?;
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    let snapshot = until(&format!("the snapshot {name} to be ready"), Deadline::PodStart, async || {
        let snapshot = snapshots.get(name).await?;
        let status = &snapshot.data["status"];
        Ok(if status["readyToUse"] == true { Ok(snapshot) } else { Err(status.to_string()) })
    })
    .await?;
    let size = &snapshot.data["status"]["restoreSize"];
    ensure!(size == SIZE, "expected the snapshot to restore to {SIZE}, saw {size}");
    Ok(format!("snapshot-{}", snapshot.metadata.uid.context("a snapshot without uid")?))
}

/// Waits until a snapshot's status has an error that contains `words`.
async fn has_error(fixture: &Fixture, name: &str, words: &str) -> Result<String> {
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    until(
        &format!("an error of the snapshot {name} that contains {words:?}"),
        Deadline::PodStart,
        async || {
            let status = snapshots.get(name).await?.data["status"].clone();
            let error = status["error"]["message"].as_str().unwrap_or_default().to_owned();
            Ok(if error.contains(words) { Ok(error) } else { Err(status.to_string()) })
        },
    )
    .await
}

/// Deletes a snapshot and waits until it is gone.
async fn delete(fixture: &Fixture, name: &str) -> Result<()> {
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    snapshots.delete(name, &DeleteParams::default()).await?;
    until_gone(&snapshots, name, "VolumeSnapshot", Deadline::PodStart).await
}

/// The storage refuses to take a snapshot: its message is in the guest's `VolumeSnapshot`, and the snapshot is ready when the fault is
/// over.
async fn infras_message_is_in_the_guests_snapshot(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture, &[]).await?;
    let volume = claims.create(CLAIM, "Filesystem").await?;
    claims.bound(CLAIM).await?;
    fixture.image_of(&volume).await?;
    let infra_claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let uid = infra_claims.get(&volume).await?.metadata.uid.context("a claim without a UID")?;
    // The storage knows the volume by the claim that CDI populated and bound it to first.
    let at =
        infra_storage::Selector { claim: Some(format!("prime-{uid}")), ..infra_storage::Selector::default() };
    let refusing = bench::control::Client::connect().await?;
    refusing
        .fault(Fault::InfraStorage(infra_storage::Fault::Refuse {
            code: "ResourceExhausted".to_owned(),
            message: WORDS.to_owned(),
            of: infra_storage::Operation::Snapshot,
            at,
        }))
        .await?;
    create(&fixture, SNAPSHOT, CLASS).await?;
    has_error(&fixture, SNAPSHOT, WORDS).await?;
    drop(refusing);
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    until("the snapshot to be ready after the fault", Deadline::MachineStart, async || {
        let status = snapshots.get(SNAPSHOT).await?.data["status"].clone();
        Ok(if status["readyToUse"] == true { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    delete(&fixture, SNAPSHOT).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

/// The guest's class names a snapshot class that infra does not have: the `VolumeSnapshot`'s error names it, and nothing is left in
/// infra once the snapshot is deleted.
async fn a_class_that_infra_does_not_have_is_an_error_of_the_snapshot(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture, &[]).await?;
    let volume = claims.create(CLAIM, "Filesystem").await?;
    claims.bound(CLAIM).await?;
    fixture.image_of(&volume).await?;
    let classes = volume_snapshot_classes(&fixture.guest);
    let class = serde_json::from_value(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
        "metadata": {"name": fixture.word}, "driver": "csi.kubevirt.io", "deletionPolicy": "Delete",
        "parameters": {"infraSnapshotClassName": NO_CLASS},
    }))?;
    classes.create(&PostParams::default(), &class).await?;
    create(&fixture, SNAPSHOT, &fixture.word).await?;
    has_error(&fixture, SNAPSHOT, NO_CLASS).await?;
    delete(&fixture, SNAPSHOT).await?;
    classes.delete(&fixture.word, &DeleteParams::default()).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

/// The operator allows one snapshot class for volumes of a storage class (`storageSnapshotMapping`), which is not infra's default: a
/// snapshot that names none is of that class, one that names infra's default is refused and makes no object.
async fn the_operators_mapping_decides_the_class(fixture: Fixture) -> Result<()> {
    const STORAGE_CLASS: &str = "block-rwo";
    let classes = volume_snapshot_classes(&fixture.infra);
    let is_default = |class: &&DynamicObject| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.is_some_and(|all| all.contains_key("snapshot.storage.kubernetes.io/is-default-class"))
    };
    let all = classes.list(&ListParams::default()).await?.items;
    let default = all.iter().find(is_default).context("infra has no default snapshot class")?;
    let class = serde_json::from_value(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
        "metadata": {"name": fixture.word}, "driver": default.data["driver"], "deletionPolicy": "Delete",
    }))?;
    classes.create(&PostParams::default(), &class).await?;
    let rules = format!(
        "allowAll: true\nstorageSnapshotMapping:\n- storageClasses: [{STORAGE_CLASS}]\n  \
         volumeSnapshotClasses: [{}]\n",
        fixture.word
    );
    let controller = Controller::enforcing(&fixture, "mapped", &rules).await?;
    let parameters = [("infraStorageClassName", STORAGE_CLASS)];
    let volume = controller.create_of(&parameters, &format!("pvc-{}", fixture.word), block()).await?;
    fixture.image_of(&volume.volume_id).await?;
    let (allowed, refused) = (format!("snapshot-{}-a", fixture.word), format!("snapshot-{}-b", fixture.word));
    let infra = volume_snapshots(&fixture.infra, HCP_NAMESPACE);

    let named = [("infraSnapshotClassName", default.metadata.name.as_deref().unwrap_or_default())];
    let answer = controller.snapshot_with(&named, &refused, &volume.volume_id, RPC_DEADLINE).await;
    let status = answer.err().context("expected a class outside of the mapping to be refused, saw OK")?;
    ensure!(
        status.code() == Code::InvalidArgument && status.message().contains("is not allowed for volumes"),
        "expected INVALID_ARGUMENT that names the rule, saw {status:?}"
    );
    ensure!(infra.get_opt(&refused).await?.is_none(), "expected no VolumeSnapshot {refused}, saw one");

    controller.snapshot(&allowed, &volume.volume_id, RPC_DEADLINE).await.context("without a class")?;
    let of_class = infra.get(&allowed).await?.data["spec"]["volumeSnapshotClassName"].clone();
    ensure!(of_class == fixture.word, "expected the class {}, saw {of_class}", fixture.word);
    controller.delete_snapshot(&allowed).await?;
    until_gone(&infra, &allowed, "VolumeSnapshot", Deadline::PodStart).await?;
    controller.delete(&volume).await.context("delete the volume")?;
    classes.delete(&fixture.word, &DeleteParams::default()).await?;
    Ok(())
}

/// A `VolumeSnapshot` of the infra namespace without the guest's labels is neither restored nor deleted, and stays.
async fn a_snapshot_without_our_labels_is_refused(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let volume = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    fixture.image_of(&volume.volume_id).await?;
    let foreign = format!("snapshot-{}", fixture.word);
    let infra = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    let object = serde_json::from_value(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": foreign},
        "spec": {"source": {"persistentVolumeClaimName": volume.volume_id}},
    }))?;
    infra.create(&PostParams::default(), &object).await?;

    let copy = format!("pvc-{}-copy", fixture.word);
    let restored = controller.create_from(Content::Snapshot(&foreign), &copy, VOLUME_BYTES).await;
    let refusals = [
        ("restore", restored.map(drop), Code::NotFound),
        ("delete", controller.delete_snapshot(&foreign).await, Code::FailedPrecondition),
    ];
    for (rpc, answer, code) in refusals {
        let status = answer.err().with_context(|| format!("expected {rpc} to be refused, saw OK"))?;
        ensure!(
            status.code() == code && status.message().contains(REFUSAL),
            "expected {code:?} with {REFUSAL:?} from {rpc}, saw {status:?}"
        );
    }
    let made = data_volumes(&fixture.infra, HCP_NAMESPACE).get_opt(&copy).await?;
    ensure!(made.is_none(), "expected no DataVolume from a foreign snapshot, saw {copy}");
    ensure!(infra.get_opt(&foreign).await?.is_some(), "expected the foreign snapshot to stay, saw none");
    infra.delete(&foreign, &DeleteParams::default()).await?;
    until_gone(&infra, &foreign, "VolumeSnapshot", Deadline::PodStart).await?;
    controller.delete(&volume).await.context("delete the volume")
}

/// A volume that was never mounted is restored: the copy is not formatted, and the pod's event says so and what to do.
async fn a_copy_without_a_filesystem_is_not_formatted(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture, &[]).await?;
    let volume = claims.create(CLAIM, "Filesystem").await?;
    claims.bound(CLAIM).await?;
    fixture.image_of(&volume).await?;
    taken(&fixture, SNAPSHOT).await?;
    let copy = claims.create_from(Source::Snapshot(SNAPSHOT), "copy", SIZE, "Filesystem").await?;
    claims.start("reader", "copy", fixture.worker()?, "Filesystem", false).await?;
    let event = claims.event("reader", "is blank, but the volume was restored or cloned").await?;
    ensure!(
        event.contains("create a claim without a source"),
        "expected what helps in the event, saw {event}"
    );
    claims.end("reader").await?;
    claims.delete("copy", &copy).await?;
    delete(&fixture, SNAPSHOT).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}
