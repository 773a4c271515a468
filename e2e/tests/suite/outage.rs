//! Infra is away for minutes in the middle of creates and attaches: no process crashes, nothing is done twice, everything succeeds at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::scenario::Deadline;
use fault_proxy::{Action, Guard, Matcher, Rule};

use crate::{
    attachments::{FakeNode, Volumes, our_data_volumes},
    fixture::Fixture,
    rows,
    stack::{Options, Stack, instead_of_installed},
};

tests! {
    Workers:
        infra_is_away_and_comes_back;
}

/// How long infra is away.
const OUTAGE: Duration = Duration::from_mins(2);

/// How long where not all tests were asked for: every call under way has failed by then, and the first were tried again.
const SHORT_OUTAGE: Duration = Duration::from_secs(20);

/// How often the driver is checked meanwhile.
const LOOK: Duration = Duration::from_secs(5);

/// Volumes that are being created, and as many that are being attached, when infra goes away.
const COUNT: usize = 20;

/// How many calls of each kind have succeeded when infra goes away.
const THROUGH: u32 = 3;

/// How many creates have landed then and are not answered.
const UNANSWERED: u32 = 8;

/// Twenty claims and twenty attachments, with the real sidecars; infra goes away in their middle.
async fn infra_is_away_and_comes_back(fixture: Fixture) -> Result<()> {
    Box::pin(instead_of_installed(&fixture, body(&fixture))).await
}

async fn body(fixture: &Fixture) -> Result<()> {
    let before = our_data_volumes(fixture).await?;
    let nodes = [FakeNode::start(fixture, "vm1").await?, FakeNode::start(fixture, "vm2").await?];
    let stack = Stack::start(fixture, "a", &Options::default()).await?;
    let volumes = Volumes::new(fixture).await?;
    let names = |kind: &str| -> Vec<String> { (0..COUNT).map(|index| format!("{kind}-{index}")).collect() };
    let (early, late) = (names("early"), names("late"));
    volumes.ask(&early).await?;
    let attached = volumes.bound(&early).await?;

    let (creations, plugs) =
        (Matcher::of("create", "datavolumes"), Matcher::of("update", "virtualmachines/addvolume"));
    // The middle: some calls have succeeded, some have landed and are not answered, the rest has not landed.
    let held = [middle(&stack, &creations, UNANSWERED), middle(&stack, &plugs, 1)];
    volumes.attach(&attached, &nodes).await?;
    volumes.ask(&late).await?;
    let before_landing = u32::try_from(COUNT)? - THROUGH - UNANSWERED;
    let all_held = async {
        held[0][0].caught(UNANSWERED).await;
        held[0][1].caught(before_landing).await;
        // The calls of one VM go one after another: one VM's call is unanswered, the other's has not landed.
        held[1][0].caught(1).await;
        held[1][1].caught(1).await;
    };
    tokio::time::timeout(Deadline::PodStart.duration(), all_held)
        .await
        .context("expected calls in each state before the outage, saw less")?;
    let away = stack.infra().away();
    drop(held);
    let (made, plugged) = (stack.infra().succeeded(&creations), stack.infra().succeeded(&plugs));
    println!("infra goes away with {made} of {} created and {plugged} of {COUNT} plugged in", 2 * COUNT);
    ensure!(
        made < 2 * COUNT && plugged < COUNT,
        "expected work left when infra goes away, saw {made} volumes made and {plugged} plugged"
    );
    let gone = Instant::now();
    let outage = if rows::all() { OUTAGE } else { SHORT_OUTAGE };
    while gone.elapsed() < outage {
        stack.ensure_alive().await?;
        tokio::time::sleep(LOOK).await;
    }
    drop(away);
    let back = Instant::now();

    let created = volumes.bound(&late).await?;
    println!("{:.0} s after its return all claims are bound", back.elapsed().as_secs_f32());
    volumes.attached(&attached).await?;
    println!("{:.0} s after its return all volumes are attached", back.elapsed().as_secs_f32());
    stack.ensure_alive().await?;
    let ours = our_data_volumes(fixture).await?;
    let new: Vec<String> = ours.difference(&before).cloned().collect();
    ensure!(new.len() == 2 * COUNT, "expected {} DataVolumes, saw {}: {new:?}", 2 * COUNT, new.len());
    let all: Vec<String> = attached.iter().chain(&created).cloned().collect();
    ensure!(
        all.iter().all(|volume| new.contains(volume)),
        "expected a DataVolume for each volume, saw {new:?}"
    );

    volumes.end(&early, &attached).await?;
    volumes.end(&late, &created).await?;
    let left: Vec<String> = our_data_volumes(fixture).await?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "expected nothing left over, saw {left:?}");
    for node in nodes {
        node.end(fixture).await?;
    }
    Ok(())
}

/// Splits the calls that `at` selects: the first pass, the next `unanswered` land without an answer, the rest does not land.
fn middle(stack: &Stack, at: &Matcher, unanswered: u32) -> [Guard; 2] {
    let after = Rule { at: at.clone(), skip: THROUGH, limit: Some(unanswered), action: Action::FreezeAfter };
    // The older rule sees each call first, so this one meets what that one leaves.
    let before = Rule { at: at.clone(), skip: THROUGH, limit: None, action: Action::FreezeBefore };
    [stack.infra().add(after), stack.infra().add(before)]
}
