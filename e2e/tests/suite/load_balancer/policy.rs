//! The operator decides which wishes of a guest reach infra: annotations, addresses, and how many load balancers.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use bench::scenario::{Deadline, until};
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{ALONE, CLUSTER, Place, merge, mirror_name},
};

tests! {
    Services:
        only_what_the_policy_allows_passes,
        a_quota_holds_and_is_used;
}

/// How many load balancers the guest may have.
const QUOTA: usize = 5;
/// How many it asks for at once.
const ASKED: usize = 50;
/// An annotation of a load balancer of infra.
const POOL: &str = "metallb.io/address-pool";

/// What is not allowed is left out and reported, the rest is served; a stricter policy revokes what passed.
async fn only_what_the_policy_allows_passes(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let loose = json!({"policy": {"externalIPs": ["198.51.100.0/24"],
        "annotations": {"values": {POOL: ["public"]}, "deny": ["example.org/*"], "defaults": {"by": "default"},
            "overrides": {"fixed": "by-operator"}},
        "loadBalancerIPs": ["198.18.0.0/16"]}});
    let provider = place.provider_with("a", CLUSTER, &[ALONE], loose).await?;
    let spec = json!({"externalIPs": ["198.51.100.9", "203.0.113.9"], "loadBalancerIP": "203.0.113.5"});
    let service = place.create("web", spec).await?;
    let asked = json!({"metadata": {"annotations": {POOL: "private", "example.org/x": "1", "free": "1",
        "fixed": "by-guest", "metallb.io/loadBalancerIPs": "203.0.113.6"}}});
    merge(&place.guests, "web", asked).await?;
    let mirror = mirror_name(&service);
    let first = json!(["198.51.100.9"]);
    place
        .mirror(&mirror, "what is allowed", |now| {
            passed(now, &Value::Null, &json!("1"), &first, &Value::Null)
                && now["metadata"]["annotations"]["by"] == "default"
        })
        .await?;
    place.served("web").await?;
    place.told("web", "AnnotationsRefused", "example.org/x").await?;
    place.told("web", "AnnotationsRefused", "its value is \"private\", allowed are public").await?;
    place.told("web", "AnnotationsRefused", "metallb.io/loadBalancerIPs").await?;
    place.told("web", "ExternalIPsRefused", "203.0.113.9").await?;
    place.told("web", "LoadBalancerIPRefused", "203.0.113.5").await?;

    let allowed =
        json!({"metadata": {"annotations": {POOL: "public"}}, "spec": {"loadBalancerIP": "198.18.7.7"}});
    merge(&place.guests, "web", allowed).await?;
    place
        .mirror(&mirror, "the allowed pool and address", |now| {
            passed(now, &json!("public"), &json!("1"), &first, &json!("198.18.7.7"))
        })
        .await?;
    place.shows("web", Some("198.18.7.7")).await?;

    drop(provider);
    tightened(&place, &mirror).await
}

/// A provider with a policy that allows nothing revokes what passed before.
async fn tightened(place: &Place, mirror: &str) -> Result<()> {
    let tight = json!({"policy": {"externalIPs": [], "loadBalancerIPs": [],
        "annotations": {"allow": [], "overrides": {"fixed": "by-operator"}}}});
    let _provider = place.provider_with("b", CLUSTER, &[ALONE], tight).await?;
    place
        .mirror(mirror, "nothing of the guest's", |now| {
            passed(now, &Value::Null, &Value::Null, &Value::Null, &Value::Null)
                && now["metadata"]["annotations"].get("by").is_none()
        })
        .await?;
    place.told("web", "AnnotationsRefused", "free").await?;
    place.served("web").await?;
    Ok(())
}

/// Whether infra has these of the guest's wishes, and none that is never allowed.
fn passed(now: &Value, pool: &Value, free: &Value, external: &Value, address: &Value) -> bool {
    let (annotations, spec) = (&now["metadata"]["annotations"], &now["spec"]);
    annotations[POOL] == *pool
        && annotations["free"] == *free
        && annotations.get("example.org/x").is_none()
        && annotations.get("metallb.io/loadBalancerIPs").is_none()
        && annotations["fixed"] == "by-operator"
        && spec["externalIPs"] == *external
        && spec["loadBalancerIP"] == *address
}

/// Fifty at once: no more than the quota are ever made, the others get an event; one that goes makes room for the next. A
/// smaller quota deletes nothing.
async fn a_quota_holds_and_is_used(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let limited = |max: usize| json!({"policy": {"maxLoadBalancers": max}});
    let provider = place.provider_with("a", CLUSTER, &[ALONE], limited(QUOTA)).await?;
    let made = (0..ASKED).map(|number| {
        let place = &place;
        async move { place.create(&format!("web-{number}"), json!({})).await }
    });
    futures::future::try_join_all(made).await?;
    settled(&place, QUOTA, ASKED - QUOTA).await?;
    let (served, waiting) = by_state(&place).await?;
    place.told(&waiting[0], "LoadBalancerQuotaExceeded", &format!("has the {QUOTA} load balancers")).await?;

    for name in &served[..2] {
        place.guests.delete(name, &DeleteParams::default()).await?;
    }
    settled(&place, QUOTA, ASKED - QUOTA - 2).await?;
    let (now, _) = by_state(&place).await?;
    ensure!(
        served[2..].iter().all(|kept| now.contains(kept)),
        "expected the served ones to stay, saw {now:?} after {served:?}"
    );

    drop(provider);
    let _provider = place.provider_with("b", CLUSTER, &[ALONE], limited(QUOTA - 2)).await?;
    place.guests.delete(&now[0], &DeleteParams::default()).await?;
    settled(&place, QUOTA - 1, ASKED - QUOTA - 2).await?;
    let (left, _) = by_state(&place).await?;
    ensure!(left == now[1..], "expected a smaller quota to delete nothing, saw {left:?} after {now:?}");
    Ok(())
}

/// Waits until so many are served and so many have the event; there are never more than the quota in infra meanwhile.
async fn settled(place: &Place, served: usize, waiting: usize) -> Result<()> {
    let most = AtomicUsize::new(0);
    until("the quota to be used and the others to have an event", Deadline::PodStart, async || {
        most.fetch_max(place.mirrors.list(&ListParams::default()).await?.items.len(), Ordering::Relaxed);
        let (now, told) = by_state(place).await?;
        let settled = (now.len(), told.len()) == (served, waiting);
        Ok(if settled { Ok(()) } else { Err(format!("{} served, {} told", now.len(), told.len())) })
    })
    .await?;
    let most = most.into_inner();
    ensure!(most <= QUOTA, "expected at most {QUOTA} load balancers at a time, saw {most}");
    Ok(())
}

/// Names of those with an address, and of those with an event about the quota. One that goes shows its address to the end, when
/// another has its place already.
async fn by_state(place: &Place) -> Result<(Vec<String>, Vec<String>)> {
    let mut all = place.guests.list(&ListParams::default()).await?.items;
    all.retain(|service| service.metadata.deletion_timestamp.is_none());
    let has_address = |service: &Service| {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        status.is_some_and(|balancer| balancer.ingress.is_some())
    };
    let is_told = |service: &Service| {
        let conditions = service.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.reason == "QuotaExceeded")
    };
    let names = |chosen: &dyn Fn(&Service) -> bool| {
        let chosen = all.iter().filter(|service| chosen(service));
        chosen.filter_map(|service| service.metadata.name.clone()).collect()
    };
    Ok((names(&has_address), names(&is_told)))
}
