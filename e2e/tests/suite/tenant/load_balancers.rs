//! Recipes with Services and EndpointSlices.

use anyhow::{Context, Result, ensure};
use bench::{
    sandbox::network::INFRA_API,
    scenario::{Deadline, until, until_gone},
};
use futures::future::try_join_all;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    Recipes,
    guests::{MOST, Tenant},
    is_accepted, recipe,
};
use crate::{
    endpoints::scene::Scene,
    provider::{merge, mirror_name},
    rows::Row::{Kind, Like},
};

/// The most bytes of annotations of an object (k8s.io/apimachinery, `api/validation/objectmeta.go`).
const MOST_ANNOTATION_BYTES: usize = 256 * 1024;
/// An address that clouds give their metadata.
const METADATA: &str = "169.254.169.254";

/// In the order in which they are tried; the last ones leave odd objects behind.
pub fn recipes() -> Recipes<Tenant> {
    vec![
        recipe(Kind, "a Service above each limit", |tenant| Box::pin(above_each_limit(tenant))),
        recipe(Kind, "more load balancers and ports than the quota", |tenant| {
            Box::pin(above_the_quota(tenant))
        }),
        recipe(Kind, "the names and marks of another guest", |tenant| Box::pin(marks_of_another(tenant))),
        recipe(Kind, "the address of another guest", |tenant| Box::pin(address_of_another(tenant))),
        recipe(Kind, "endpoints in infra and in other guests", |tenant| Box::pin(foreign_endpoints(tenant))),
        recipe(Kind, "one Service of a thousand endpoints", |tenant| Box::pin(many_endpoints(tenant))),
        recipe(Kind, "fields with odd values", |tenant| Box::pin(odd_fields(tenant))),
        recipe(Kind, "finalizers that hold and that are taken away", |tenant| Box::pin(finalizers(tenant))),
        recipe(Kind, "one name, again and again", |tenant| Box::pin(one_name_again(tenant))),
        recipe(
            Like("load_balancer::a_service_that_flips_without_end_starves_no_other, with thirty of them"),
            "thirty Services that change all the time",
            |tenant| Box::pin(restless(tenant)),
        ),
        recipe(Kind, "the guest's own Service kubernetes deleted", |tenant| Box::pin(another_uid(tenant))),
        recipe(Kind, "conditions that are huge or cannot be read", |tenant| Box::pin(odd_conditions(tenant))),
    ]
}

fn ports(count: usize) -> Value {
    let port = |number: usize| json!({"name": format!("p{number}"), "port": 1000 + number});
    (0..count).map(port).collect()
}

/// H1: ports, source ranges and bytes, each of one Service.
async fn above_each_limit(tenant: &Tenant) -> Result<()> {
    let place = tenant.place();
    place.create("ports", json!({"ports": ports(301)})).await?;
    let ranges: Value =
        (0..257).map(|number| json!(format!("10.0.{}.{}/32", number / 256, number % 256))).collect();
    place.create("ranges", json!({"ports": ports(256), "loadBalancerSourceRanges": ranges})).await?;
    let key = "x";
    let bytes = json!({"metadata": {"annotations": {key: "y".repeat(MOST_ANNOTATION_BYTES - key.len())}}});
    let annotated = place.create_annotated("bytes", &bytes, json!({})).await?;
    place.has_event("ports", "LoadBalancerTooLarge", "301 ports").await?;
    place.has_event("ranges", "LoadBalancerTooLarge", "257 source ranges").await?;
    place.has_event("bytes", "AnnotationsRefused", key).await?;
    place.served("bytes").await?;
    let mirror = serde_json::to_value(place.mirrors.get(&mirror_name(&annotated)).await?)?;
    ensure!(mirror["metadata"]["annotations"].get(key).is_none(), "expected no annotation, saw {mirror}");
    tenant.clear().await
}

/// H1: many Services within the limits.
async fn above_the_quota(tenant: &Tenant) -> Result<()> {
    const ASKED: usize = 25;
    const EACH: usize = 30;
    let place = tenant.place();
    let made = (0..ASKED).map(|number| {
        let range = json!([format!("10.1.{number}.0/24"), format!("10.2.{number}.0/24")]);
        let spec = json!({"ports": ports(EACH), "loadBalancerSourceRanges": range});
        async move { place.create(&format!("web-{number}"), spec).await }
    });
    try_join_all(made).await?;
    let fit = MOST.ports / EACH;
    until("those above the quota to be told", Deadline::PodStart, async || {
        let all = place.guests.list(&ListParams::default()).await?.items;
        let (served, told) = (count(&all, is_served), count(&all, is_told_of_the_quota));
        let is_settled = served == fit && told == ASKED - fit;
        Ok(if is_settled { Ok(()) } else { Err(format!("{served} served, {told} told")) })
    })
    .await?;
    tenant.clear().await
}

fn count(all: &[Service], which: impl Fn(&Service) -> bool) -> usize {
    all.iter().filter(|service| which(service)).count()
}

fn is_served(service: &Service) -> bool {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.is_some_and(|balancer| balancer.ingress.is_some())
}

fn is_told_of_the_quota(service: &Service) -> bool {
    let conditions = service.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.reason == "QuotaExceeded")
}

/// A Service that is called as another guest's mirror, and bears all of its labels and marks.
async fn marks_of_another(tenant: &Tenant) -> Result<()> {
    let (place, victim) = (tenant.place(), &tenant.victim);
    let metadata = json!({"metadata": {
        "labels": {"cluster.x-k8s.io/cluster-name": crate::endpoints::scene::CLUSTER,
            "cluster.x-k8s.io/tenant-service-name": "web",
            "cluster.x-k8s.io/tenant-service-namespace": place.namespace,
            "kubernetes.io/service-name": victim.mirror},
        "annotations": {"cluster.x-k8s.io/tenant-cluster-uid": victim.mark,
            "cluster.x-k8s.io/tenant-service-uid": victim.service.metadata.uid,
            "cluster.x-k8s.io/tenant-service-adopted": "{}"},
    }});
    let selector = json!({"selector": {"cluster.x-k8s.io/cluster-name": crate::endpoints::scene::CLUSTER}});
    let service = place.create_annotated(&victim.mirror, &metadata, selector).await?;
    place.served(&victim.mirror).await?;
    let mirror = serde_json::to_value(place.mirrors.get(&mirror_name(&service)).await?)?;
    let (labels, annotations) = (&mirror["metadata"]["labels"], &mirror["metadata"]["annotations"]);
    ensure!(
        labels["cluster.x-k8s.io/cluster-name"] == tenant.scene.cluster
            && labels["cluster.x-k8s.io/tenant-service-name"] == json!(victim.mirror),
        "expected the tenant's own labels, saw {labels}"
    );
    ensure!(
        annotations["cluster.x-k8s.io/tenant-cluster-uid"] != json!(victim.mark)
            && annotations["cluster.x-k8s.io/tenant-service-uid"] == json!(service.metadata.uid),
        "expected the tenant's own marks, saw {annotations}"
    );
    tenant.clear().await
}

/// The other guest's address wherever a Service can name one.
async fn address_of_another(tenant: &Tenant) -> Result<()> {
    let (place, address) = (tenant.place(), &tenant.victim.address);
    let annotations = json!({"metadata": {"annotations": {
        "metallb.io/loadBalancerIPs": address, "metallb.universe.tf/loadBalancerIPs": address,
        "metallb.io/allow-shared-ip": "x", "kube-vip.io/loadbalancerIPs": address, "lbipam.cilium.io/ips": address,
    }}});
    let spec = json!({"loadBalancerIP": address, "externalIPs": [address]});
    let service = place.create_annotated("thief", &annotations, spec).await?;
    place.has_event("thief", "LoadBalancerIPRefused", address).await?;
    place.has_event("thief", "ExternalIPsRefused", address).await?;
    let own = place.served("thief").await?;
    ensure!(own != *address, "expected an address of its own, saw that of the other guest");
    let mirror = serde_json::to_value(place.mirrors.get(&mirror_name(&service)).await?)?;
    let text = mirror["spec"].to_string() + &mirror["metadata"]["annotations"].to_string();
    ensure!(!text.contains(&format!("{address}\"")), "expected the address nowhere in infra, saw {mirror}");
    tenant.patch_status("thief", json!({"loadBalancer": {"ingress": [{"ip": address}]}})).await?;
    place.shows("thief", Some(&own)).await?;
    tenant.clear().await
}

/// H2: slices of the guest that name addresses of infra, of its Nodes and of the other guest's VM. What infra gets are the
/// tenant's own VMs.
async fn foreign_endpoints(tenant: &Tenant) -> Result<()> {
    let (place, scene, victim) = (tenant.place(), &tenant.scene, &tenant.victim);
    let [one, _] = &tenant.machines;
    let service = place.create("web", json!({"externalTrafficPolicy": "Local"})).await?;
    let mirror = mirror_name(&service);
    let mut lies = Vec::new();
    let infra_api = INFRA_API.to_string();
    for address in [&infra_api, &victim.vm_addresses[0], "10.96.0.1", METADATA, "127.0.0.1"] {
        for node in [Some(victim.vm.as_str()), Some("infra-node-1"), None] {
            let mut lie = Scene::endpoint(&victim.vm, true);
            lie["addresses"] = json!([address]);
            lie["nodeName"] = json!(node);
            lie["targetRef"] =
                json!({"kind": "VirtualMachineInstance", "name": victim.vm, "namespace": place.namespace});
            lies.push(lie);
        }
    }
    let slices: Api<EndpointSlice> = scene.guest_slices.clone();
    let mut accepted = 0;
    for (number, lie) in lies.iter().enumerate() {
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("lie-{number}"), "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [lie], "ports": [{"name": "http", "port": 6443}, {"name": "other", "port": 10250}]});
        let patch = PatchParams::apply("bench").force();
        accepted += usize::from(is_accepted(
            slices.patch(&format!("lie-{number}"), &patch, &Patch::Apply(&slice)).await,
        )?);
    }
    ensure!(accepted > 5, "expected the tenant's API server to accept most of them, saw {accepted}");
    scene.serves("web", &json!([Scene::endpoint(one, true)])).await?;
    let all =
        scene.until(&mirror, "the tenant's own VMs", |all| all.ready_names().contains(&one.as_str())).await?;
    let mut own = Vec::new();
    for machine in &tenant.machines {
        let interfaces = scene.instance(machine).await?["status"]["interfaces"].clone();
        own.extend(interfaces[0]["ipAddresses"].as_array().cloned().unwrap_or_default());
    }
    for endpoint in all.slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten() {
        let addresses = endpoint["addresses"].as_array().context("an endpoint without addresses")?;
        ensure!(
            addresses.iter().all(|address| own.contains(address)),
            "expected addresses of the tenant's VMs only, saw {endpoint}"
        );
    }
    let node_port = serde_json::to_value(&service)?["spec"]["ports"][0]["nodePort"].clone();
    for slice in &all.slices {
        ensure!(
            slice["ports"][0]["port"] == node_port,
            "expected the Service's node port, saw {}",
            slice["ports"]
        );
    }
    for slice in slices.list(&ListParams::default()).await? {
        slices.delete(&slice.metadata.name.unwrap_or_default(), &DeleteParams::default()).await?;
    }
    tenant.clear().await
}

/// A thousand endpoints of the guest are as many endpoints in infra as the tenant has VMs.
async fn many_endpoints(tenant: &Tenant) -> Result<()> {
    let (place, scene) = (tenant.place(), &tenant.scene);
    let [one, _] = &tenant.machines;
    let service = place.create("web", json!({"externalTrafficPolicy": "Local"})).await?;
    let endpoints: Value = (0..1000)
        .map(|number| {
            let mut endpoint = Scene::endpoint(one, true);
            endpoint["addresses"] = json!([format!("10.244.{}.{}", number / 250, 1 + number % 250)]);
            endpoint
        })
        .collect();
    scene.serves("web", &endpoints).await?;
    let all = scene.until(&mirror_name(&service), "the VM", |all| all.ready_names() == [one]).await?;
    ensure!(all.names() == [one], "expected one endpoint, saw {:?}", all.names());
    scene.guest_slices.delete("web", &DeleteParams::default()).await?;
    tenant.clear().await
}

/// Services of all kinds of odd values that the API server accepts: none holds up the next.
async fn odd_fields(tenant: &Tenant) -> Result<()> {
    let place = tenant.place();
    let two = |protocol: &str| json!([{"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53, "protocol": protocol}]);
    let specs = [
        json!({"type": "ExternalName", "externalName": "kubernetes.default.svc", "ports": null}),
        json!({"loadBalancerSourceRanges": [" 0.0.0.0/0 ", "::/0"]}),
        json!({"loadBalancerClass": "example.org/../x"}),
        json!({"ports": two("TCP")}),
        json!({"ports": two("SCTP")}),
        json!({"ports": [{"port": 80, "targetPort": "a-name", "appProtocol": "example.org/x", "nodePort": 32767}]}),
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}),
        json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32766}),
        json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "PreferDualStack"}),
        json!({"allocateLoadBalancerNodePorts": false}),
        json!({"publishNotReadyAddresses": true, "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose"}),
        json!({"clusterIP": "None"}),
    ];
    let mut accepted = 0;
    for (number, spec) in specs.into_iter().enumerate() {
        let mut object = json!({"metadata": {"name": format!("odd-{number}")},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        let service: Service = serde_json::from_value(object)?;
        accepted += usize::from(is_accepted(place.guests.create(&PostParams::default(), &service).await)?);
    }
    ensure!(accepted > 5, "expected the tenant's API server to accept most of them, saw {accepted}");
    super::guests::is_served(place, "plain").await?;
    tenant.clear().await
}

/// One Service is held by a finalizer of the tenant's, and loses its load balancer all the same. Of another one the program's
/// finalizer is taken away: its load balancer is a left-over, and goes too.
async fn finalizers(tenant: &Tenant) -> Result<()> {
    let place = tenant.place();
    let held = json!({"metadata": {"finalizers": ["example.org/held"]}});
    let held = place.create_annotated("held", &held, json!({})).await?;
    let bare = place.create("bare", json!({})).await?;
    for name in ["held", "bare"] {
        place.served(name).await?;
    }
    place.guests.delete("held", &DeleteParams::default()).await?;
    merge(&place.guests, "bare", json!({"metadata": {"finalizers": null}})).await?;
    place.guests.delete("bare", &DeleteParams::default()).await?;
    // The program may have put its finalizer back before the deletion; then it deletes the mirror itself.
    for service in [&held, &bare] {
        until_gone(&place.mirrors, &mirror_name(service), "the mirror", Deadline::Reaction).await?;
    }
    ensure!(place.guests.get_opt("held").await?.is_some(), "expected the held Service to be there, saw none");
    merge(&place.guests, "held", json!({"metadata": {"finalizers": null}})).await?;
    tenant.clear().await
}

/// A Service is replaced by another of its name, without its finalizer: each has another UID. One mirror is left, the last.
async fn one_name_again(tenant: &Tenant) -> Result<()> {
    const TIMES: usize = 10;
    let place = tenant.place();
    let mut last = None;
    for _ in 0..TIMES {
        last = Some(place.create("same", json!({})).await?);
        place.served("same").await?;
        // Until it is gone: the program may put the finalizer back in between.
        until("the Service to be gone", Deadline::Reaction, async || {
            is_accepted(place.guests.delete("same", &DeleteParams::default()).await)?;
            let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            is_accepted(place.guests.patch("same", &PatchParams::default(), &free).await)?;
            Ok(if place.guests.get_opt("same").await?.is_none() { Ok(()) } else { Err("there".to_owned()) })
        })
        .await?;
    }
    let last = last.context("no Service was made")?;
    super::guests::is_served(place, "same").await?;
    until_gone(&place.mirrors, &mirror_name(&last), "the last left-over", Deadline::Reaction).await?;
    tenant.clear().await
}

/// M2: as many changes as the tenant's API server accepts, for some seconds.
async fn restless(tenant: &Tenant) -> Result<()> {
    const COUNT: usize = 15;
    const FLIPS: u16 = 60;
    let place = tenant.place();
    let names: Vec<String> = (0..COUNT).map(|number| format!("restless-{number}")).collect();
    try_join_all(names.iter().map(|name| place.create(name, json!({})))).await?;
    let flips = names.iter().map(async |name| {
        for flip in 0..FLIPS {
            let kind = if flip % 2 == 0 { "ClusterIP" } else { "LoadBalancer" };
            let ports = json!([{"name": "http", "port": 1000 + flip, "targetPort": 8080}]);
            merge(&place.guests, name, json!({"spec": {"type": kind, "ports": ports}})).await?;
        }
        anyhow::Ok(())
    });
    tokio::try_join!(try_join_all(flips), super::guests::is_served(place, "calm"))?;
    tenant.clear().await
}

/// M3: the UID of the guest is that of its Service `default/kubernetes`, which the API server makes again.
async fn another_uid(tenant: &Tenant) -> Result<()> {
    let place = tenant.place();
    let before = place.create("before", json!({})).await?;
    place.served("before").await?;
    let own: Api<Service> = Api::namespaced(place.guest.clone(), "default");
    let uid = own.get("kubernetes").await?.metadata.uid;
    own.delete("kubernetes", &DeleteParams::default()).await?;
    until("the API server's Service to be made again", Deadline::Reaction, async || {
        let now = own.get_opt("kubernetes").await?.and_then(|service| service.metadata.uid);
        Ok(if now.is_some() && now != uid { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await?;
    super::guests::is_served(place, "later").await?;
    place.served("before").await?;
    place.mirror(&mirror_name(&before), "the mirror", |_| true).await?;
    tenant.clear().await
}

/// M1: a condition whose time is null, one whose time no program can read, many that are huge. The objects stay.
async fn odd_conditions(tenant: &Tenant) -> Result<()> {
    let place = tenant.place();
    let condition = |kind: &str, time: Value, message: &str| {
        json!({"type": kind, "status": "Sometimes", "reason": "", "message": message, "lastTransitionTime": time,
            "observedGeneration": -1})
    };
    let huge = "x".repeat(32 * 1024);
    let late = json!("9999-12-31T23:59:59Z");
    let odd = [
        ("null", json!([condition("example.org/A", Value::Null, "")])),
        ("late", json!([condition("example.org/A", late.clone(), "")])),
        (
            "huge",
            (0..20)
                .map(|n| condition(&format!("example.org/{n}"), json!("2026-01-01T00:00:00Z"), &huge))
                .collect(),
        ),
        ("ours", json!([condition("kubevirt.io/LoadBalancerProvisioned", late, &huge)])),
    ];
    let mut accepted = 0;
    for (name, conditions) in odd {
        place.create(name, json!({})).await?;
        place.served(name).await?;
        accepted +=
            usize::from(is_accepted(tenant.patch_status(name, json!({"conditions": conditions})).await)?);
    }
    ensure!(accepted > 1, "expected the tenant's API server to accept some of them, saw {accepted}");
    super::guests::is_served(place, "beside").await?;
    for name in ["null", "late", "huge", "ours"] {
        tenant.has_address(name).await?;
    }
    Ok(())
}
