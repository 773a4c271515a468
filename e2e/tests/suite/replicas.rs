//! Two replicas of the controller pod. Where leader election lets one act and that one dies in the middle of an attach, the other
//! completes it. Where nothing is elected, as upstream's manifests and `HyperShift`'s have it, both act while one replaces the other
//! in a rollout: nothing is done twice, and nothing is lost when the old one ends.

use anyhow::{Context, Result, bail, ensure};
use bench::{
    bring_up::TENANT_NAMESPACE,
    scenario::{Deadline, HCP_NAMESPACE, until, until_gone},
};
use fault_proxy::{Action, Matcher, Rule};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::PersistentVolumeClaim};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    attachments::{FakeNode, Volumes, our_data_volumes},
    fixture::Fixture,
    guest_claims::{GROWN, GROWN_KIB, infra_capacity},
    snapshots::{CLASS, volume_snapshots},
    stack::{Options, Stack, instead_of_installed},
};

tests! {
    Workers:
        the_other_ends_a_dead_leaders_attach,
        two_pods_of_a_rollout_do_nothing_twice;
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

/// Claims that the old pod serves first, and others while both run.
const EARLY: [&str; 2] = ["early-1", "early-2"];
const LATE: [&str; 3] = ["late-1", "late-2", "late-3"];

const SNAPSHOT: &str = "snapshot";

/// A rolling update without leader election: the old pod has volumes, the new one comes, both create, attach, expand and take
/// snapshots for the same objects; the old one ends in the middle of attaching, the new one goes on alone.
async fn two_pods_of_a_rollout_do_nothing_twice(fixture: Fixture) -> Result<()> {
    Box::pin(instead_of_installed(&fixture, rollout(&fixture))).await
}

async fn rollout(fixture: &Fixture) -> Result<()> {
    let options = Options { election: false, timeout: None };
    let before = our_data_volumes(fixture).await?;
    let nodes = [FakeNode::start(fixture, "vm1").await?, FakeNode::start(fixture, "vm2").await?];
    let volumes = Volumes::new(fixture).await?;
    let (early, late) = (EARLY.map(str::to_owned), LATE.map(str::to_owned));
    let old = Stack::start(fixture, "old", &options).await?;
    volumes.ask(&early).await?;
    let first = volumes.bound(&early).await?;
    volumes.attach(&first, &nodes).await?;
    volumes.attached(&first).await?;

    let new = Stack::start(fixture, "new", &options).await?;
    let (of_old, of_new) = (old.infra().clone(), new.infra().clone());
    let landed = |verb: &str, resource: &str| {
        let at = Matcher::of(verb, resource);
        of_old.succeeded(&at) + of_new.succeeded(&at)
    };
    volumes.ask(&late).await?;
    let second = volumes.bound(&late).await?;
    for volume in &second {
        fixture.image_of(volume).await?;
    }
    copied(fixture, &late[0], &second[0]).await?;
    ensure!(landed("create", "volumesnapshots") == 1, "expected one infra snapshot, saw another number");

    // The old pod ends with an attach under way that has not landed, and that the new one has under way too.
    let plug = Matcher::of("update", "virtualmachines/addvolume");
    let held = [&of_old, &of_new].map(|pod| pod.add(Rule::each(plug.clone(), Action::FreezeBefore)));
    volumes.attach(&second, &nodes).await?;
    for (pod, held) in ["old", "new"].iter().zip(&held) {
        tokio::time::timeout(Deadline::PodStart.duration(), held.caught(1))
            .await
            .with_context(|| format!("the {pod} pod made no addvolume call"))?;
    }
    old.kill().await;
    drop(held);
    volumes.attached(&second).await.context("after the old pod ended")?;

    let all = EARLY.len() + LATE.len();
    let made = our_data_volumes(fixture).await?.difference(&before).count();
    ensure!(made == all, "expected {all} DataVolumes, saw {made}");
    for (verb, resource) in [("create", "datavolumes"), ("update", "virtualmachines/addvolume")] {
        let has = landed(verb, resource);
        ensure!(has == all, "expected {verb} {resource} to be carried out {all} times, saw {has}");
    }
    volumes.end(&early, &first).await?;
    volumes.end(&late, &second).await?;
    let left = our_data_volumes(fixture).await?.difference(&before).count();
    ensure!(left == 0, "expected no DataVolume left over, saw {left}");
    for node in nodes {
        node.end(fixture).await?;
    }
    Ok(())
}

/// A snapshot of a claim is taken and deleted, and the claim is expanded, by whichever sidecar comes first.
async fn copied(fixture: &Fixture, claim: &str, volume: &str) -> Result<()> {
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    let object = serde_json::from_value(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": SNAPSHOT},
        "spec": {"volumeSnapshotClassName": CLASS, "source": {"persistentVolumeClaimName": claim}},
    }))?;
    snapshots.create(&PostParams::default(), &object).await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.guest.clone(), &fixture.word);
    let larger = Patch::Merge(json!({"spec": {"resources": {"requests": {"storage": GROWN}}}}));
    claims.patch(claim, &PatchParams::default(), &larger).await?;
    until("the snapshot to be ready", Deadline::PodStart, async || {
        let status = snapshots.get(SNAPSHOT).await?.data["status"].clone();
        Ok(if status["readyToUse"] == true { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    until("the infra claim to be larger", Deadline::PodStart, async || {
        let has = infra_capacity(fixture, volume).await?;
        Ok(if has >= GROWN_KIB << 10 { Ok(()) } else { Err(format!("{has} bytes")) })
    })
    .await?;
    let uid = snapshots.get(SNAPSHOT).await?.metadata.uid.context("a snapshot without a UID")?;
    snapshots.delete(SNAPSHOT, &DeleteParams::default()).await?;
    until_gone(&snapshots, SNAPSHOT, "VolumeSnapshot", Deadline::PodStart).await?;
    let infra = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    until_gone(&infra, &format!("snapshot-{uid}"), "infra VolumeSnapshot", Deadline::PodStart).await
}
