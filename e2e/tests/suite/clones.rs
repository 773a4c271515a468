//! A claim with another claim as its source: one that no pod uses and one that a pod uses, over each kind of infra volume. Of one
//! in use a temporary snapshot is taken in infra, of which nothing is left.

use anyhow::{Context, Result, ensure};
use bench::{
    control::Lock::OneWorker,
    scenario::{Deadline, HCP_NAMESPACE, data_volumes, until},
};
use kube::{ResourceExt, api::ListParams};
use libtest_mimic::Trial;
use tonic::Code;

use crate::{
    controller_process::{Content, Controller, VOLUME_BYTES, block},
    fixture::Fixture,
    guest_claims::{Claims, SIZE, Source, has_size_of_source},
    snapshots::volume_snapshots,
    trial::{name, trial},
};

tests! {
    Calls:
        a_clone_smaller_than_its_source_is_refused;
}

const SOURCE: &str = "source";
const COPY: &str = "copy";
const WRITER: &str = "writer";
const READER: &str = "reader";

/// Clones: content, infra class, whether a pod uses the source meanwhile, and whether it is in the short list.
const CLONED: [(&str, &str, bool, bool); 5] = [
    ("ext4", "block-immediate", false, false),
    ("ext4", "block-immediate", true, true),
    ("xfs", "filesystem-rwo", true, false),
    ("block", "block-wffc", false, true),
    ("block", "block-rwo-csi-clone", false, false),
];

/// A trial for each clone.
pub fn trials_cloned() -> Vec<Trial> {
    CLONED
        .into_iter()
        .map(|(content, class, in_use, is_short)| {
            let state = if in_use { "in_use" } else { "unused" };
            let name = name(module_path!(), &format!("{state}_{content}_from_{class}"));
            let run = move |fixture| cloned(fixture, content, class, in_use);
            trial(name, OneWorker, run).with_ignored_flag(!is_short)
        })
        .collect()
}

/// The copy has what was written to the source before, and no temporary snapshot is left in infra.
async fn cloned(fixture: Fixture, content: &str, class: &str, in_use: bool) -> Result<()> {
    let (claims, mode) = Claims::with_content(&fixture, content, &[("infraStorageClassName", class)]).await?;
    let source = claims.create(SOURCE, mode).await?;
    claims.start(WRITER, SOURCE, fixture.worker()?, mode, true).await?;
    let before = claims.finds_written(WRITER).await?.kib;
    if !in_use {
        claims.end(WRITER).await?;
    }
    let copy = claims.create_from(Source::Claim(SOURCE), COPY, SIZE, mode).await?;
    claims.start(READER, COPY, fixture.worker()?, mode, false).await?;
    let found = claims.finds_written(READER).await?;
    ensure!(has_size_of_source(before, found.kib), "expected a copy of {before} KiB, saw {found:?}");
    if in_use {
        claims.finds_written(WRITER).await.context("the source after it was cloned")?;
        claims.end(WRITER).await?;
    }
    claims.end(READER).await?;
    claims.delete(COPY, &copy).await?;
    no_snapshot_of(&fixture, &copy).await?;
    claims.delete(SOURCE, &source).await?;
    claims.finish().await
}

/// Waits until infra has no snapshot whose name contains the clone's.
async fn no_snapshot_of(fixture: &Fixture, clone: &str) -> Result<()> {
    let snapshots = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    until(&format!("the temporary snapshot for {clone} to be gone"), Deadline::PodStart, async || {
        let all = snapshots.list(&ListParams::default()).await?.items;
        let left: Vec<String> =
            all.iter().map(ResourceExt::name_any).filter(|name| name.contains(clone)).collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
    })
    .await
}

/// The request is refused before anything is made in infra.
async fn a_clone_smaller_than_its_source_is_refused(fixture: Fixture) -> Result<()> {
    let controller = Controller::start(&fixture, "a").await?;
    let source = controller.create(&format!("pvc-{}", fixture.word), block()).await?;
    fixture.image_of(&source.volume_id).await?;
    let copy = format!("pvc-{}-copy", fixture.word);
    let answer = controller.create_from(Content::Volume(&source.volume_id), &copy, VOLUME_BYTES / 2).await;
    let status = answer.err().context("expected a smaller clone to be refused, saw OK")?;
    ensure!(status.code() == Code::OutOfRange, "expected OUT_OF_RANGE for a smaller clone, saw {status:?}");
    let made = data_volumes(&fixture.infra, HCP_NAMESPACE).get_opt(&copy).await?;
    ensure!(made.is_none(), "expected no DataVolume for a refused clone, saw {copy}");
    controller.delete(&source).await.context("delete the source")
}
