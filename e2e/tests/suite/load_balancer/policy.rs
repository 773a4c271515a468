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
        a_quota_holds_and_is_used,
        ports_and_source_ranges_have_a_quota,
        a_service_above_a_limit_is_refused_whole,
        what_exists_above_a_limit_keeps_what_it_has,
        mirrors_without_node_ports_give_theirs_back;
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
    place.has_event("web", "AnnotationsRefused", "example.org/x").await?;
    place.has_event("web", "AnnotationsRefused", "its value is \"private\", allowed are public").await?;
    place.has_event("web", "AnnotationsRefused", "metallb.io/loadBalancerIPs").await?;
    place.has_event("web", "ExternalIPsRefused", "203.0.113.9").await?;
    place.has_event("web", "LoadBalancerIPRefused", "203.0.113.5").await?;

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
    place.has_event("web", "AnnotationsRefused", "free").await?;
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
    place
        .has_event(&waiting[0], "LoadBalancerQuotaExceeded", &format!("has the {QUOTA} load balancers"))
        .await?;

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

/// The defaults of `loadBalancer.limits`.
const MOST_PORTS: usize = 100;
const MOST_RANGES: usize = 100;
const MOST_BYTES: usize = 65_536;

/// So many ports, beginning with this number.
fn ports(count: usize) -> Value {
    let port =
        |number: usize| json!({"name": format!("p{number}"), "port": 1000 + number, "targetPort": 8080});
    (0..count).map(port).collect()
}

/// So many source ranges.
fn ranges(count: usize) -> Value {
    (0..count).map(|number| json!(format!("10.{}.{}.0/24", number / 256, number % 256))).collect()
}

/// An annotation of so many bytes, key and value.
fn annotation(bytes: usize) -> Value {
    json!({"metadata": {"annotations": {"x": "y".repeat(bytes - 1)}}})
}

/// The quota counts the ports and ranges of all load balancers. One that does not fit holds up no other; one that exists grows
/// within the quota only, and as soon as something is free.
async fn ports_and_source_ranges_have_a_quota(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let limited = json!({"policy": {"maxPorts": 10, "maxSourceRanges": 10}});
    let _provider = place.provider_with("a", CLUSTER, &[ALONE], limited).await?;
    let first = place.create("first", json!({"ports": ports(6)})).await?;
    place.served("first").await?;
    let large = place.create("large", json!({"ports": ports(5)})).await?;
    place.has_event("large", "LoadBalancerQuotaExceeded", "of the 10 ports").await?;
    let wide = place.create("wide", json!({"loadBalancerSourceRanges": ranges(11)})).await?;
    place.has_event("wide", "LoadBalancerQuotaExceeded", "of the 10 source ranges").await?;
    place.create("small", json!({"ports": ports(2), "loadBalancerSourceRanges": ranges(10)})).await?;
    place.served("small").await?;
    for refused in [&large, &wide] {
        let mirror = place.mirrors.get_opt(&mirror_name(refused)).await?;
        ensure!(mirror.is_none(), "expected no mirror of a Service that does not fit, saw {mirror:?}");
    }

    merge(&place.guests, "first", json!({"spec": {"ports": ports(9)}})).await?;
    place.has_event("first", "LoadBalancerQuotaExceeded", "of the 10 ports").await?;
    let kept = serde_json::to_value(place.mirrors.get(&mirror_name(&first)).await?)?;
    let has = |mirror: &Value, count: usize| {
        mirror["spec"]["ports"].as_array().is_some_and(|ports| ports.len() == count)
    };
    ensure!(has(&kept, 6), "expected the six ports to stay, saw {kept}");
    place.guests.delete("large", &DeleteParams::default()).await?;
    place.guests.delete("small", &DeleteParams::default()).await?;
    place.mirror(&mirror_name(&first), "nine ports", |now| has(now, 9)).await?;
    Ok(())
}

/// One above each limit: nothing is made, and one event and one condition name all that is too much. At the limits it is made.
async fn a_service_above_a_limit_is_refused_whole(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    // A Service that is refused takes no place of the quota.
    let limited = json!({"policy": {"maxLoadBalancers": 1}});
    let _provider = place.provider_with("a", CLUSTER, &[ALONE], limited).await?;
    let many_ports = place.create("ports", json!({"ports": ports(MOST_PORTS + 1)})).await?;
    let many_ranges =
        place.create("ranges", json!({"loadBalancerSourceRanges": ranges(MOST_RANGES + 1)})).await?;
    let bytes = place.create_annotated("bytes", &annotation(MOST_BYTES + 1), json!({})).await?;
    let more = json!({"ports": ports(MOST_PORTS + 2), "loadBalancerSourceRanges": ranges(MOST_RANGES + 3)});
    let all = place.create_annotated("all", &annotation(MOST_BYTES + 4), more).await?;
    let named = [
        ("ports", vec!["101 ports (at most 100)"]),
        ("ranges", vec!["101 source ranges (at most 100)"]),
        ("bytes", vec!["65537 bytes of annotations (at most 65536)"]),
        ("all", vec!["102 ports", "103 source ranges", "65540 bytes of annotations"]),
    ];
    for (name, texts) in &named {
        place.has_event(name, "LoadBalancerTooLarge", texts[texts.len() - 1]).await?;
        let message = condition(&place, name, "TooLarge").await?;
        ensure!(
            texts.iter().all(|text| message.contains(text)),
            "expected the condition of {name} to name {texts:?}, saw {message:?}"
        );
    }
    let at_limits = json!({"ports": ports(MOST_PORTS), "loadBalancerSourceRanges": ranges(MOST_RANGES)});
    place.create_annotated("limit", &annotation(MOST_BYTES), at_limits).await?;
    place.served("limit").await?;
    for service in [&many_ports, &many_ranges, &bytes, &all] {
        let mirror = place.mirrors.get_opt(&mirror_name(service)).await?;
        ensure!(mirror.is_none(), "expected no mirror of a Service above a limit, saw one");
        let now = place.guests.get(service.metadata.name.as_deref().unwrap_or_default()).await?;
        ensure!(
            now.metadata.finalizers.is_none(),
            "expected no finalizer where nothing was made, saw {now:?}"
        );
    }

    place.guests.delete("limit", &DeleteParams::default()).await?;
    merge(&place.guests, "ports", json!({"spec": {"ports": ports(MOST_PORTS)}})).await?;
    place.served("ports").await?;
    Ok(())
}

/// Waits for the condition with this reason; returns its message.
async fn condition(place: &Place, name: &str, reason: &str) -> Result<String> {
    let found = async || -> Result<Result<String, String>> {
        let status = place.guests.get(name).await?.status.unwrap_or_default();
        let all = status.conditions.unwrap_or_default();
        let found = all.iter().find(|condition| condition.reason == reason);
        Ok(found.map(|found| found.message.clone()).ok_or_else(|| format!("{all:?}")))
    };
    until(&format!("the condition {reason} of {name}"), Deadline::Reaction, found).await
}

/// A mirror from before the limits, as kubevirt/cloud-provider-kubevirt leaves it, stays and serves, with an event. Other fields of
/// it follow; more of what is too much is refused, less is not.
async fn what_exists_above_a_limit_keeps_what_it_has(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let lifted = json!({"limits": {"ports": 0}});
    let before = place.provider_with("a", CLUSTER, &[ALONE], lifted).await?;
    let service = place.create("web", json!({"ports": ports(MOST_PORTS + 20)})).await?;
    let mirror = mirror_name(&service);
    let address = place.served("web").await?;
    drop(before);

    let _provider = place.provider("b", CLUSTER, &[ALONE]).await?;
    place
        .has_event(
            "web",
            "LoadBalancerTooLarge",
            "120 ports (at most 100); its load balancer has that already",
        )
        .await?;
    let count = |now: &Value| now["spec"]["ports"].as_array().map_or(0, Vec::len);
    merge(&place.guests, "web", json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
    place
        .mirror(&mirror, "the other policy", |now| {
            now["spec"]["externalTrafficPolicy"] == "Local" && count(now) == MOST_PORTS + 20
        })
        .await?;

    merge(&place.guests, "web", json!({"spec": {"ports": ports(MOST_PORTS + 21)}})).await?;
    place.has_event("web", "LoadBalancerTooLarge", "121 ports (at most 100); nothing of it").await?;
    let kept = serde_json::to_value(place.mirrors.get(&mirror).await?)?;
    ensure!(count(&kept) == MOST_PORTS + 20, "expected its ports to stay, saw {}", count(&kept));
    place.shows("web", Some(&address)).await?;
    merge(&place.guests, "web", json!({"spec": {"ports": ports(MOST_PORTS + 10)}})).await?;
    place.mirror(&mirror, "fewer ports", |now| count(now) == MOST_PORTS + 10).await?;

    // Without its mirror it is as new: nothing is made, and no address is shown.
    merge(&place.guests, "web", json!({"spec": {"ports": ports(MOST_PORTS + 30)}})).await?;
    condition(&place, "web", "TooLarge").await?;
    place.mirrors.delete(&mirror, &DeleteParams::default()).await?;
    place.shows("web", None).await?;
    place.guests.delete("web", &DeleteParams::default()).await?;
    bench::scenario::until_gone(&place.guests, "web", "the guest's Service", Deadline::Reaction).await
}

/// With the key, a mirror that has node ports gives them back in one change, and a new one gets none.
async fn mirrors_without_node_ports_give_theirs_back(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let before = place.provider("a", CLUSTER, &[ALONE]).await?;
    let service = place.create("web", json!({})).await?;
    let mirror = mirror_name(&service);
    place.served("web").await?;
    let has_node_port = |now: &Value| now["spec"]["ports"][0].get("nodePort").is_some_and(|port| *port != 0);
    place.mirror(&mirror, "a node port", has_node_port).await?;
    drop(before);

    let off = json!({"allocateLoadBalancerNodePorts": false});
    let without = place.provider_with("b", CLUSTER, &[ALONE], off).await?;
    place.mirror(&mirror, "no node port", |now| !has_node_port(now)).await?;
    let new = place.create("new", json!({})).await?;
    place.served("new").await?;
    place.mirror(&mirror_name(&new), "no node port", |now| !has_node_port(now)).await?;
    drop(without);

    let on = json!({"allocateLoadBalancerNodePorts": true});
    let _provider = place.provider_with("c", CLUSTER, &[ALONE], on).await?;
    place.mirror(&mirror, "a node port again", has_node_port).await?;
    Ok(())
}
