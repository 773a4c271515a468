//! Many Services at once, and one that changes all the time.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bench::scenario::{Deadline, until, until_gone};
use fault_proxy::{Entry, Faults};
use futures::StreamExt;
use futures::stream::iter;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use super::memory::Memory;
use crate::{
    fixture::Fixture,
    provider::{ALONE, Place, Proxies, merge, mirror_name},
};

tests! {
    Services:
        a_service_flips_a_hundred_times,
        a_service_that_flips_without_end_starves_no_other;
    Exclusive, long:
        a_thousand_at_once;
}

/// How often the restless Service changes its type and port.
const FLIPS: u16 = 100;
/// The calls of a life in which nothing goes wrong, to infra and to the guest.
const CALLS: (usize, usize) = (2, 3);
/// How long a Service changes without end.
const FLIPPING: Duration = Duration::from_secs(10);
/// The port that it has at last.
const LAST_PORT: u16 = 2000;
/// The most changes of infra that a Service which flips causes before its intervals are the longest: five reconciles at
/// once and five at growing intervals, each at most two changes (a delete and a create); and the other Service's create.
const AT_ONCE: u64 = 21;
/// The longest interval in seconds; then again at most two changes.
const LONGEST_INTERVAL: u64 = 5;
/// How many Services at once.
const CROWD: usize = 500;
/// How many such groups, one after the other.
const CROWDS: usize = 2;
/// Requests of this test on their way at a time.
const IN_FLIGHT: usize = 16;

/// A Service changes between types and ports as fast as the API server accepts it; its last state is what it gets.
async fn a_service_flips_a_hundred_times(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let proxies = place.proxies().await?;
    let provider = place.provider_behind(&proxies, "a", &[ALONE]).await?;
    let calls = |faults: &Faults| faults.journal().iter().filter(|entry| counts(entry)).count();

    // Calls that are made once at the start belong to no Service.
    place.create("first", json!({})).await?;
    place.served("first").await?;
    let before = (calls(proxies.infra.faults()), calls(proxies.guest.faults()));
    let service = place.create("calm", json!({})).await?;
    place.served("calm").await?;
    place.guests.delete("calm", &DeleteParams::default()).await?;
    until_gone(&place.guests, "calm", "the guest's Service", Deadline::Reaction).await?;
    ensure!(
        place.mirrors.get_opt(&mirror_name(&service)).await?.is_none(),
        "expected no mirror left over, saw one"
    );
    let after = (calls(proxies.infra.faults()), calls(proxies.guest.faults()));
    let (infra, guest) = (after.0 - before.0, after.1 - before.1);
    let value = format!("{infra} to infra, {guest} to the guest");
    fixture.figures.add(
        "calls of a LoadBalancer Service's life, without LIST, WATCH and events",
        value,
        "the least that is safe: create, delete; finalizer, address, finalizer's end",
    )?;
    ensure!(
        (infra, guest) == CALLS,
        "expected {CALLS:?} calls to infra and guest, saw {}",
        calls_of(&proxies)
    );

    let service = place.create("restless", json!({})).await?;
    let mirror = mirror_name(&service);
    let began = Instant::now();
    for flip in 1..=FLIPS {
        let kind = if flip % 2 == 0 { "LoadBalancer" } else { "ClusterIP" };
        let ports = json!([{"name": "http", "port": 80 + flip, "targetPort": 8080}]);
        merge(&place.guests, "restless", json!({"spec": {"type": kind, "ports": ports}})).await?;
    }
    println!("{FLIPS} changes in {:.1} s", began.elapsed().as_secs_f64());
    place.served("restless").await?;
    let wanted = json!(80 + FLIPS);
    let now = place.mirror(&mirror, "the last port", |now| now["spec"]["ports"][0]["port"] == wanted).await?;
    let guest = serde_json::to_value(place.guests.get("restless").await?)?;
    ensure!(
        now["spec"]["ports"][0]["targetPort"] == guest["spec"]["ports"][0]["nodePort"],
        "expected the guest's node port as target, saw {now}"
    );
    let plain = json!({"spec": {"type": "ClusterIP"}});
    merge(&place.guests, "restless", plain).await?;
    until("the load balancer to be gone", Deadline::Reaction, async || {
        let guest = serde_json::to_value(place.guests.get("restless").await?)?;
        let free = guest["metadata"].get("finalizers").is_none_or(|held| held == &json!([]));
        let gone = place.mirrors.get_opt(&mirror).await?.is_none();
        Ok(if free && gone { Ok(()) } else { Err(format!("finalizer gone: {free}, mirror gone: {gone}")) })
    })
    .await?;
    ensure!(
        provider.process.ended().is_none(),
        "expected the provider to run, saw it ended: {}",
        provider.process.log_tail(5)
    );
    Ok(())
}

/// A Service changes as fast as the guest's API server accepts it, for a while. What it costs infra is bounded, and another
/// Service gets its address in the meantime.
async fn a_service_that_flips_without_end_starves_no_other(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let proxies = place.proxies().await?;
    let provider = place.provider_behind(&proxies, "a", &[ALONE]).await?;
    place.create("first", json!({})).await?;
    place.served("first").await?;
    let restless = place.create("restless", json!({})).await?;
    place.served("restless").await?;

    let before = writes(&proxies);
    let (began, is_served) = (Instant::now(), AtomicBool::new(false));
    let flip = async {
        let mut flips = 0_u16;
        while began.elapsed() < FLIPPING || !is_served.load(Ordering::Relaxed) {
            flips += 1;
            let kind = if flips.is_multiple_of(2) { "LoadBalancer" } else { "ClusterIP" };
            let ports = json!([{"name": "http", "port": 1000 + flips % 1000, "targetPort": 8080}]);
            merge(&place.guests, "restless", json!({"spec": {"type": kind, "ports": ports}})).await?;
        }
        let ports = json!([{"name": "http", "port": LAST_PORT, "targetPort": 8080}]);
        merge(&place.guests, "restless", json!({"spec": {"type": "LoadBalancer", "ports": ports}})).await?;
        Ok::<_, anyhow::Error>(flips)
    };
    let other = async {
        place.create("calm", json!({})).await?;
        // While the first flips: it stops only when this one has an address, or fails when that takes too long.
        place.served("calm").await?;
        is_served.store(true, Ordering::Relaxed);
        Ok::<_, anyhow::Error>(began.elapsed())
    };
    let (flips, served) = tokio::try_join!(flip, other)?;
    let (lasted, made) = (began.elapsed(), writes(&proxies) - before);
    fixture.figures.add(
        "changes of infra for a Service that flips without end",
        format!(
            "{made} in {:.1} s, for {flips} flips; another Service had its address after {:.1} s",
            lasted.as_secs_f64(),
            served.as_secs_f64()
        ),
        "5 at once, then at growing intervals up to 5 s",
    )?;
    let most = AT_ONCE + 2 * lasted.as_secs().div_ceil(LONGEST_INTERVAL);
    ensure!(
        u64::from(flips) > most,
        "expected the guest to take more than {most} flips, saw {flips}: the test shows nothing"
    );
    ensure!(
        made as u64 <= most,
        "expected at most {most} changes of infra for {flips} flips in {lasted:?}, saw {made}: {}",
        calls_of(&proxies)
    );
    let mirror = mirror_name(&restless);
    let wanted = json!(LAST_PORT);
    place.mirror(&mirror, "the last port", |now| now["spec"]["ports"][0]["port"] == wanted).await?;
    place.served("restless").await?;
    ensure!(
        provider.process.ended().is_none(),
        "expected the provider to run, saw it ended: {}",
        provider.process.log_tail(5)
    );
    Ok(())
}

/// How many changes of Services infra has carried out.
fn writes(proxies: &Proxies) -> usize {
    let journal = proxies.infra.faults().journal();
    let is_write = |entry: &&Entry| counts(entry) && entry.call.verb != "get" && entry.succeeded();
    journal.iter().filter(is_write).count()
}

/// All calls, in order.
fn calls_of(proxies: &Proxies) -> String {
    let all = |faults: &Faults| -> Vec<String> {
        let journal = faults.journal();
        let own = journal.iter().filter(|entry| counts(entry));
        own.map(|entry| format!("{} {} {:?}", entry.call.verb, entry.call.resource, entry.landed)).collect()
    };
    format!("infra: {:?}, guest: {:?}", all(proxies.infra.faults()), all(proxies.guest.faults()))
}

/// Whether a call is one of a Service's own.
fn counts(entry: &Entry) -> bool {
    entry.call.resource.starts_with("services") && !matches!(entry.call.verb.as_str(), "list" | "watch")
}

/// Hundreds at once, and again as many; each is served, and each goes.
async fn a_thousand_at_once(fixture: Fixture) -> Result<()> {
    let place = Place::of_shipped(&fixture).await?;
    let provider = place.provider("a", super::CLUSTER, &[ALONE]).await?;
    place.create("first", json!({})).await?;
    place.served("first").await?;
    let mut memory = vec![format!("{} with 1", Memory::of(&provider)?)];
    for crowd in 0..CROWDS {
        let began = Instant::now();
        let made: Vec<Result<Service>> = iter(0..CROWD)
            .map(|number| {
                let place = &place;
                async move { place.create(&format!("crowd-{crowd}-{number}"), json!({})).await }
            })
            .buffer_unordered(IN_FLIGHT)
            .collect()
            .await;
        made.into_iter().collect::<Result<Vec<_>>>()?;
        let created = began.elapsed().as_secs_f64();
        let all = 1 + (crowd + 1) * CROWD;
        until("each Service to have an address", Deadline::MachineStart, async || {
            let served = served(&place).await?;
            Ok(if served == all { Ok(()) } else { Err(format!("{served} of {all}")) })
        })
        .await?;
        let value = format!("{:.1} s", began.elapsed().as_secs_f64());
        let beside = format!("release build; creating them alone {created:.1} s");
        let name = format!(
            "{CROWD} LoadBalancer Services at once beside {}, all addresses in the guest",
            all - CROWD
        );
        fixture.figures.add(&name, value, beside)?;
        memory.push(format!("{} with {all}", Memory::of(&provider)?));
    }
    let began = Instant::now();
    let services = place.guests.list(&ListParams::default()).await?.items;
    let ended: Vec<_> = iter(&services)
        .map(|service| {
            let place = &place;
            async move { place.guests.delete(&service.name_any(), &DeleteParams::default()).await }
        })
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    ended.into_iter().collect::<Result<Vec<_>, _>>()?;
    until("all Services to be gone", Deadline::MachineStart, async || {
        let all = ListParams::default();
        let left = place.guests.list(&all).await?.items.len() + place.mirrors.list(&all).await?.items.len();
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} are left")) })
    })
    .await?;
    let name = format!("{} LoadBalancer Services deleted at once, all gone in both clusters", services.len());
    fixture.figures.add(&name, format!("{:.1} s", began.elapsed().as_secs_f64()), "")?;
    memory.push(format!("{} after their end", Memory::of(&provider)?));
    ensure!(
        provider.process.ended().is_none(),
        "expected the provider to run, saw it ended: {}",
        provider.process.log_tail(5)
    );
    fixture.figures.add(
        "cloud controller manager's memory by number of Services (resident, anonymous)",
        memory.join("; "),
        "release build; goal 15 MiB idle, 25 MiB with 1000",
    )
}

/// How many guest Services show an address.
async fn served(place: &Place) -> Result<usize> {
    let all = place.guests.list(&ListParams::default()).await?.items;
    let shows = |service: &&Service| {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        status.is_some_and(|balancer| balancer.ingress.as_ref().is_some_and(|ingress| !ingress.is_empty()))
    };
    Ok(all.iter().filter(shows).count())
}
