//! Which moment a snapshot is of: a pod counts and syncs all the while, and each number that it was told to be on the disk before the
//! snapshot was requested is in the claim that is restored, after all numbers before it.

use anyhow::{Context, Result, ensure};
use bench::{
    control::Lock::OneWorker,
    scenario::{DEVICE_PATH, MOUNT_PATH, PodOnVolume},
};
use kube::api::DeleteParams;
use libtest_mimic::Trial;

use crate::{
    fixture::Fixture,
    guest_claims::{Claims, SIZE, Source},
    snapshots::{CLAIM, taken, volume_snapshots},
    trial::{name, trial},
};

const SNAPSHOT: &str = "snapshot";
const WRITER: &str = "writer";
const RESTORED: &str = "restored";
const READER: &str = "reader";

/// Volumes: content, infra class, and whether it is in the short list. A filesystem has a journal between the sync and the disk, a
/// device has not; on a filesystem infra's snapshot is of a file.
const VOLUMES: [(&str, &str, bool); 3] =
    [("ext4", "block-immediate", true), ("xfs", "filesystem-rwo", false), ("block", "block-rwo", false)];

/// Bytes of one number on the disk: less than a sector, and a divisor of it, so that no number is in two.
const RECORD: usize = 16;

/// How many numbers are read at most: more than the writer writes until the test ends.
const READ_AT_MOST: usize = 1 << 16;

/// Numbers that are on the disk before the snapshot is requested, so that the writer surely is in its loop.
const BEFORE: u64 = 10;

/// A trial for each volume.
pub fn trials() -> Vec<Trial> {
    VOLUMES
        .into_iter()
        .map(|(content, class, is_short)| {
            let name = name(module_path!(), &format!("what_was_synced_is_in_it_{content}_from_{class}"));
            trial(name, OneWorker, move |fixture| what_was_synced_is_in_it(fixture, content, class))
                .with_ignored_flag(!is_short)
        })
        .collect()
}

async fn what_was_synced_is_in_it(fixture: Fixture, content: &str, class: &str) -> Result<()> {
    let (claims, mode) = Claims::with_content(&fixture, content, &[("infraStorageClassName", class)]).await?;
    let place = if mode == "Block" { DEVICE_PATH.to_owned() } else { format!("{MOUNT_PATH}/numbers") };
    let volume = claims.create(CLAIM, mode).await?;
    let script = writing(&place);
    let writer = PodOnVolume {
        name: WRITER,
        claim: CLAIM,
        node: Some(fixture.worker()?),
        volume_mode: mode,
        script: &script,
    };
    claims.run(&writer).await?;

    let synced = claims.prints(WRITER, "some numbers synced", |line| at_least(line, BEFORE)).await?;
    taken(&fixture, SNAPSHOT).await?;
    // It went on while the snapshot was taken, and the snapshot did not stop it.
    claims
        .prints(WRITER, "more numbers synced", |line| at_least(line, synced + 1))
        .await
        .context("the writer after the snapshot")?;

    let restored = claims.create_from(Source::Snapshot(SNAPSHOT), RESTORED, SIZE, mode).await?;
    let script = reading(&place);
    let reader = PodOnVolume {
        name: READER,
        claim: RESTORED,
        node: Some(fixture.worker()?),
        volume_mode: mode,
        script: &script,
    };
    claims.run(&reader).await?;
    let found = claims.prints(READER, "numbers", |line| line.parse::<u64>().ok()).await?;
    ensure!(
        found >= synced,
        "expected all of the {synced} numbers that were synced before the snapshot, saw {found}"
    );
    let now = claims.prints(WRITER, "its number", |line| line.parse::<u64>().ok()).await?;
    ensure!(
        found < now,
        "expected a snapshot of a moment before now, when {now} numbers are written, saw {found} in it"
    );

    claims.end(READER).await?;
    claims.end(WRITER).await?;
    volume_snapshots(&fixture.guest, &fixture.word).delete(SNAPSHOT, &DeleteParams::default()).await?;
    claims.delete(RESTORED, &restored).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

/// Writes 1, 2, … one after the other, each synced before it is printed.
fn writing(place: &str) -> String {
    format!(
        "n=0; {{ while true; do printf '%{digits}d\\n' $((n + 1)) | dd of={place} bs={RECORD} seek=$n conv=notrunc,fsync \
         2>/dev/null; n=$((n + 1)); echo $n; done & }}",
        digits = RECORD - 1
    )
}

/// Prints how many numbers are there, from 1 on, without one that is missing or torn.
fn reading(place: &str) -> String {
    let bytes = READ_AT_MOST * RECORD;
    format!(
        "{{ while true; do head -c {bytes} {place} | tr -d '\\0' | \
         awk '$1 != NR {{ exit }} {{ whole = NR }} END {{ print whole + 0 }}'; sleep 1; done & }}"
    )
}

/// The number in a line, if it is large enough.
fn at_least(line: &str, least: u64) -> Option<u64> {
    line.parse().ok().filter(|number| *number >= least)
}
