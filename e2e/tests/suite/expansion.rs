//! A claim of the guest grows: while a pod uses it and while none does, over each kind of disk and infra volume; and where infra
//! refuses, or KubeVirt leaves the disk as it is, the user learns it and nothing is reported larger than it is.

use anyhow::{Result, ensure};
use bench::{
    bring_up::Fault,
    control::Lock::OneWorker,
    simulator::{
        fault_plan::{HeldStep, Hold},
        virt_handler,
    },
};
use libtest_mimic::Trial;

use crate::{
    fixture::Fixture,
    guest_claims::{Claims, GROWN, GROWN_KIB, SIZE, SIZE_KIB, WRITTEN, has_grown, infra_request},
    infra_quota::under_quota,
    trial::{name, trial},
};

tests! {
    OneWorker:
        a_claim_that_no_pod_uses_grows_for_the_next,
        a_disk_that_kubevirt_leaves_as_it_is_is_not_reported_larger,
        a_user_goes_on_after_a_refusal_by_the_infra_quota;
    Calls:
        a_class_that_does_not_grow_in_infra_is_an_event_of_the_claim;
}

/// The claim, and the pod that writes.
const CLAIM: &str = "claim";
const WRITER: &str = "writer";
const READER: &str = "reader";

/// What the user asks for after a refusal: less than [`QUOTA`].
const LESS: &str = "352Mi";
/// What infra's quota allows for the one volume of the test.
const QUOTA: &str = "400Mi";

/// An infra class whose volumes do not grow, and one that no test beside this one uses.
const FIXED: &str = "block-rwo-fixed";
const LIMITED: &str = "block-rwo-limited";

/// Volumes that grow while a pod uses them: content of the disk, its bus, the infra class, and whether it is in the short list.
const IN_USE: [(&str, &str, &str, bool); 6] = [
    // As in `installers`, which has it in the short list.
    ("ext4", "scsi", "block-immediate", false),
    ("xfs", "virtio", "filesystem-rwo", true),
    ("block", "scsi", "filesystem-rwx", true),
    ("block", "virtio", "block-rwo", false),
    ("ext4", "virtio", "filesystem-rwo-wffc", false),
    ("xfs", "scsi", "block-wffc", false),
];

/// A trial for each volume that grows while a pod uses it.
pub fn trials_in_use() -> Vec<Trial> {
    IN_USE
        .into_iter()
        .map(|(content, bus, class, is_short)| {
            let name = name(module_path!(), &format!("in_use_{content}_on_{bus}_from_{class}"));
            trial(name, OneWorker, move |fixture| in_use(fixture, content, bus, class))
                .with_ignored_flag(!is_short)
        })
        .collect()
}

/// The request is raised while a pod runs: the pod gets the larger disk without an interruption, and claim, infra and pod agree.
async fn in_use(fixture: Fixture, content: &str, bus: &str, class: &str) -> Result<()> {
    let parameters = [("infraStorageClassName", class), ("bus", bus)];
    let (claims, mode) = Claims::with_content(&fixture, content, &parameters).await?;
    let volume = claims.create(CLAIM, mode).await?;
    claims.start(WRITER, CLAIM, fixture.worker()?, mode, true).await?;
    let before = claims.finds_written(WRITER).await?.kib;

    claims.request(CLAIM, GROWN).await?;
    claims.has_capacity(CLAIM, GROWN).await?;
    let growth = GROWN_KIB - SIZE_KIB;
    let found = claims.finds(WRITER, "a larger disk", |found| has_grown(before, growth, found.kib)).await?;
    ensure!(found.content == WRITTEN, "expected {WRITTEN:?} on the larger disk, saw {found:?}");
    if mode == "Block" {
        ensure!(found.kib >= GROWN_KIB, "expected a device of {GROWN_KIB} KiB, saw {found:?}");
    }
    claims.end(WRITER).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

/// The request is raised while no pod uses the claim: infra's volume grows, and the filesystem when the next pod starts,
/// with what was written before.
async fn a_claim_that_no_pod_uses_grows_for_the_next(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture, &[]).await?;
    let volume = claims.create(CLAIM, "Filesystem").await?;
    claims.start(WRITER, CLAIM, fixture.worker()?, "Filesystem", true).await?;
    let before = claims.finds_written(WRITER).await?.kib;
    claims.end(WRITER).await?;

    claims.request(CLAIM, GROWN).await?;
    claims.waits_for_a_pod(CLAIM).await?;
    let requested = infra_request(&fixture, &volume).await? >> 10;
    ensure!(requested == GROWN_KIB, "expected the infra claim to request {GROWN_KIB} KiB, saw {requested}");
    ensure!(
        claims.capacity(CLAIM).await? == SIZE,
        "expected the claim to have {SIZE} until a pod uses it, saw {}",
        claims.capacity(CLAIM).await?
    );

    claims.start(READER, CLAIM, fixture.worker()?, "Filesystem", false).await?;
    let growth = GROWN_KIB - SIZE_KIB;
    let found = claims.finds(READER, "a larger disk", |found| has_grown(before, growth, found.kib)).await?;
    ensure!(found.content == WRITTEN, "expected {WRITTEN:?} on the larger disk, saw {found:?}");
    claims.has_capacity(CLAIM, GROWN).await?;
    claims.end(READER).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

/// KubeVirt before 1.8.2 without its gate `ExpandDisks` does not grow a plugged disk: infra's volume is larger, the pod's event
/// says what it waits for and what helps, and neither the claim nor the filesystem is larger than before. When the disk grows after
/// all, the expansion ends by itself.
async fn a_disk_that_kubevirt_leaves_as_it_is_is_not_reported_larger(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture, &[]).await?;
    let volume = claims.create(CLAIM, "Filesystem").await?;
    claims.start(WRITER, CLAIM, fixture.worker()?, "Filesystem", true).await?;
    let before = claims.finds_written(WRITER).await?;

    let without_growth = bench::control::Client::connect().await?;
    let at = virt_handler::Selector { volume: Some(volume.clone()), ..virt_handler::Selector::default() };
    let held = HeldStep { step: virt_handler::Step::Grow, hold: Hold::Forever, at };
    without_growth.fault(Fault::VirtHandler(virt_handler::Fault::Hold(held))).await?;
    claims.request(CLAIM, GROWN).await?;
    let event = claims.event(WRITER, "ExpandDisks").await?;
    ensure!(
        event.contains("Unavailable") && event.contains("end the pods on this node"),
        "expected UNAVAILABLE and what helps in the pod's event, saw {event}"
    );
    let has = claims.capacity(CLAIM).await?;
    ensure!(has == SIZE, "expected the claim to have {SIZE}, saw {has}");
    let now = claims.finds_written(WRITER).await?;
    ensure!(now == before, "expected the filesystem to be as before, {before:?}, saw {now:?}");

    drop(without_growth);
    claims.has_capacity(CLAIM, GROWN).await?;
    let growth = GROWN_KIB - SIZE_KIB;
    claims.finds(WRITER, "a larger disk", |found| has_grown(before.kib, growth, found.kib)).await?;
    claims.end(WRITER).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

/// Infra's quota does not allow the larger size: the claim's event says so with the quota's name, and the user who then asks for
/// less gets it.
async fn a_user_goes_on_after_a_refusal_by_the_infra_quota(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture, &[("infraStorageClassName", LIMITED)]).await?;
    let volume = claims.create(CLAIM, "Filesystem").await?;
    claims.start(WRITER, CLAIM, fixture.worker()?, "Filesystem", true).await?;
    let before = claims.finds_written(WRITER).await?.kib;

    let counted = format!("{LIMITED}.storageclass.storage.k8s.io/requests.storage");
    under_quota(&fixture, &counted, QUOTA, refused_by_quota(&fixture, &claims)).await?;

    claims.finds(WRITER, "a somewhat larger disk", |found| found.kib > before).await?;
    claims.end(WRITER).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

async fn refused_by_quota(fixture: &Fixture, claims: &Claims<'_>) -> Result<()> {
    claims.request(CLAIM, GROWN).await?;
    let event = claims.event(CLAIM, "exceeded quota").await?;
    ensure!(event.contains(&fixture.word), "expected the event to name the quota, saw {event}");
    let has = claims.capacity(CLAIM).await?;
    ensure!(has == SIZE, "expected the claim to have {SIZE} after the refusal, saw {has}");
    claims.request(CLAIM, LESS).await?;
    claims.has_capacity(CLAIM, LESS).await
}

/// The guest's class allows growth and infra's does not: the claim's event has infra's own reason.
async fn a_class_that_does_not_grow_in_infra_is_an_event_of_the_claim(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture, &[("infraStorageClassName", FIXED)]).await?;
    let volume = claims.create(CLAIM, "Filesystem").await?;
    claims.bound(CLAIM).await?;
    fixture.image_of(&volume).await?;
    claims.request(CLAIM, GROWN).await?;
    claims.event(CLAIM, "only dynamically provisioned pvc can be resized").await?;
    let has = claims.capacity(CLAIM).await?;
    ensure!(has == SIZE, "expected the claim to have {SIZE}, saw {has}");
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}
