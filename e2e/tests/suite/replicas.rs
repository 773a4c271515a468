//! Two replicas of the controller pod, of which leader election lets one act: when that one dies in the middle of an attach, the
//! other completes it.

use anyhow::{Context, Result, bail, ensure};
use bench::{
    bring_up::TENANT_NAMESPACE,
    scenario::{Deadline, until},
};
use fault_proxy::{Action, Matcher, Rule};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;

use crate::{
    attachments::{FakeNode, Volumes},
    fixture::Fixture,
    stack::{Options, Stack, instead_of_installed},
};

tests! {
    Workers:
        the_other_ends_a_dead_leaders_attach;
}

/// The attacher's lease.
const LEASE: &str = "external-attacher-leader-csi-kubevirt-io";

/// The leading pod dies with its addvolume call not yet landed, then (of two others) with it landed and unanswered.
async fn the_other_ends_a_dead_leaders_attach(fixture: Fixture) -> Result<()> {
    Box::pin(instead_of_installed(&fixture, body(&fixture))).await
}

async fn body(fixture: &Fixture) -> Result<()> {
    let options = Options { election: true, timeout: None };
    let nodes = [FakeNode::start(fixture, "vm").await?];
    let volumes = Volumes::new(fixture).await?;
    let mut stacks =
        vec![Stack::start(fixture, "a", &options).await?, Stack::start(fixture, "b", &options).await?];
    for (round, action) in [("before", Action::FreezeBefore), ("after", Action::FreezeAfter)] {
        let claims = [round.to_owned()];
        volumes.ask(&claims).await?;
        let bound = volumes.bound(&claims).await?;
        let leader = leader(fixture, &stacks).await?;
        let at = Matcher::of("update", "virtualmachines/addvolume");
        let plugged = |stacks: &[Stack]| stacks.iter().map(|s| s.infra().succeeded(&at)).sum::<usize>();
        let before = plugged(&stacks);
        let guard = stacks[leader].infra().add(Rule::once(at.clone(), action.clone()));
        volumes.attach(&bound, &nodes).await?;
        tokio::time::timeout(Deadline::PodStart.duration(), guard.caught(1))
            .await
            .with_context(|| format!("{round}: the leader made no addvolume call"))?;
        let during = plugged(&stacks) - before;
        let dead = stacks.remove(leader);
        let counted = dead.infra().clone();
        dead.kill().await;
        // The next leader takes the lease when it has expired; only then may the held call go on, if it still can.
        volumes.attached(&bound).await.with_context(|| format!("killed {round} it landed"))?;
        drop(guard);
        let after = plugged(&stacks) + counted.succeeded(&at) - before;
        ensure!(
            during == usize::from(action == Action::FreezeAfter),
            "{round}: expected the call to land only if frozen after it, saw {during} times"
        );
        ensure!(after == 1, "{round}: expected the volume to be plugged in once, saw {after} times");
        volumes.end(&claims, &bound).await?;
        stacks.push(Stack::start(fixture, &format!("c-{round}"), &options).await?);
    }
    for node in nodes {
        node.end(fixture).await?;
    }
    Ok(())
}

/// Which of the stacks has the attacher's lease.
async fn leader(fixture: &Fixture, stacks: &[Stack]) -> Result<usize> {
    let leases: Api<Lease> = Api::namespaced(fixture.guest.clone(), TENANT_NAMESPACE);
    until("an attacher to lead", Deadline::Reaction, async || {
        let holder = leases.get(LEASE).await?.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let leader = stacks.iter().position(|stack| stack.host == holder);
        if leader.is_none() && holder.is_empty() {
            bail!("no leader");
        }
        Ok(leader.ok_or_else(|| format!("{holder} leads")))
    })
    .await
}
