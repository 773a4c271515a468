//! Services come, change and go, round after round: a cloud controller manager that lives for months must not grow by it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bench::scenario::{Deadline, until};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::json;

use super::memory::Memory;
use crate::fixture::{Fixture, setting};
use crate::provider::{ALONE, CLUSTER, Place, merge, mirror_name};

tests! {
    Exclusive, long:
        churn_leaves_no_memory_behind;
}

/// How many lives at a time: one round.
const LIVES: usize = 100;
/// Fewest rounds, so that each third has five: what is kept of each life first fills the gaps of the heap.
const ROUNDS: usize = 15;
/// How long to go on by default.
const USUAL: Duration = Duration::from_mins(1);
/// The environment variable with the time to go on, in seconds: `BENCH_CHURN=3600` for an hour.
const SETTING: &str = "BENCH_CHURN";
/// A watch ends after so long (kube's default), and the restart of all watches costs some 0.5 MiB, once: a run ends before, or is three
/// times as long, so that it falls into the first third.
const WATCH: Duration = Duration::from_secs(290);
/// By how much the last third's median may be above the middle third's, in KiB. The heap of a process without a leak still grows
/// within the first hundreds of lives, by ever smaller steps, and varies by some dozen pages: 156 KiB were seen, 24 in an hour.
/// What is kept of each life fills the gaps of the heap first; after that, 1 KiB of it is twice as much in the 500 lives of a third,
/// and in an hour's churn 50 bytes are more.
const TOLERANCE: u32 = 256;
/// The last event of a life.
const LAST_EVENT: &str = "DeletedLoadBalancer";
/// An annotation that a guest changes.
const CHANGE: &str = "example.com/change";

/// Rounds of whole lives; after each one, at rest, the anonymous memory is read. The first third fills what is bounded (events
/// remembered, connections, buffers); from then on it stays.
async fn churn_leaves_no_memory_behind(fixture: Fixture) -> Result<()> {
    let length = setting(SETTING)?.map_or(USUAL, Duration::from_secs);
    ensure!(
        length < WATCH || length >= 3 * WATCH,
        "expected {SETTING} below {WATCH:?}, or at least three times that, saw {}",
        length.as_secs()
    );
    let place = Place::of_shipped(&fixture).await?;
    let provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    let events: Api<Event> = Api::namespaced(fixture.guest.clone(), &place.namespace);
    let (began, mut rests) = (Instant::now(), Vec::new());
    while rests.len() < ROUNDS || began.elapsed() < length {
        round(&place, rests.len()).await?;
        rest(&events).await?;
        rests.push(Memory::of(&provider)?);
        println!("round {}: {}", rests.len(), rests[rests.len() - 1]);
    }
    ensure!(
        provider.process.ended().is_none(),
        "expected the provider to run, saw it ended: {}",
        provider.process.log_tail(5)
    );

    let third = rests.len() / 3;
    let [first, middle, last] = [0, rests.len() - 2 * third, rests.len() - third]
        .map(|from| median(&rests[from..(from + third).min(rests.len())]));
    let value = format!("median of each third of {} rounds: {first}, {middle}, {last} KiB", rests.len());
    let lives = rests.len() * LIVES;
    let name = format!("cloud controller manager's anonymous memory over {lives} Services' lives");
    let beside = format!("release build, {:.0} s", began.elapsed().as_secs_f64());
    fixture.figures.add(&name, value, beside)?;
    ensure!(
        last <= middle + TOLERANCE,
        "expected constant memory, saw {middle} KiB in the middle third of {lives} lives, {last} KiB in the last"
    );
    Ok(())
}

/// All of a round are created, changed and deleted, each step for all at once.
async fn round(place: &Place, round: usize) -> Result<()> {
    let names: Vec<String> = (0..LIVES).map(|number| format!("life-{round}-{number}")).collect();
    let made = try_join_all(names.iter().map(|name| place.create(name, json!({})))).await?;
    try_join_all(names.iter().map(|name| place.served(name))).await?;
    let change = json!({"metadata": {"annotations": {CHANGE: "yes"}}});
    try_join_all(names.iter().map(|name| merge(&place.guests, name, change.clone()))).await?;
    let changed = |mirror: &serde_json::Value| mirror["metadata"]["annotations"][CHANGE] == "yes";
    let mirrors: Vec<String> = made.iter().map(mirror_name).collect();
    try_join_all(mirrors.iter().map(|mirror| place.mirror(mirror, "the change", changed))).await?;
    try_join_all(
        names.iter().map(|name| async { place.guests.delete(name, &DeleteParams::default()).await }),
    )
    .await?;
    until("all Services to be gone", Deadline::PodStart, async || {
        let all = ListParams::default();
        let left: [Vec<Service>; 2] =
            [place.guests.list(&all).await?.items, place.mirrors.list(&all).await?.items];
        let left = left.iter().map(Vec::len).sum::<usize>();
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} are left")) })
    })
    .await
}

/// Waits until the provider has written all events of a round, and makes room for the next.
async fn rest(events: &Api<Event>) -> Result<()> {
    until("the last event of each life", Deadline::PodStart, async || {
        let last = ListParams::default().fields(&format!("reason={LAST_EVENT}"));
        let said = events.list_metadata(&last).await?.items.len();
        Ok(if said >= LIVES { Ok(()) } else { Err(format!("{said} of {LIVES}")) })
    })
    .await?;
    events.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    Ok(())
}

/// The median of the anonymous memory, in KiB.
fn median(rests: &[Memory]) -> u32 {
    let mut all: Vec<u32> = rests.iter().map(|memory| memory.anonymous).collect();
    all.sort_unstable();
    all[all.len() / 2]
}
