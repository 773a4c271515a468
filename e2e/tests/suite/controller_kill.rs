//! kill -9 of the controller at each call that changes something, before and after the call landed: a new process finishes the
//! work, and each change was made once.

use anyhow::{Context, Result, ensure};
use fault_proxy::{Action, Matcher};
use futures::future::try_join_all;

use crate::{
    controller_process::node_id,
    faulted_call::{Case, killed_at},
    fixture::Fixture,
    volume_life::{Rpc, VolumeLife},
};

tests! {
    Calls:
        a_killed_controllers_work_is_finished_once;
}

/// Every call that changes something: the RPC that makes it, verb, resource.
const CHANGES: [(Rpc, &str, &str); 6] = [
    (Rpc::Create, "create", "datavolumes"),
    (Rpc::Publish, "patch", "persistentvolumeclaims"),
    (Rpc::Publish, "update", "virtualmachines/addvolume"),
    (Rpc::Unpublish, "patch", "persistentvolumeclaims"),
    (Rpc::Unpublish, "update", "virtualmachines/removevolume"),
    (Rpc::Delete, "delete", "datavolumes"),
];

/// Two volumes: one whose controllers die before each change landed, one whose controllers die after it.
async fn a_killed_controllers_work_is_finished_once(fixture: Fixture) -> Result<()> {
    let lanes = [("before", Action::FreezeBefore), ("after", Action::FreezeAfter)];
    try_join_all(lanes.iter().map(|(name, action)| {
        let fixture = &fixture;
        async move { life(fixture, name, action).await.with_context(|| format!("killed {name} it landed")) }
    }))
    .await?;
    Ok(())
}

async fn life(fixture: &Fixture, name: &str, action: &Action) -> Result<()> {
    let machine = format!("{}-{name}", fixture.word);
    fixture.empty_machine(&machine).await?;
    let mut life = VolumeLife::start(fixture, name, &machine).await?;
    for (index, (rpc, verb, resource)) in CHANGES.into_iter().enumerate() {
        let what = format!("{rpc:?} at {verb} {resource}");
        let at = Matcher::of(verb, resource);
        let before = life.faults().succeeded(&at);
        let guard = killed_at(&life, &Case::new(rpc, verb, resource), action, life.kill()).await?;
        life.kill_and_start_again().await?;
        // The proxy has seen the end of the dead process's connection long before the new one has its socket.
        drop(guard);
        // Both changes of publish are cut off once before it may finish; so are both of unpublish.
        if CHANGES.get(index + 1).is_none_or(|(next, ..)| *next != rpc) {
            life.succeed(rpc).await.with_context(|| format!("after {what}"))?;
            if rpc == Rpc::Create {
                life.provisioned().await?;
            }
            let landed = life.faults().succeeded(&at) - before;
            ensure!(landed == 1, "{what}: expected the call to land once, saw {landed} times");
        }
        match rpc {
            Rpc::Publish if life.is_done(Rpc::Publish).await? => {
                let holder = life.holder().await?;
                ensure!(
                    holder == Some(node_id(&machine)),
                    "expected {machine} as the claim's holder, saw {holder:?}"
                );
            }
            Rpc::Unpublish if life.is_done(Rpc::Unpublish).await? => {
                let holder = life.holder().await?;
                ensure!(holder.is_none(), "expected no holder of the claim, saw {holder:?}");
            }
            _ => {}
        }
    }
    life.ended().await?;
    fixture.delete_machine(&machine).await
}
