//! Faults between the real sidecars and the driver's socket: nothing is done twice, everything succeeds at the end.

use anyhow::{Context, Result, ensure};
use bench::scenario::Deadline;
use fault_proxy::{Action, Matcher, Rule};

use crate::{
    attachments::{FakeNode, Volumes, our_data_volumes},
    fixture::Fixture,
    stack::{Options, Stack, instead_of_installed},
};

tests! {
    Workers:
        a_broken_socket_doubles_nothing;
}

/// The sidecars' timeout: short, so that the attacher itself gives up a hung call.
const TIMEOUT: &str = "10s";

/// A lost reply of CreateVolume, a ControllerPublishVolume that is never answered, a socket that breaks during another, and a
/// lost reply of ControllerUnpublishVolume and DeleteVolume.
async fn a_broken_socket_doubles_nothing(fixture: Fixture) -> Result<()> {
    Box::pin(instead_of_installed(&fixture, body(&fixture))).await
}

async fn body(fixture: &Fixture) -> Result<()> {
    let options = Options { election: false, timeout: Some(TIMEOUT) };
    let before = our_data_volumes(fixture).await?;
    let nodes = [FakeNode::start(fixture, "vm").await?];
    let stack = Stack::start(fixture, "a", &options).await?;
    let volumes = Volumes::new(fixture).await?;
    let claims = ["one".to_owned(), "two".to_owned()];
    let once = |method: &str, action| stack.socket().add(Rule::once(Matcher::of_method(method), action));

    let lost = once("CreateVolume", Action::LoseReply);
    volumes.ask(&claims).await?;
    let bound = volumes.bound(&claims).await.context("the reply of CreateVolume was lost")?;
    ensure!(lost.count() == 1, "expected one lost reply, saw {}", lost.count());
    let made = our_data_volumes(fixture).await?.difference(&before).count();
    ensure!(made == claims.len(), "expected {} DataVolumes, saw {made}", claims.len());

    let hung = once("ControllerPublishVolume", Action::Hang);
    volumes.attach(&bound[..1], &nodes).await?;
    volumes.attached(&bound[..1]).await.context("ControllerPublishVolume hung")?;
    ensure!(hung.count() == 1, "expected one hanging call, saw {}", hung.count());

    let at = Matcher::of("update", "virtualmachines/addvolume");
    let frozen = stack.infra().add(Rule::once(at.clone(), Action::FreezeBefore));
    volumes.attach(&bound[1..], &nodes).await?;
    tokio::time::timeout(Deadline::PodStart.duration(), frozen.caught(1))
        .await
        .context("no addvolume call")?;
    drop(stack.socket().away());
    drop(frozen);
    volumes.attached(&bound[1..]).await.context("the socket broke")?;
    let plugged = stack.infra().succeeded(&at);
    ensure!(
        plugged == bound.len(),
        "expected {} volumes plugged in once each, saw {plugged} calls",
        bound.len()
    );

    let lost =
        [once("ControllerUnpublishVolume", Action::LoseReply), once("DeleteVolume", Action::LoseReply)];
    volumes.end(&claims, &bound).await.context("replies of the end were lost")?;
    ensure!(
        lost.iter().all(|guard| guard.count() == 1),
        "expected one lost reply of each call, saw another count"
    );
    let left = our_data_volumes(fixture).await?.difference(&before).count();
    ensure!(left == 0, "expected no DataVolume left over, saw {left}");
    for node in nodes {
        node.end(fixture).await?;
    }
    Ok(())
}
