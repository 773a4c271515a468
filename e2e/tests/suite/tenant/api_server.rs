//! An API server of the tenant's own: what it answers is what they choose, and may have no end.

use anyhow::{Context, Result, ensure};
use bench::scenario::{Deadline, start_labelled_machine, until};
use fault_proxy::{Action, Faults, Guard, Matcher, Reply, Rule};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};

use super::{guests::is_served, record::Record};
use crate::{
    figures::hostile_guest::memory_limit,
    fixture::{EMPTY_IMAGE, Fixture},
    load_balancer::memory::Memory,
    provider::{ALONE, CLUSTER, Place, Provider, Proxies, mirror_name},
};

/// The guest whose mirror must stay.
const VICTIM: &str = "other";
/// The UID of a Service of the tenant's, as an API server would make it.
const PLAIN_UID: &str = "11111111-2222-4333-8444-555555555555";
/// How many endless answers a program gets in a row.
const ANSWERS: u32 = 3;

/// It shows Services that are not there: with the UID of another guest's Service, which would give it that one's mirror, and with
/// UIDs that are paths. Then it answers without end.
pub async fn an_api_server_that_lies_reaches_nobody_else(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let victim = place.provider("victim", VICTIM, &[ALONE]).await?;
    let service = place.create("web", json!({})).await?;
    place.served("web").await?;
    start_labelled_machine(&fixture.infra, &place.namespace, &fixture.word, EMPTY_IMAGE, &json!({})).await?;
    let record = Record::of_load_balancers(&fixture.infra, &place.namespace).await?;
    let proxies = place.proxies().await?;
    forged(&place, &proxies, &service.uid().context("a Service without UID")?).await?;
    record.ensure_unchanged().await?;
    is_served(&place, "of-the-other-guest").await?;
    // Both have one API server here, so only one of them may serve its Services.
    victim.stop().await?;
    endless(&fixture, &place, &proxies).await?;
    record.ensure_unchanged().await
}

/// A Service as an API server shows it.
fn shown(place: &Place, name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": place.namespace, "uid": uid, "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["service.kubernetes.io/load-balancer-cleanup"]},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.97.0.9", "externalTrafficPolicy": "Cluster",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30123}]},
        "status": {"loadBalancer": {}},
    })
}

fn answered(faults: &Faults, at: Matcher, answer: &Value) -> Guard {
    faults.add(Rule::each(at, Action::Answer(Reply::Text { code: 200, text: answer.to_string() })))
}

/// The forged Services are followed by one that could be true, which is served.
async fn forged(place: &Place, proxies: &Proxies, uid: &str) -> Result<()> {
    let faults = proxies.guest.faults();
    let endless = "a".repeat(300);
    let odd = [
        "../../kube-system/services/x",
        "a/../b?dryRun=All#",
        "%2e%2e%2f",
        "",
        "ffff\nlevel=error",
        &endless,
        "ÄÖÜ",
    ];
    let mut items = vec![shown(place, "stolen", uid)];
    for (number, uid) in odd.iter().enumerate() {
        items.push(shown(place, &format!("odd-{number}"), uid));
    }
    items.push(shown(place, "plain", PLAIN_UID));
    let list = json!({"apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "1"}, "items": items});
    let mut rules = vec![
        answered(faults, Matcher::of("list", "services"), &list),
        faults.add(Rule::each(Matcher::of("watch", "services"), Action::Hang)),
    ];
    for item in &items {
        let name = item["metadata"]["name"].as_str().context("a name")?;
        for verb in ["get", "patch"] {
            rules.push(answered(faults, Matcher::of(verb, "services").named(name), item));
            rules.push(answered(faults, Matcher::of(verb, "services/status").named(name), item));
        }
    }
    let provider = place.provider_behind(proxies, "forged", &[ALONE]).await?;
    let plain = serde_json::from_value(shown(place, "plain", PLAIN_UID))?;
    let mirror = mirror_name(&plain);
    place.mirror(&mirror, "the mirror of the one that could be true", |_| true).await?;
    place.has_event("stolen", "SyncLoadBalancerFailed", "is not ours").await?;
    let mine = ListParams::default().labels(&format!("cluster.x-k8s.io/cluster-name={CLUSTER}"));
    let made: Vec<String> = place.mirrors.list(&mine).await?.iter().map(ResourceExt::name_any).collect();
    ensure!(made == [mirror.clone()], "expected one mirror of the tenant's, saw {made:?}");
    ensure!(provider.process.ended().is_none(), "expected the provider to run, saw it ended");
    let log = std::fs::read_to_string(provider.process.log())?;
    let injected = log.lines().find(|line| line.starts_with("level=error"));
    ensure!(injected.is_none(), "expected no line of the tenant's in the log, saw {injected:?}");
    drop(rules);
    drop(provider);
    place.mirrors.delete(&mirror, &DeleteParams::default()).await?;
    Ok(())
}

/// Each answer of the tenant's API server in turn has no end. The program's memory stays below its limit, and it serves when the
/// answers end again.
async fn endless(fixture: &Fixture, place: &Place, proxies: &Proxies) -> Result<()> {
    let event = "{\"type\": \"ADDED\", \"object\": {\"apiVersion\": \"v1\", \"metadata\": {\"name\": \"";
    let list = "{\"metadata\": {\"resourceVersion\": \"1\"}, \"items\": [{\"metadata\": {\"name\": \"";
    let object = "{\"metadata\": {\"name\": \"";
    let rows = [
        ("a list", Matcher::of("list", "services"), list),
        ("a watch", Matcher::of("watch", "services"), event),
        ("an answer to a change", Matcher::of("patch", "services/status").named("stuck"), object),
    ];
    let mut most = 0;
    for (number, (what, at, begin)) in rows.into_iter().enumerate() {
        let rule = Rule::each(at, Action::Answer(Reply::Endless { begin: begin.to_owned() }));
        let guard = proxies.guest.faults().add(rule);
        let provider = place.provider_behind(proxies, &format!("endless-{number}"), &[ALONE]).await?;
        let change = what == "an answer to a change";
        if change {
            place.create("stuck", json!({})).await?;
            is_served(place, "beside-stuck").await?;
        }
        until(&format!("{ANSWERS} endless answers: {what}"), Deadline::Reaction, async || {
            Ok(if guard.count() >= ANSWERS { Ok(()) } else { Err(format!("{} answers", guard.count())) })
        })
        .await?;
        drop(guard);
        is_served(place, &format!("after-{number}")).await?;
        if change {
            place.served("stuck").await?;
        }
        most = most.max(peak(&provider, what)?);
    }
    let value = format!("{:.1} MiB", f64::from(most) / 1024.0);
    fixture.figures.add(
        "cloud controller manager's most memory while answers of its guest's API server have no end",
        value,
        format!(
            "build for tests; {ANSWERS} endless answers of each kind; limit {} MiB",
            memory_limit()? / 1024
        ),
    )
}

fn peak(provider: &Provider, what: &str) -> Result<u32> {
    ensure!(provider.process.ended().is_none(), "{what}: expected the provider to run, saw it ended");
    let (peak, limit) = (Memory::peak(provider)?, memory_limit()?);
    ensure!(peak < limit, "{what}: expected less than the limit of {limit} KiB, saw {peak} KiB");
    Ok(peak)
}
