//! Every kind of call that the driver makes to infra, and every way in which it can fail: the RPC under the fault never answers OK
//! for work that is not done, never answers with a final code for work that may be done, passes on infra's message, and succeeds
//! when the fault is over;
//! in the whole life of the volume each change was made once, and nothing is left over.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bench::scenario::{Deadline, until};
use csi_proto::v1::Volume;
use fault_proxy::{Action, Guard, Matcher, Reply, Rule};
use futures::future::try_join_all;
use tonic::{Code, Status};

use crate::{
    api_faults::api_faults,
    fixture::Fixture,
    volume_life::{Rpc, VolumeLife, is_uncertain},
};

tests! {
    Calls:
        every_call_survives_every_fault;
}

/// Infra's message in an injected answer.
const WORDS: &str = "said by the infra";

/// Deadline of an RPC under a fault: long enough for a pause of a second, short enough to wait it out in each case.
const SHORT: Duration = Duration::from_secs(2);

/// How often an RPC may end before it meets its fault.
const ATTEMPTS: usize = 10;

/// Virtual machines; their controllers disturb each other on purpose, as those of two replicas would.
const MACHINES: usize = 4;

/// One fault at one call of one RPC.
struct Case {
    rpc: Rpc,
    verb: &'static str,
    resource: &'static str,
}

const fn case(rpc: Rpc, verb: &'static str, resource: &'static str) -> Case {
    Case { rpc, verb, resource }
}

const ADD: &str = "virtualmachines/addvolume";
const REMOVE: &str = "virtualmachines/removevolume";
const CLAIMS: &str = "persistentvolumeclaims";
const INSTANCES: &str = "virtualmachineinstances";

/// Every kind of call of `infra::Infra` at each RPC that makes it, in an order in which a case does not take away the next
/// one's call. A second create meets the name that the first took, and so reads the object.
const CASES: [Case; 17] = [
    case(Rpc::Create, "create", "datavolumes"),
    case(Rpc::Create, "get", "datavolumes"),
    case(Rpc::Publish, "get", "datavolumes"),
    case(Rpc::Publish, "list", INSTANCES),
    case(Rpc::Publish, "list", "virtualmachines"),
    case(Rpc::Publish, "update", ADD),
    case(Rpc::Publish, "patch", CLAIMS),
    case(Rpc::Publish, "get", CLAIMS),
    case(Rpc::Unpublish, "get", "virtualmachines"),
    case(Rpc::Unpublish, "update", REMOVE),
    case(Rpc::Unpublish, "get", INSTANCES),
    case(Rpc::Unpublish, "patch", CLAIMS),
    case(Rpc::Unpublish, "get", "datavolumes"),
    case(Rpc::Delete, "get", "datavolumes"),
    case(Rpc::Delete, "list", INSTANCES),
    case(Rpc::Delete, "list", "virtualmachines"),
    case(Rpc::Delete, "delete", "datavolumes"),
];

/// The faults, each with a name for the volume that meets it everywhere.
fn faults() -> Vec<(&'static str, Action)> {
    api_faults(WORDS)
}

/// One volume for each fault, all at the same time.
async fn every_call_survives_every_fault(fixture: Fixture) -> Result<()> {
    let machines: Vec<String> = (0..MACHINES).map(|index| format!("{}-vm{index}", fixture.word)).collect();
    try_join_all(machines.iter().map(|machine| fixture.empty_machine(machine))).await?;
    let faults = faults();
    let lives = faults.iter().enumerate().map(|(index, (name, action))| {
        let machine = &machines[index % MACHINES];
        let fixture = &fixture;
        async move { life(fixture, name, action, machine).await.with_context(|| format!("fault {name}")) }
    });
    let told = try_join_all(lives).await?;
    println!("codes under a fault, of {} cases:\n{}", CASES.len() * faults.len(), told.join("\n"));
    try_join_all(machines.iter().map(|machine| fixture.delete_machine(machine))).await?;
    Ok(())
}

/// One volume that meets `action` at every call of its life; a line with the codes that were answered.
async fn life(fixture: &Fixture, name: &str, action: &Action, machine: &str) -> Result<String> {
    let mut life = VolumeLife::start(fixture, name, machine).await?;
    let mut codes = Vec::new();
    for (index, case) in CASES.iter().enumerate() {
        let what = format!("{:?} with {} {} under {name}", case.rpc, case.verb, case.resource);
        let guard = life.faults().add(Rule::each(Matcher::of(case.verb, case.resource), action.clone()));
        let answer = until_met(&life, case, action, &guard).await.with_context(|| what.clone())?;
        drop(guard);
        codes.push(answer.map_or_else(|status| format!("{:?}", status.code()), |_| "Ok".to_owned()));
        let is_last = CASES.get(index + 1).is_none_or(|next| next.rpc != case.rpc);
        if is_last || case.verb == "create" {
            life.succeed(case.rpc).await.with_context(|| format!("after {what}"))?;
        }
        if is_last && case.rpc == Rpc::Create {
            life.provisioned().await?;
        }
    }
    life.ended().await?;
    Ok(format!("{name}: {}", codes.join(" ")))
}

/// Calls until the RPC meets the fault: on a busy machine its short time can be over before. Each answer must be right.
async fn until_met(
    life: &VolumeLife<'_>,
    case: &Case,
    action: &Action,
    guard: &Guard,
) -> Result<Result<Option<Volume>, Status>> {
    let mut told = Vec::new();
    for _ in 0..ATTEMPTS {
        let answer = call_when_free(life, case.rpc, action, guard).await?;
        let is_met = guard.count() > 0;
        judge(life, case, action, is_met, answer.as_ref().err()).await?;
        if is_met || (may_be_skipped(case) && answer.is_ok()) {
            return Ok(answer);
        }
        told.push(format!("{answer:?}"));
    }
    bail!("expected the call to be made, saw the answers {told:?}")
}

/// Calls when the operation that an earlier call began has ended: a change whose reply hangs is not dropped, and the driver
/// notices the end of a fault a moment after the test. An operation that hangs in this fault doesn't end.
async fn call_when_free(
    life: &VolumeLife<'_>,
    rpc: Rpc,
    action: &Action,
    guard: &Guard,
) -> Result<Result<Option<Volume>, Status>> {
    until("the earlier operation to end", Deadline::Reaction, async || {
        let answer = life.call(rpc, SHORT).await;
        let hangs = matches!(action, Action::Hang) && guard.count() > 0;
        Ok(match answer {
            Err(status) if status.message().contains("has been under way for") && !hangs => {
                Err(status.message().to_owned())
            }
            answer => Ok(answer),
        })
    })
    .await
}

/// Whether the answer is right for what the clusters show.
async fn judge(
    life: &VolumeLife<'_>,
    case: &Case,
    action: &Action,
    is_met: bool,
    failure: Option<&Status>,
) -> Result<()> {
    let Some(status) = failure else {
        ensure!(life.is_done(case.rpc).await?, "expected OK only for work that is done, saw OK before");
        return Ok(());
    };
    // The one proof of absence among the faults: the API refused the object itself, so it was never made.
    let is_refusal = is_met
        && case.verb == "create"
        && matches!(action, Action::Answer(Reply::Kubernetes { code: 422, .. }));
    let is_right =
        if is_refusal { status.code() == Code::InvalidArgument } else { is_uncertain(status.code()) };
    ensure!(is_right, "expected a code that the sidecar retries, saw {status:?}");
    // Without its right to the claim the driver goes on without the holder, and at the end reports what it waits for.
    let is_forbidden = matches!(action, Action::Answer(Reply::Kubernetes { code: 403, .. }));
    let goes_on = case.verb == "patch" || (case.resource == CLAIMS && is_forbidden);
    // CANCELLED is the client library's own code: on a busy machine its clock can end before the driver's answer is read.
    let is_drivers = status.code() != Code::Cancelled;
    let expects_words = is_met && is_drivers && !goes_on && matches!(action, Action::Answer(_));
    ensure!(
        !expects_words || status.message().contains(WORDS),
        "expected infra's message in the answer, saw {status:?}"
    );
    ensure!(!status.message().is_empty(), "expected a message in the answer, saw {status:?}");
    Ok(())
}

/// The one call that depends on an earlier fault: where the claim could not be patched then, its holder is released only now,
/// and that proves already whose volume it is.
fn may_be_skipped(case: &Case) -> bool {
    case.rpc == Rpc::Unpublish && case.verb == "get" && case.resource == "datavolumes"
}
