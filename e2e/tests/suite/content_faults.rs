//! As `infra_faults`, for the RPCs that copy a volume's content or make it larger: every infra call that they make, and every way in
//! which it can fail; and kill -9 of the controller at each of their changes.

use anyhow::{Context, Result};
use fault_proxy::{Action, Matcher, Rule};
use futures::future::try_join_all;

use crate::{
    api_faults::api_faults_of,
    content_life::{CLAIMS, ContentLife, Rpc, SNAPSHOTS, VOLUMES},
    faulted_call::{Case, Life, WORDS, killed_at, until_met},
    fixture::Fixture,
};

tests! {
    Calls:
        every_call_of_a_copy_survives_every_fault,
        a_killed_controllers_copy_is_finished_once;
}

/// Every infra call at each RPC that makes it, in an order in which a case does not take away the next one's call.
const CASES: [Case<Rpc>; 21] = [
    Case::new(Rpc::Snapshot, "get", SNAPSHOTS),
    Case::new(Rpc::Snapshot, "get", VOLUMES),
    Case::new(Rpc::Snapshot, "get", CLAIMS),
    Case::new(Rpc::Snapshot, "create", SNAPSHOTS),
    Case::new(Rpc::List, "list", SNAPSHOTS),
    Case::new(Rpc::Restore, "get", VOLUMES),
    Case::new(Rpc::Restore, "get", SNAPSHOTS),
    Case::new(Rpc::Restore, "create", VOLUMES),
    Case::new(Rpc::CloneBySnapshot, "create", SNAPSHOTS),
    Case::new(Rpc::CloneBySnapshot, "get", SNAPSHOTS),
    Case::new(Rpc::CloneBySnapshot, "create", VOLUMES),
    Case::new(Rpc::CloneAgain, "get", SNAPSHOTS),
    Case::new(Rpc::CloneAgain, "delete", SNAPSHOTS),
    Case::new(Rpc::Clone, "list", "virtualmachineinstances"),
    Case::new(Rpc::Clone, "list", "virtualmachines"),
    Case::new(Rpc::Clone, "get", SNAPSHOTS),
    Case::new(Rpc::Expand, "get", VOLUMES),
    Case::new(Rpc::Expand, "get", CLAIMS),
    Case::new(Rpc::Expand, "patch", CLAIMS),
    Case::new(Rpc::DeleteSnapshot, "get", SNAPSHOTS),
    Case::new(Rpc::DeleteSnapshot, "delete", SNAPSHOTS),
];

/// The faults that are handled in one place for all calls, which `infra_faults` shows.
const SAME: [(&str, &str); 3] = [
    ("401", "infra_faults: the credentials are renewed in one place for all calls"),
    ("429", "infra_faults: the pause is kept in one place for all calls"),
    ("hang", "infra_faults: a call that hangs ends with the deadline of its RPC, whichever it is"),
];

/// One volume for each fault, all at the same time.
async fn every_call_of_a_copy_survives_every_fault(fixture: Fixture) -> Result<()> {
    let faults = api_faults_of(WORDS, &SAME);
    let lives = faults.iter().map(|(name, action)| {
        let fixture = &fixture;
        async move { life(fixture, name, action).await.with_context(|| format!("fault {name}")) }
    });
    let codes = try_join_all(lives).await?;
    println!("codes under a fault, of {} cases:\n{}", CASES.len() * faults.len(), codes.join("\n"));
    Ok(())
}

/// One volume that meets `action` at every call about its copies; a line with the codes that were answered.
async fn life(fixture: &Fixture, name: &str, action: &Action) -> Result<String> {
    let life = ContentLife::start(fixture, name).await?;
    let mut codes = Vec::new();
    for (index, case) in CASES.iter().enumerate() {
        let what = format!("{:?} with {} {} under {name}", case.rpc, case.verb, case.resource);
        let guard = life.faults().add(Rule::each(Matcher::of(case.verb, case.resource), action.clone()));
        codes.push(until_met(&life, case, action, &guard).await.with_context(|| what.clone())?);
        drop(guard);
        if CASES.get(index + 1).is_none_or(|next| next.rpc != case.rpc) {
            life.succeed(case.rpc).await.with_context(|| format!("after {what}"))?;
        }
    }
    life.ended(name == "422").await?;
    Ok(format!("{name}: {}", codes.join(" ")))
}

/// Every call that changes something: the RPC that makes it, verb, resource.
const CHANGES: [(Rpc, &str, &str); 8] = [
    (Rpc::Snapshot, "create", SNAPSHOTS),
    (Rpc::Restore, "create", VOLUMES),
    (Rpc::CloneBySnapshot, "create", SNAPSHOTS),
    (Rpc::CloneBySnapshot, "create", VOLUMES),
    (Rpc::CloneAgain, "delete", SNAPSHOTS),
    (Rpc::Clone, "create", VOLUMES),
    (Rpc::Expand, "patch", CLAIMS),
    (Rpc::DeleteSnapshot, "delete", SNAPSHOTS),
];

/// Two volumes: one whose controllers die before each change landed, one whose controllers die after it.
async fn a_killed_controllers_copy_is_finished_once(fixture: Fixture) -> Result<()> {
    let lanes = [("before", Action::FreezeBefore), ("after", Action::FreezeAfter)];
    try_join_all(lanes.iter().map(|(name, action)| {
        let fixture = &fixture;
        async move { killed(fixture, name, action).await.with_context(|| format!("killed {name} it landed")) }
    }))
    .await?;
    Ok(())
}

async fn killed(fixture: &Fixture, name: &str, action: &Action) -> Result<()> {
    let mut life = ContentLife::start(fixture, name).await?;
    for (index, (rpc, verb, resource)) in CHANGES.into_iter().enumerate() {
        let what = format!("{rpc:?} at {verb} {resource}");
        let guard = killed_at(&life, &Case::new(rpc, verb, resource), action, life.kill()).await?;
        life.kill_and_start_again().await?;
        drop(guard);
        if CHANGES.get(index + 1).is_none_or(|(next, ..)| *next != rpc) {
            life.succeed(rpc).await.with_context(|| format!("after {what}"))?;
        }
    }
    life.ended(false).await
}
