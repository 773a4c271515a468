//! How soon Services are served: one after the other, and two hundred at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench::scenario::{Deadline, until};
use kube::api::ListParams;
use serde_json::json;

use super::bare;
use super::memory::Memory;
use crate::{
    fixture::Fixture,
    provider::{ALONE, CLUSTER, Place, mirror_name},
};

tests! {
    Exclusive, long:
        two_hundred_are_served_soon;
}

/// How many at once; kubevirt/cloud-provider-kubevirt was measured with as many.
const BURST: usize = 200;
/// How many one after the other.
const SINGLE: usize = 20;
/// Which program was measured.
const SHIPPED: &str = "release build";
/// The pause between two checks while milliseconds count.
const LOOK: Duration = Duration::from_millis(2);

/// Repeats `look` until it finds something, with a pause too short to distort the measurement.
async fn soon<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(Deadline::Reaction.duration(), looking).await.with_context(|| what.to_owned())?
}

/// Times of single Services, then of many at once: none waits for another.
async fn two_hundred_are_served_soon(fixture: Fixture) -> Result<()> {
    let place = Place::of_shipped(&fixture).await?;
    let bare = bare::lives(&fixture, SINGLE, BURST).await?;
    let provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    place.create("first", json!({})).await?;
    place.served("first").await?;
    let (mut present, mut shown) = (Vec::new(), Vec::new());
    for number in 0..SINGLE {
        let name = format!("single-{number}");
        let service = place.create(&name, json!({})).await?;
        let (began, mirror) = (Instant::now(), mirror_name(&service));
        soon("the mirror", async || Ok(place.mirrors.get_opt(&mirror).await?)).await?;
        present.push(began.elapsed());
        let address = |service: k8s_openapi::api::core::v1::Service| {
            service.status?.load_balancer?.ingress?.first()?.ip.clone()
        };
        soon("infra's address", async || Ok(address(place.mirrors.get(&mirror).await?))).await?;
        let assigned = Instant::now();
        soon("the guest's address", async || Ok(address(place.guests.get(&name).await?))).await?;
        shown.push(assigned.elapsed());
    }
    for (what, times) in
        [("infra Service present", &mut present), ("address in the guest after infra has it", &mut shown)]
    {
        times.sort();
        let value = format!("p50 {:?}, max {:?}", times[times.len() / 2], times[times.len() - 1]);
        let beside = format!(
            "{SHIPPED}, with the test's own looks; bare writes of infra's Service {:?}",
            bare.present
        );
        fixture.figures.add(&format!("one LoadBalancer Service: {what}"), value, beside)?;
    }

    let began = Instant::now();
    let made = (0..BURST).map(|number| {
        let place = &place;
        async move { place.create(&format!("burst-{number}"), json!({})).await }
    });
    futures::future::try_join_all(made).await?;
    let created = began.elapsed();
    until("each Service to have an address", Deadline::PodStart, async || {
        let all = place.guests.list(&ListParams::default()).await?.items;
        let served = all.iter().filter(|service| {
            let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            status.is_some_and(|balancer| balancer.ingress.is_some())
        });
        let served = served.count();
        Ok(if served == all.len() { Ok(()) } else { Err(format!("{served} of {}", all.len())) })
    })
    .await?;
    let all = began.elapsed().as_secs_f64();
    let value = format!("{all:.1} s: {:.2} × the bare burst", all / bare.burst.as_secs_f64());
    let beside = format!(
        "{SHIPPED}; bare burst {:.1} s, creating them alone {:.1} s; kubevirt/cloud-provider-kubevirt 118–207 s",
        bare.burst.as_secs_f64(),
        created.as_secs_f64()
    );
    fixture.figures.add(
        &format!("{BURST} LoadBalancer Services at once, all addresses in the guest"),
        value,
        beside,
    )?;
    let memory = Memory::of(&provider)?.to_string();
    fixture.figures.add("cloud controller manager with these Services: resident (anonymous)", memory, SHIPPED)
}
