//! What a guest costs that does its worst: the memory of the cloud controller manager with thousands of huge Services, and the changes
//! of infra while as many Services change as the guest's API server carries out.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bench::{
    cluster::start_large_tenant,
    command::goal::Plan,
    report::human,
    scenario::{Deadline, until, until_gone},
    supervise::Supervisor,
};
use fault_proxy::Entry;
use futures::{
    StreamExt, TryStreamExt,
    future::{join_all, try_join_all},
    stream::iter,
};
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::percentile;
use crate::{
    endpoints::two_guests::Started,
    fixture::{Fixture, setting},
    load_balancer::memory::Memory,
    provider::{ALONE, CLUSTER, Place, Provider, Proxies, merge},
};

tests! {
    Exclusive, long:
        thousands_of_huge_services_cost_little_memory,
        a_thousand_changes_a_second_cost_others_nothing;
}

const MANIFEST: &str = include_str!("../../../../deploy/cloud-controller-manager/infra/base/deployment.yaml");
/// KiB in a MiB.
const MIB: u32 = 1024;

/// How many Services, unless the environment variable says another number.
const USUAL_SERVICES: usize = 4000;
/// The environment variable with the number of Services.
const SETTING: &str = "BENCH_HUGE_SERVICES";
/// The most bytes of annotations of an object (k8s.io/apimachinery, `api/validation/objectmeta.go`).
const ANNOTATION_BYTES: usize = 256 * 1024;
/// Bytes of a key of the Services that have many.
const KEY_BYTES: usize = 60;
/// Requests of this test on their way at a time.
const IN_FLIGHT: usize = 8;

/// How many Services change all the time.
const RESTLESS: usize = 100;
/// How long.
const CHANGING: Duration = Duration::from_secs(30);
/// How many other Services are made, one after the other, before and meanwhile.
const CALM: usize = 10;
/// The defaults of `--kube-api-qps` and `--kube-api-burst`.
const CHANGES_PER_SECOND: u64 = 50;
const CHANGES_AT_ONCE: u64 = 200;
/// By how much the median of other Services may grow: every one of them still has its address at once for a person.
const LONGEST_MEDIAN: Duration = Duration::from_secs(5);

/// The memory that the manifest gives the cloud controller manager, in KiB.
pub fn memory_limit() -> Result<u32> {
    let manifest: Value = serde_saphyr::from_str(MANIFEST)?;
    let limit = &manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"];
    let mebibytes = limit.as_str().and_then(|limit| limit.strip_suffix("Mi"));
    let mebibytes: u32 =
        mebibytes.with_context(|| format!("expected a limit in Mi, saw {limit}"))?.parse()?;
    Ok(mebibytes * MIB)
}

/// As the operator is told to configure it: no annotation passes, and there is a quota.
fn policy() -> Value {
    json!({"policy": {"annotations": {"allow": []}, "externalIPs": [], "loadBalancerIPs": [], "maxLoadBalancers": 20}})
}

/// Annotations of the greatest size: one long value, or many keys.
fn annotations(number: usize) -> Value {
    if number.is_multiple_of(2) {
        return json!({ "x": "y".repeat(ANNOTATION_BYTES - 1) });
    }
    let keys = (0..ANNOTATION_BYTES / KEY_BYTES).map(|key| (format!("{key:0KEY_BYTES$}"), json!("")));
    Value::Object(keys.collect())
}

/// The Services come while the program runs, and are there when it starts again.
async fn thousands_of_huge_services_cost_little_memory(fixture: Fixture) -> Result<()> {
    let count = setting(SETTING)?.unwrap_or(USUAL_SERVICES);
    // Removed last: when its etcd has ended.
    let data = tempfile::tempdir_in(&fixture.run)?;
    let started = Started(Supervisor::new(fixture.run.join("logs")));
    let programs = Plan::read(&fixture.run)?.artifacts.programs;
    let server = start_large_tenant(&started.0, &programs, data.path()).await?;
    let place = Place::of_shipped(&fixture).await?.in_another_guest(&fixture, &server).await?;
    let first = place.provider_with("a", CLUSTER, &[ALONE], policy()).await?;
    served(&place, "first").await?;
    let idle = Memory::of(&first)?;

    let began = Instant::now();
    let make = |number: usize| {
        let place = &place;
        async move {
            let object = json!({"metadata": {"annotations": annotations(number)}});
            place.create_annotated(&format!("huge-{number}"), &object, json!({})).await.map(drop)
        }
    };
    iter(0..count).map(make).buffer_unordered(IN_FLIGHT).try_collect::<Vec<()>>().await?;
    let creation = began.elapsed();
    is_told(&place, "huge-0").await?;
    is_told(&place, &format!("huge-{}", count - 1)).await?;
    let watched = of(&first, "while they came")?;
    drop(first);

    let began = Instant::now();
    let again = place.provider_with("b", CLUSTER, &[ALONE], policy()).await?;
    // Of all Services that are there, this one is read last, or it is not there yet.
    place.guests.delete("first", &DeleteParams::default()).await?;
    until_gone(&place.guests, "first", "the served Service", Deadline::MachineStart).await?;
    let read = began.elapsed();
    let listed = of(&again, "after it had started with them")?;
    let limit = memory_limit()?;
    fixture.figures.add(
        &format!("cloud controller manager with {count} Services of 256 KiB annotations, resident (anonymous), most"),
        format!(
            "{idle} before; {} and most {:.1} MiB while they came; {} and most {:.1} MiB after a start with them",
            watched.0,
            mebibytes(watched.1),
            listed.0,
            mebibytes(listed.1)
        ),
        format!(
            "release build, limit {} MiB; {} in etcd, made in {}, read at a start in {}",
            limit / MIB,
            human_bytes(count * ANNOTATION_BYTES),
            human(creation),
            human(read)
        ),
    )?;
    for (_, most) in [watched, listed] {
        ensure!(most < limit, "expected less than the limit of {limit} KiB, saw {most} KiB");
    }
    Ok(())
}

fn human_bytes(bytes: usize) -> String {
    format!("{} MiB", bytes >> 20)
}

fn mebibytes(kib: u32) -> f64 {
    f64::from(kib) / f64::from(MIB)
}

/// What a provider has now, and the most that it had; it must run.
fn of(provider: &Provider, when: &str) -> Result<(Memory, u32)> {
    let ended = provider.process.ended();
    ensure!(ended.is_none(), "expected the provider to run {when}, saw {ended:?}");
    Ok((Memory::of(provider)?, Memory::peak(provider)?))
}

/// Makes a Service and waits for its address.
async fn served(place: &Place, name: &str) -> Result<Duration> {
    let began = Instant::now();
    place.create(name, json!({})).await?;
    place.served(name).await?;
    Ok(began.elapsed())
}

/// Waits until a Service has an address, or a condition that says why not.
async fn is_told(place: &Place, name: &str) -> Result<()> {
    until(&format!("an answer to {name}"), Deadline::MachineStart, async || {
        let status = place.guests.get(name).await?.status.unwrap_or_default();
        let has_address = status.load_balancer.is_some_and(|balancer| balancer.ingress.is_some());
        let conditions = status.conditions.unwrap_or_default();
        Ok(if has_address || !conditions.is_empty() { Ok(()) } else { Err("nothing is said".to_owned()) })
    })
    .await
}

/// A hundred Services change as fast as the guest's API server carries it out. Infra gets no more changes than the rate, and other
/// Services get their addresses as soon as before.
async fn a_thousand_changes_a_second_cost_others_nothing(fixture: Fixture) -> Result<()> {
    let place = Place::of_shipped(&fixture).await?;
    let proxies = place.proxies().await?;
    let provider = place.provider_behind(&proxies, "a", &[ALONE]).await?;
    let names: Vec<String> = (0..RESTLESS).map(|number| format!("restless-{number}")).collect();
    try_join_all(names.iter().map(|name| place.create(name, json!({})))).await?;
    try_join_all(names.iter().map(|name| place.served(name))).await?;
    let before = calm(&place, "before").await?;

    let (made_before, began) = (changes(&proxies), Instant::now());
    let (is_over, flips) = (AtomicBool::new(false), AtomicUsize::new(0));
    let flipping = names.iter().map(async |name| {
        while began.elapsed() < CHANGING || !is_over.load(Ordering::Relaxed) {
            let flip = flips.fetch_add(1, Ordering::Relaxed);
            let ports = json!([{"name": "http", "port": 1000 + flip % 1000, "targetPort": 8080}]);
            merge(&place.guests, name, json!({"spec": {"ports": ports}})).await?;
        }
        anyhow::Ok(())
    });
    let others = async {
        let meanwhile = calm(&place, "meanwhile").await;
        is_over.store(true, Ordering::Relaxed);
        meanwhile
    };
    let (flipped, meanwhile) = tokio::join!(join_all(flipping), others);
    flipped.into_iter().collect::<Result<Vec<()>>>()?;
    let (meanwhile, lasted) = (meanwhile?, began.elapsed());
    let made = changes(&proxies) - made_before;
    ensure!(provider.process.ended().is_none(), "expected the provider to run, saw it ended");

    let flips = flips.into_inner();
    let a_second = |count: usize| {
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let count = count as f64;
        count / lasted.as_secs_f64()
    };
    let times = |all: &[Duration]| {
        format!("p50 {}, max {}", human(percentile(all, 0.5)), human(all.last().copied().unwrap_or_default()))
    };
    fixture.figures.add(
        &format!("{RESTLESS} Services that change all the time: changes of the guest, changes of infra"),
        format!("{:.0} a second, {:.1} a second", a_second(flips), a_second(made)),
        format!(
            "release build, {}; rate {CHANGES_PER_SECOND} a second, {CHANGES_AT_ONCE} at once",
            human(lasted)
        ),
    )?;
    fixture.figures.add(
        "beside them: another Service has its address",
        times(&meanwhile),
        format!("before: {}", times(&before)),
    )?;
    let most = CHANGES_AT_ONCE + CHANGES_PER_SECOND * (lasted.as_secs() + 1);
    ensure!(made as u64 <= most, "expected at most {most} changes of infra in {lasted:?}, saw {made}");
    ensure!(flips as u64 > 2 * most, "expected more changes of the guest than {most} by far, saw {flips}");
    let median = percentile(&meanwhile, 0.5);
    ensure!(median <= LONGEST_MEDIAN, "expected a median of {LONGEST_MEDIAN:?} at most, saw {median:?}");
    Ok(())
}

/// Other Services, one after the other; how long each took, sorted.
async fn calm(place: &Place, when: &str) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for number in 0..CALM {
        times.push(served(place, &format!("{when}-{number}")).await?);
    }
    times.sort();
    Ok(times)
}

/// How many changes infra has carried out for the provider.
fn changes(proxies: &Proxies) -> usize {
    let is_change =
        |entry: &&Entry| entry.succeeded() && !matches!(entry.call.verb.as_str(), "get" | "list" | "watch");
    proxies.infra.faults().journal().iter().filter(is_change).count()
}
