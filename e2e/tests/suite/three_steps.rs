//! The demo's flow of a load balancer, asserted.

use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use bench::scenario::{ThreeSteps, three_steps::Step};

use crate::{fixture::Fixture, provider::remove_left_everywhere};

tests! {
    Exclusive:
        a_client_reaches_one_pod_through_a_load_balancer;
}

async fn a_client_reaches_one_pod_through_a_load_balancer(fixture: Fixture) -> Result<()> {
    remove_left_everywhere(&fixture).await?;
    let workers = fixture.control.workers().await?;
    let namespace = fixture.guest_namespace().await?;
    let seen = Mutex::new(Vec::new());
    let flow = ThreeSteps {
        infra: fixture.infra.clone(),
        guest: fixture.guest.clone(),
        namespace: &namespace,
        name: "web",
        worker: workers.first().context("no worker")?,
    };
    let note = |step, _: &str, _| seen.lock().expect("no panic while it was held").push(step);
    Box::pin(flow.run(&note)).await?;
    let seen = seen.into_inner()?;
    let all = [Step::GuestService, Step::InfraService, Step::Address, Step::Answer, Step::Deleted];
    ensure!(seen == all, "only these steps were seen: {seen:?}");
    Ok(())
}
