//! Every kind of call that the driver makes to infra, and every way in which it can fail: the RPC under the fault never answers OK
//! for work that is not done, never answers with a final code for work that may be done, passes on infra's message, and succeeds
//! when the fault is over;
//! in the whole life of the volume each change was made once, and nothing is left over.

use std::time::Duration;

use anyhow::{Context, Result};
use fault_proxy::{Action, Faults, Matcher, Rule};
use futures::future::try_join_all;
use tonic::{Code, Status};

use crate::{
    api_faults::api_faults,
    faulted_call::{Case, Life, WORDS, is_answer, until_met},
    fixture::Fixture,
    volume_life::{Rpc, VolumeLife},
};

tests! {
    Calls:
        every_call_survives_every_fault;
}

/// Virtual machines; their controllers disturb each other on purpose, as those of two replicas would.
const MACHINES: usize = 4;

const ADD: &str = "virtualmachines/addvolume";
const REMOVE: &str = "virtualmachines/removevolume";
const CLAIMS: &str = "persistentvolumeclaims";
const INSTANCES: &str = "virtualmachineinstances";

/// Every kind of call of `infra::Infra` at each RPC that makes it, in an order in which a case does not take away the next
/// one's call. A second create meets the name that the first took, and so reads the object.
const CASES: [Case<Rpc>; 17] = [
    Case::new(Rpc::Create, "create", "datavolumes"),
    Case::new(Rpc::Create, "get", "datavolumes"),
    Case::new(Rpc::Publish, "get", "datavolumes"),
    Case::new(Rpc::Publish, "list", INSTANCES),
    Case::new(Rpc::Publish, "list", "virtualmachines"),
    Case::new(Rpc::Publish, "update", ADD),
    Case::new(Rpc::Publish, "patch", CLAIMS),
    Case::new(Rpc::Publish, "get", CLAIMS),
    Case::new(Rpc::Unpublish, "get", "virtualmachines"),
    Case::new(Rpc::Unpublish, "update", REMOVE),
    Case::new(Rpc::Unpublish, "get", INSTANCES),
    Case::new(Rpc::Unpublish, "patch", CLAIMS),
    Case::new(Rpc::Unpublish, "get", "datavolumes"),
    Case::new(Rpc::Delete, "get", "datavolumes"),
    Case::new(Rpc::Delete, "list", INSTANCES),
    Case::new(Rpc::Delete, "list", "virtualmachines"),
    Case::new(Rpc::Delete, "delete", "datavolumes"),
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
    let codes = try_join_all(lives).await?;
    println!("codes under a fault, of {} cases:\n{}", CASES.len() * faults.len(), codes.join("\n"));
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
        let code = until_met(&life, case, action, &guard).await.with_context(|| what.clone())?;
        drop(guard);
        codes.push(code);
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

impl Life for VolumeLife<'_> {
    type Rpc = Rpc;

    fn faults(&self) -> &Faults {
        self.faults()
    }

    async fn call(&self, rpc: Rpc, within: Duration) -> Result<(), Status> {
        self.call(rpc, within).await.map(drop)
    }

    async fn is_done(&self, rpc: Rpc) -> Result<bool> {
        self.is_done(rpc).await
    }

    fn refusal(case: &Case<Rpc>) -> Option<Code> {
        (case.verb == "create").then_some(Code::InvalidArgument)
    }

    /// Without its right to the claim the driver goes on without the holder, and at the end reports what it waits for.
    fn goes_on(case: &Case<Rpc>, action: &Action) -> bool {
        case.verb == "patch" || (case.resource == CLAIMS && is_answer(action, 403))
    }

    /// The one call that depends on an earlier fault: where the claim could not be patched then, its holder is released only now,
    /// and that proves already whose volume it is.
    fn may_be_skipped(case: &Case<Rpc>) -> bool {
        case.rpc == Rpc::Unpublish && case.verb == "get" && case.resource == "datavolumes"
    }
}
