//! Address families: what the guest's Services get from an infra load balancer whose pool has one family, by MetalLB's rules.

use anyhow::{Result, ensure};
use bench::scenario::{Deadline, until};
use bench::simulator::infra_load_balancer::{Family, Fault, Rule};
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{ALONE, CLUSTER, Place, mirror_name},
};

tests! {
    Services:
        a_pool_of_one_family_costs_no_service_its_address,
        a_load_balancer_that_gives_one_of_two_families_is_left_alone;
}

const PROVISIONED: &str = "kubevirt.io/LoadBalancerProvisioned";
/// The name of kubevirt/cloud-provider-kubevirt in `managedFields`.
const REFERENCE: &str = "kubevirt-cloud-controller-manager";

/// Where a Service of two families gets no address from a pool of one, and loses one that it had (metallb/metallb#2482): what
/// upstream left keeps its address, a new Service that prefers two families steps back to one, and one that needs a family which
/// the pool lacks is told so and gets its address when the pool has it.
async fn a_pool_of_one_family_costs_no_service_its_address(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let pool = place.faults.inject(Fault::Pool { family: Family::V4, rule: Rule::AllOrNone });
    let both = json!({"ipFamilyPolicy": "PreferDualStack"});
    let adopted = place.create("adopted", both.clone()).await?;
    let left = mirror_name(&adopted);
    let port = serde_json::to_value(&adopted)?["spec"]["ports"][0]["nodePort"].clone();
    let mirror = json!({
        "metadata": {"name": left, "labels": {"cluster.x-k8s.io/cluster-name": CLUSTER,
            "cluster.x-k8s.io/tenant-service-name": "adopted",
            "cluster.x-k8s.io/tenant-service-namespace": place.namespace}},
        "spec": {"type": "LoadBalancer", "selector": {"cluster.x-k8s.io/cluster-name": CLUSTER,
            "cluster.x-k8s.io/role": "worker"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": port}]},
    });
    let by_reference = PostParams { field_manager: Some(REFERENCE.to_owned()), ..PostParams::default() };
    place.mirrors.create(&by_reference, &serde_json::from_value(mirror)?).await?;
    let had = place.mirror(&left, "an address", |now| first_address(now).is_some()).await?;
    let address = first_address(&had).unwrap_or_default();

    let _provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    place.shows("adopted", Some(&address)).await?;
    place.has_event("adopted", "IPFamilyRefused", "one address family").await?;

    let prefers = place.create("prefers", both).await?;
    let single = |now: &Value| now["spec"]["ipFamilyPolicy"] == "SingleStack";
    place.has_event("prefers", "AllocationFailed", "no available IPs").await?;
    place.mirror(&mirror_name(&prefers), "one family", single).await?;
    place.served("prefers").await?;
    place.has_event("prefers", "IPFamilyRefused", "one address family").await?;

    place.create("four", json!({})).await?;
    place.served("four").await?;
    place.create("six", json!({"ipFamilies": ["IPv6"]})).await?;
    place.create("requires", json!({"ipFamilyPolicy": "RequireDualStack"})).await?;
    for name in ["six", "requires"] {
        place.has_event(name, "AllocationFailed", "no available IPs").await?;
        place.condition(name, PROVISIONED, ("False", "NoAddress")).await?;
    }
    let (now, shown) =
        (serde_json::to_value(place.mirrors.get(&left).await?)?, place.addresses("adopted").await?);
    ensure!(
        single(&now) && shown == [address.clone()],
        "expected what upstream left to keep one family and {address}, saw {shown:?} and {now}"
    );

    drop(pool);
    let six = place.served("six").await?;
    ensure!(six.contains(':'), "expected an IPv6 address, saw {six}");
    shows_families(&place, "requires", 2).await?;
    let shown = place.addresses("adopted").await?;
    ensure!(shown == [address], "expected the one address to stay, saw {shown:?}");
    Ok(())
}

/// Where a Service that prefers two families gets what the pool has, it has its address at once, and the second when the pool has
/// that.
async fn a_load_balancer_that_gives_one_of_two_families_is_left_alone(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let pool = place.faults.inject(Fault::Pool { family: Family::V4, rule: Rule::WhatThereIs });
    let _provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    let prefers = place.create("prefers", json!({"ipFamilyPolicy": "PreferDualStack"})).await?;
    place.served("prefers").await?;
    place.condition("prefers", PROVISIONED, ("True", "Provisioned")).await?;
    let now = serde_json::to_value(place.mirrors.get(&mirror_name(&prefers)).await?)?;
    ensure!(
        now["spec"]["ipFamilyPolicy"] == "PreferDualStack",
        "expected both families to be asked for, saw {now}"
    );
    drop(pool);
    shows_families(&place, "prefers", 2).await
}

/// The first address that a mirror has.
fn first_address(mirror: &Value) -> Option<String> {
    mirror.pointer("/status/loadBalancer/ingress/0/ip")?.as_str().map(str::to_owned)
}

/// Waits until the guest shows so many addresses of a Service.
async fn shows_families(place: &Place, name: &str, number: usize) -> Result<()> {
    until(&format!("{number} addresses of {name}"), Deadline::Reaction, async || {
        let shown = place.addresses(name).await?;
        Ok(if shown.len() == number { Ok(()) } else { Err(format!("it shows {shown:?}")) })
    })
    .await
}
