//! What copies a volume or makes it larger in infra is away, full or out of quota in the middle; or the source is deleted: the guest
//! learns it, nothing is reported that is not there, and nothing is left over.

use std::{fs::File, os::unix::fs::FileExt, time::Duration};

use anyhow::{Context, Result, ensure};
use bench::{
    bring_up::Fault,
    scenario::{Deadline, HCP_NAMESPACE, data_volumes, until, until_gone},
    simulator::{
        fault_plan::Hold,
        infra_storage::{self, Operation, Selector},
    },
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt, api::ListParams};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::Code;

use crate::{
    controller_process::{Content, Controller, VOLUME_BYTES, block},
    fixture::Fixture,
    guest_claims::infra_capacity,
    infra_quota::under_quota,
    snapshots::volume_snapshots,
    volume_life::is_uncertain,
};

tests! {
    // What other tests ask of infra meanwhile waits, and is answered before their deadlines.
    Calls:
        a_snapshot_is_taken_once_though_its_controller_was_away,
        a_clone_is_filled_once_though_cdi_was_away,
        a_source_that_is_deleted_meanwhile_is_cloned_or_the_clone_reports_it;
    // What others make meanwhile would be refused.
    Workers:
        a_quota_of_snapshots_is_the_answer,
        a_full_storage_holds_an_expansion_up_and_reports_no_size;
}

/// Deadline of an RPC that infra does not complete.
const SHORT: Duration = Duration::from_secs(5);
/// Deadline of an RPC that waits until the infra storage has failed for a while.
const LONG: Duration = Duration::from_mins(1);

/// Deadline of an attach that infra completes soon or never.
const SOON_OR_NEVER: Duration = Duration::from_secs(30);

/// What is written to a source.
const WRITTEN: &[u8; 6] = b"source";

/// An expandable class, and what its storage has.
const FULL_CLASS: &str = "block-rwo";
const FULL_BYTES: u64 = 400 << 20;

/// Processes that are stopped, as on a node that is away; they go on when this is dropped.
struct Away(Vec<Pid>);

impl Away {
    async fn start(fixture: &Fixture, names: &[&str]) -> Result<Self> {
        let parts = fixture.control.status().await?;
        let mut away = Self(Vec::new());
        for name in names {
            let part = parts.iter().find(|part| part.name == *name);
            let pid = Pid::from_raw(part.with_context(|| format!("no part {name}"))?.pid.try_into()?);
            kill(pid, Signal::SIGSTOP).with_context(|| format!("stop {name}"))?;
            away.0.push(pid);
        }
        Ok(away)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        for pid in &self.0 {
            // One that has ended needs nothing.
            kill(*pid, Signal::SIGCONT).ok();
        }
    }
}

/// The infra cluster's snapshot-controller and csi-snapshotter are away: `CreateSnapshot` answers that the snapshot is not ready, as
/// often as it is asked, and there is one. It is ready when they are back.
async fn a_snapshot_is_taken_once_though_its_controller_was_away(fixture: Fixture) -> Result<()> {
    let controller = Controller::of_own_guest(&fixture, "a").await?;
    let source = controller.create(&format!("pvc-{}", fixture.word), block()).await?.volume_id;
    fixture.image_of(&source).await?;
    let name = format!("snapshot-{}", fixture.word);

    let away = Away::start(&fixture, &["infra-snapshot-controller", "infra-csi-snapshotter"]).await?;
    for _ in 0..2 {
        let taken = controller.snapshot(&name, &source, SHORT).await.context("while they are away")?;
        ensure!(!taken.ready_to_use, "expected a snapshot that is not ready, saw {taken:?}");
    }
    let copy = format!("pvc-{}-copy", fixture.word);
    let early =
        controller.create_from_within(Content::Snapshot(&name), &copy, VOLUME_BYTES, &[], SHORT).await;
    let status = early.err().context("expected no restore of what is not taken, saw OK")?;
    ensure!(status.code() == Code::Aborted, "expected ABORTED before it is ready, saw {status:?}");
    drop(away);

    until("the snapshot to be ready", Deadline::PodStart, async || {
        let taken = controller.snapshot(&name, &source, LONG).await?;
        Ok(if taken.ready_to_use { Ok(()) } else { Err("not ready".to_owned()) })
    })
    .await?;
    let all = controller.snapshots_of(&source, LONG).await?;
    ensure!(all == [name.clone()], "expected one snapshot, saw {all:?}");
    controller.delete_snapshot(&name).await?;
    let snapshots = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    until_gone(&snapshots, &name, "VolumeSnapshot", Deadline::PodStart).await?;
    controller.delete_id(&source).await.context("delete the volume")
}

/// CDI is away when a clone through a temporary snapshot is created and attached: the attach reports what it waits for, the temporary
/// snapshot stays as long as it is needed, and the clone has its content when CDI is back.
async fn a_clone_is_filled_once_though_cdi_was_away(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let source = written(&fixture, &controller, "source").await?;
    let copy = format!("pvc-{}-copy", fixture.word);

    let away = Away::start(&fixture, &["cdi-controller"]).await?;
    let by_snapshot = [("cloneMethod", "snapshot")];
    let content = Content::Volume(&source);
    let clone = controller.create_from_within(content, &copy, VOLUME_BYTES, &by_snapshot, LONG).await?;
    let answer = controller.publish_within(&clone, &machine, SHORT).await;
    let status = answer.err().context("expected no attach of what CDI has not made, saw OK")?;
    ensure!(is_uncertain(status.code()), "expected a code that the attacher retries, saw {status:?}");
    ensure!(
        status.message().contains("data volume"),
        "expected the answer to name what it waits for, saw {status:?}"
    );
    let snapshots = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    let temporary = format!("clone-{copy}");
    ensure!(
        snapshots.get_opt(&temporary).await?.is_some(),
        "expected the temporary snapshot to stay until CDI has read it, saw none"
    );
    drop(away);

    until("the clone to be attached", Deadline::PodStart, async || {
        Ok(controller.publish_within(&clone, &machine, LONG).await.map_err(|status| format!("{status:?}")))
    })
    .await?;
    has_content(&fixture, &copy).await?;
    controller.discard_keeping(&clone, &machine).await?;
    controller.delete(&clone).await?;
    until_gone(&snapshots, &temporary, "temporary VolumeSnapshot", Deadline::PodStart).await?;
    controller.delete_id(&source).await?;
    fixture.delete_machine(&machine).await
}

/// The source of a clone is deleted before the storage has its content, by each way of cloning. The clone has the content all the
/// same, or its attach never succeeds; and when both are deleted, nothing of them is left.
async fn a_source_that_is_deleted_meanwhile_is_cloned_or_the_clone_reports_it(
    fixture: Fixture,
) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let machine = format!("{}-vm", fixture.word);
    fixture.empty_machine(&machine).await?;
    let ways = [
        ("pvc", Operation::Snapshot),
        ("pvc", Operation::Clone),
        ("snapshot", Operation::Clone),
        ("dataSourceRef", Operation::Clone),
    ];
    for (index, (method, held)) in ways.into_iter().enumerate() {
        let what = format!("method {method}, {held:?} held up");
        let source = written(&fixture, &controller, &format!("s{index}")).await?;
        let holding = bench::control::Client::connect().await?;
        let hold = infra_storage::Fault::Hold { hold: Hold::Forever, of: held, at: Selector::default() };
        holding.fault(Fault::InfraStorage(hold)).await?;
        let copy = format!("{source}-copy");
        let content = Content::Volume(&source);
        let parameters = [("cloneMethod", method)];
        let clone = controller
            .create_from_within(content, &copy, VOLUME_BYTES, &parameters, LONG)
            .await
            .with_context(|| what.clone())?;
        until(&format!("{what}: CDI to begin"), Deadline::Reaction, async || {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
            let claim = claims.get_opt(&copy).await?;
            Ok(claim.map(drop).ok_or_else(|| "no claim".to_owned()))
        })
        .await?;
        controller.delete_id(&source).await.with_context(|| format!("{what}: delete the source"))?;
        let early = controller.publish_within(&clone, &machine, SHORT).await;
        let status = early.err().with_context(|| format!("{what}: attached without its content"))?;
        ensure!(is_uncertain(status.code()), "{what}: expected a code that is retried, saw {status:?}");
        drop(holding);

        let attached = controller.publish_within(&clone, &machine, SOON_OR_NEVER).await;
        println!("{what}: {attached:?}");
        match attached {
            Ok(()) => has_content(&fixture, &copy).await.with_context(|| what.clone())?,
            Err(status) => {
                // Final once CDI has given up.
                let is_right = is_uncertain(status.code()) || status.code() == Code::FailedPrecondition;
                ensure!(is_right, "{what}: expected a code that is retried, saw {status:?}");
                ensure!(
                    status.message().contains("data volume phase"),
                    "{what}: expected what CDI reports in the answer, saw {status:?}"
                );
            }
        }
        controller.discard_keeping(&clone, &machine).await?;
        controller.delete(&clone).await?;
        nothing_left(&fixture, &source).await.with_context(|| what.clone())?;
    }
    fixture.delete_machine(&machine).await
}

/// The infra namespace may have no more snapshots: `CreateSnapshot` answers `RESOURCE_EXHAUSTED` with the quota's name, nothing is left,
/// and the next succeeds when it may.
async fn a_quota_of_snapshots_is_the_answer(fixture: Fixture) -> Result<()> {
    const COUNTED: &str = "count/volumesnapshots.snapshot.storage.k8s.io";
    let controller = Controller::start(&fixture, "a").await?;
    let source = controller.create(&format!("pvc-{}", fixture.word), block()).await?.volume_id;
    fixture.image_of(&source).await?;
    let name = format!("snapshot-{}", fixture.word);
    let refused = under_quota(&fixture, COUNTED, "0", async {
        anyhow::Ok(controller.snapshot(&name, &source, LONG).await)
    })
    .await?;
    let status = refused.err().context("expected the quota to refuse the snapshot, saw OK")?;
    ensure!(
        status.code() == Code::ResourceExhausted && status.message().contains(&fixture.word),
        "expected RESOURCE_EXHAUSTED and the quota's name, saw {status:?}"
    );
    let snapshots = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    ensure!(snapshots.get_opt(&name).await?.is_none(), "expected no snapshot after the refusal, saw one");
    until("the snapshot after the quota", Deadline::PodStart, async || {
        let taken = controller.snapshot(&name, &source, LONG).await;
        Ok(match taken {
            Ok(taken) if taken.ready_to_use => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .await?;
    controller.delete_snapshot(&name).await?;
    until_gone(&snapshots, &name, "VolumeSnapshot", Deadline::PodStart).await?;
    controller.delete_id(&source).await.context("delete the volume")
}

/// The infra storage is full in the middle of an expansion. It answers `ResourceExhausted`, which infra's csi-resizer takes for "in
/// progress": it writes nothing to the claim's status. So the answer is that the expansion goes on, the volume is not reported larger,
/// and it has its size when there is room.
async fn a_full_storage_holds_an_expansion_up_and_reports_no_size(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let parameters = [("infraStorageClassName", FULL_CLASS)];
    let name = format!("pvc-{}", fixture.word);
    let volume = controller.create_of(&parameters, &name, block()).await?.volume_id;
    fixture.image_of(&volume).await?;
    let full = bench::control::Client::connect().await?;
    let capacity = infra_storage::Fault::Capacity { class: FULL_CLASS.to_owned(), bytes: FULL_BYTES };
    full.fault(Fault::InfraStorage(capacity)).await?;

    for _ in 0..2 {
        let answer = controller.expand(&volume, 2 * VOLUME_BYTES, SHORT).await;
        let status = answer.err().context("expected a full storage not to expand the volume, saw OK")?;
        ensure!(
            is_uncertain(status.code()) && status.message().contains("the infra claim is being expanded"),
            "expected an answer that is retried and says what it waits for, saw {status:?}"
        );
        let has = infra_capacity(&fixture, &volume).await?;
        ensure!(has == u64::try_from(VOLUME_BYTES)?, "expected the claim to keep its size, saw {has}");
    }
    drop(full);
    let size = until("the larger size", Deadline::PodStart, async || {
        let answer = controller.expand(&volume, 2 * VOLUME_BYTES, LONG).await;
        Ok(answer.map_err(|status| format!("{status:?}")))
    })
    .await?;
    ensure!(size == 2 * VOLUME_BYTES, "expected {} bytes, saw {size}", 2 * VOLUME_BYTES);
    controller.delete_id(&volume).await.context("delete the volume")
}

/// A new volume with [`WRITTEN`] at its beginning.
async fn written(fixture: &Fixture, controller: &Controller, suffix: &str) -> Result<String> {
    let name = format!("pvc-{}-{suffix}", fixture.word);
    let volume = controller.create(&name, block()).await?.volume_id;
    let image = fixture.image_of(&volume).await?;
    File::options().write(true).open(&image)?.write_all_at(WRITTEN, 0)?;
    Ok(volume)
}

/// Checks that a volume begins with [`WRITTEN`].
async fn has_content(fixture: &Fixture, volume: &str) -> Result<()> {
    let mut bytes = [0; WRITTEN.len()];
    File::open(fixture.image_of(volume).await?)?.read_exact_at(&mut bytes, 0)?;
    ensure!(bytes == *WRITTEN, "expected {volume} to begin with the source's content, saw {bytes:?}");
    Ok(())
}

/// Waits until infra has no object whose name contains that of the volume.
async fn nothing_left(fixture: &Fixture, volume: &str) -> Result<()> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let volumes = data_volumes(&fixture.infra, HCP_NAMESPACE);
    let snapshots = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    until(&format!("nothing of {volume} to be left"), Deadline::PodStart, async || {
        let all = ListParams::default();
        let mut names: Vec<String> =
            claims.list(&all).await?.items.iter().map(ResourceExt::name_any).collect();
        names.extend(volumes.list(&all).await?.items.iter().map(ResourceExt::name_any));
        names.extend(snapshots.list(&all).await?.items.iter().map(ResourceExt::name_any));
        names.retain(|name| name.contains(volume));
        Ok(if names.is_empty() { Ok(()) } else { Err(format!("{names:?}")) })
    })
    .await
}
