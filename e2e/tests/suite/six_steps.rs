//! The demo's flow, asserted.

use std::{collections::BTreeSet, sync::Mutex};

use anyhow::{Context, Result, ensure};
use bench::scenario::{STORAGE_CLASS, SixSteps, Step};

use crate::fixture::Fixture;

tests! {
    Shared:
        one_guest_claim_reaches_one_pod_and_comes_back;
}

async fn one_guest_claim_reaches_one_pod_and_comes_back(fixture: Fixture) -> Result<()> {
    let workers = fixture.control.workers().await?;
    let (first, last) = (workers.first().context("no worker")?, workers.last().context("no worker")?);
    let namespace = fixture.guest_namespace().await?;
    let seen = Mutex::new(BTreeSet::new());
    let flow = SixSteps {
        infra: fixture.infra.clone(),
        guest: fixture.guest.clone(),
        namespace: &namespace,
        name: "claim",
        storage_class: STORAGE_CLASS,
        first_worker: first,
        second_worker: last,
    };
    let note = |step, _: &str, _| {
        seen.lock().expect("no panic while it was held").insert(step);
    };
    let chain = Box::pin(flow.run(&note)).await?;
    let seen = seen.into_inner()?;
    ensure!(seen.len() == 9 && seen.contains(&Step::SecondPod), "only these steps were seen: {seen:?}");
    ensure!(chain.virtual_machine == *first, "the disk was in {}, the pod on {first}", chain.virtual_machine);
    ensure!(chain.mount == "ext4 at /data", "the pod's mount is {}", chain.mount);
    Ok(())
}
