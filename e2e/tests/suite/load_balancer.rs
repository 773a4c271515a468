//! LoadBalancer Services of the guest: mirrored to infra, kept, and taken down, by a real cloud controller manager between the two
//! real API servers.

pub mod bare;
pub mod burst;
pub mod churn;
pub mod credentials;
pub mod explained;
pub mod families;
pub mod faults;
pub mod left_overs;
pub mod memory;
pub mod narrow_rights;
pub mod policy;
pub mod secure_endpoint;
pub mod storm;
pub mod sweep_faults;

use anyhow::{Result, ensure};
use bench::scenario::{Deadline, until, until_gone};
use bench::simulator::{fault_plan::Hold, infra_load_balancer::Fault};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{ALONE, Access, CLUSTER, Place, merge, mirror_name},
};

tests! {
    Services:
        its_life_from_a_late_address_to_a_slow_end,
        an_address_that_infra_loses_for_a_moment_stays,
        every_change_and_drift_is_mirrored,
        what_the_reference_left_is_taken_over,
        what_an_earlier_name_left_is_taken_over_when_it_is_named,
        a_stuck_service_holds_up_no_other,
        a_clone_neither_steals_nor_deletes,
        another_replica_takes_over;
}

/// The name of kubevirt/cloud-provider-kubevirt in `managedFields`.
const REFERENCE: &str = "kubevirt-cloud-controller-manager";

/// A late, changed or cleared address and a deleted mirror are repaired; the finalizer waits for infra.
async fn its_life_from_a_late_address_to_a_slow_end(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let late = place.faults.inject(Fault::Hold { hold: Hold::Forever, service: None });
    let _provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    let service = place.create("web", json!({})).await?;
    let mirror = mirror_name(&service);
    place.mirror(&mirror, "the mirror", |_| true).await?;
    place.has_event("web", "SyncLoadBalancerFailed", "has assigned no address").await?;
    drop(late);
    let address = place.served("web").await?;
    place.has_event("web", "EnsuredLoadBalancer", "Ensured").await?;

    let moved = Fault::Move { service: mirror.clone(), to: [198, 18, 99, 1].into() };
    let moved = place.faults.inject(moved);
    place.shows("web", Some("198.18.99.1")).await?;
    let cleared = json!({"status": {"loadBalancer": {"ingress": null}}});
    place.guests.patch_status("web", &PatchParams::default(), &Patch::Merge(cleared)).await?;
    place.shows("web", Some("198.18.99.1")).await?;
    drop(moved);
    place.shows("web", Some(&address)).await?;

    let uid = place.mirrors.get(&mirror).await?.metadata.uid;
    place.mirrors.delete(&mirror, &DeleteParams::default()).await?;
    place.mirror(&mirror, "another mirror", |now| now["metadata"]["uid"] != json!(uid)).await?;
    place.served("web").await?;

    let held = json!({"metadata": {"finalizers": ["bench.local/held"]}});
    merge(&place.mirrors, &mirror, held).await?;
    place.guests.delete("web", &DeleteParams::default()).await?;
    place.mirror(&mirror, "its deletion", |now| now["metadata"].get("deletionTimestamp").is_some()).await?;
    place.has_event("web", "DeletingLoadBalancer", "").await?;
    ensure!(
        place.guests.get_opt("web").await?.is_some(),
        "expected the guest's Service to wait for infra, saw it gone"
    );
    merge(&place.mirrors, &mirror, json!({"metadata": {"finalizers": null}})).await?;
    until_gone(&place.guests, "web", "the guest's Service", Deadline::Reaction).await
}

/// The infra load balancer clears an address for a moment: the guest keeps it. One that does not come back goes.
async fn an_address_that_infra_loses_for_a_moment_stays(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let _provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    let service = place.create("web", json!({})).await?;
    let mirror = mirror_name(&service);
    let address = place.served("web").await?;
    let lose = async || -> Result<_> {
        let held = place.faults.inject(Fault::Hold { hold: Hold::Forever, service: Some(mirror.clone()) });
        let cleared = json!({"status": {"loadBalancer": {"ingress": null}}});
        place.mirrors.patch_status(&mirror, &PatchParams::default(), &Patch::Merge(cleared)).await?;
        Ok(held)
    };
    let held = lose().await?;
    // The provider has seen the loss before it can see the other mirror.
    let other = place.create("other", json!({})).await?;
    place.mirror(&mirror_name(&other), "another mirror", |_| true).await?;
    let shown = place.addresses("web").await?;
    ensure!(shown == [address.clone()], "expected the last address to stay, saw {shown:?}");
    drop(held);
    place
        .mirror(&mirror, "its address again", |now| now["status"]["loadBalancer"].get("ingress").is_some())
        .await?;
    place.shows("web", Some(&address)).await?;
    let _held = lose().await?;
    place.shows("web", None).await
}

/// Each field follows, drift is repaired, and what must not reach infra does not.
async fn every_change_and_drift_is_mirrored(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let _provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    let service = place.create("web", json!({"externalIPs": ["198.51.100.9"]})).await?;
    let mirror = mirror_name(&service);
    place.served("web").await?;
    place.has_event("web", "ExternalIPsRefused", "198.51.100.9").await?;
    let first =
        place.mirror(&mirror, "no external address", |now| now["spec"].get("externalIPs").is_none()).await?;
    let node_port = first["spec"]["ports"][0]["nodePort"].clone();

    let change = json!({
        "metadata": {"annotations": {"metallb.io/address-pool": "public"}},
        "spec": {"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
            "loadBalancerSourceRanges": ["198.51.100.0/24"],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}]},
    });
    merge(&place.guests, "web", change).await?;
    let now = place
        .mirror(&mirror, "all that changed", |now| {
            let spec = &now["spec"];
            spec["externalTrafficPolicy"] == "Local"
                && spec["sessionAffinity"] == "ClientIP"
                && spec["loadBalancerSourceRanges"] == json!(["198.51.100.0/24"])
                && spec["ports"].as_array().is_some_and(|ports| ports.len() == 2)
                && now["metadata"]["annotations"]["metallb.io/address-pool"] == "public"
        })
        .await?;
    let guest = serde_json::to_value(place.guests.get("web").await?)?;
    ensure!(
        now["spec"]["ports"][0]["nodePort"] == node_port,
        "expected the node port {node_port} to stay, saw {now}"
    );
    for port in [0, 1] {
        let (have, want) =
            (&now["spec"]["ports"][port]["targetPort"], &guest["spec"]["ports"][port]["nodePort"]);
        ensure!(have == want, "expected the guest's node port {want} as target port, saw {have}");
    }

    let back = json!({"metadata": {"annotations": {"metallb.io/address-pool": null}},
        "spec": {"externalTrafficPolicy": "Cluster", "sessionAffinity": "None", "sessionAffinityConfig": null,
            "loadBalancerSourceRanges": null, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    merge(&place.guests, "web", back).await?;
    place
        .mirror(&mirror, "the way back", |now| {
            now["spec"]["externalTrafficPolicy"] == "Cluster"
                && now["spec"].get("loadBalancerSourceRanges").is_none()
                && now["spec"].get("healthCheckNodePort").is_none()
                && now["spec"]["ports"].as_array().is_some_and(|ports| ports.len() == 1)
                && now["metadata"]["annotations"].get("metallb.io/address-pool").is_none()
        })
        .await?;

    let drift = json!({"metadata": {"labels": {"cluster.x-k8s.io/tenant-service-name": null}},
        "spec": {"selector": {"cluster.x-k8s.io/role": "nobody"}}});
    merge(&place.mirrors, &mirror, drift).await?;
    place
        .mirror(&mirror, "the repair", |now| {
            now["spec"]["selector"]["cluster.x-k8s.io/role"] == "worker"
                && now["metadata"]["labels"]["cluster.x-k8s.io/tenant-service-name"] == "web"
        })
        .await?;

    let classed = place.create("classed", json!({"loadBalancerClass": "bench.local/anothers"})).await?;
    let bare = json!({"allocateLoadBalancerNodePorts": false});
    let bare = place.create("bare", bare).await?;
    place.has_event("bare", "SyncLoadBalancerFailed", "allocateLoadBalancerNodePorts").await?;
    ensure!(
        place.mirrors.get_opt(&mirror_name(&bare)).await?.is_none(),
        "expected no mirror of a Service without node ports, saw one"
    );
    let now = place.guests.get("classed").await?;
    ensure!(
        now.metadata.resource_version == classed.metadata.resource_version,
        "expected the Service of another class unchanged, saw {:?}",
        now.metadata
    );
    ensure!(
        place.mirrors.get_opt(&mirror_name(&classed)).await?.is_none(),
        "expected no mirror of a Service of another class, saw one"
    );
    Ok(())
}

/// What kubevirt/cloud-provider-kubevirt left is taken over: its removed port and annotation go, address and node port stay, and so
/// does what it did not pass on, until the guest changes it. Templates give the cluster's name in quotes that YAML keeps.
async fn what_the_reference_left_is_taken_over(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let service = place.create("web", json!({"sessionAffinity": "ClientIP"})).await?;
    let mirror = mirror_name(&service);
    let guest_port = serde_json::to_value(&service)?["spec"]["ports"][0]["nodePort"].clone();
    let left = json!({
        "metadata": {"name": mirror, "labels": {"cluster.x-k8s.io/cluster-name": CLUSTER,
            "cluster.x-k8s.io/tenant-service-name": "web",
            "cluster.x-k8s.io/tenant-service-namespace": place.namespace},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "gone": "x"}},
        "spec": {"type": "LoadBalancer", "selector": {"cluster.x-k8s.io/cluster-name": CLUSTER,
            "cluster.x-k8s.io/role": "worker"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": guest_port},
                {"name": "old", "port": 81, "protocol": "TCP", "targetPort": 30081}]},
    });
    let by_reference = PostParams { field_manager: Some(REFERENCE.to_owned()), ..PostParams::default() };
    let before = place.mirrors.create(&by_reference, &serde_json::from_value(left)?).await?;
    merge(&place.mirrors, &mirror, json!({"metadata": {"annotations": {"by-infra": "stays"}}})).await?;
    let before = serde_json::to_value(before)?;

    let _provider = place.provider("a", &format!("\"{CLUSTER}\""), &[ALONE]).await?;
    let now = place
        .mirror(&mirror, "the takeover", |now| {
            let annotations = &now["metadata"]["annotations"];
            now["spec"]["ports"].as_array().is_some_and(|ports| ports.len() == 1)
                && annotations.get("gone").is_none()
                && annotations.get("kubectl.kubernetes.io/last-applied-configuration").is_none()
        })
        .await?;
    ensure!(
        now["metadata"]["annotations"]["by-infra"] == "stays",
        "expected infra's own annotation to stay, saw it removed"
    );
    for pointer in ["/metadata/uid", "/spec/clusterIP", "/spec/ports/0/nodePort"] {
        ensure!(now.pointer(pointer) == before.pointer(pointer), "expected {pointer} unchanged, saw {now}");
    }
    place.served("web").await?;
    ensure!(
        now["spec"]["sessionAffinity"] == "None",
        "expected the session affinity that upstream gave it, saw {}",
        now["spec"]["sessionAffinity"]
    );
    place.has_event("web", "FieldsRefused", "sessionAffinity").await?;

    let longer = json!({"spec": {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}});
    merge(&place.guests, "web", longer).await?;
    place
        .mirror(&mirror, "the session affinity that the guest changed", |now| {
            now["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] == 60
                && now["metadata"]["annotations"].get("cluster.x-k8s.io/tenant-service-adopted").is_none()
        })
        .await?;
    Ok(())
}

/// Infra Services that carry an earlier name of the cluster, or none, are nobody's until the operator names the former labels. Then
/// they get today's labels, keep what clients see, and go with the guest's Services.
async fn what_an_earlier_name_left_is_taken_over_when_it_is_named(fixture: Fixture) -> Result<()> {
    const CLUSTER_NAME: &str = "cluster.x-k8s.io/cluster-name";
    let place = Place::new(&fixture).await?;
    let access = Access { infra: place.infra_access.clone(), guest: place.guest_access.clone() };
    let by_reference = PostParams { field_manager: Some(REFERENCE.to_owned()), ..PostParams::default() };
    let mut left = Vec::new();
    for (name, labels) in
        [("named", json!({CLUSTER_NAME: "kubernetes", "team": "red"})), ("unnamed", json!({"team": "red"}))]
    {
        let service = place.create(name, json!({})).await?;
        let port = serde_json::to_value(&service)?["spec"]["ports"][0]["nodePort"].clone();
        let mirror = json!({
            "metadata": {"name": mirror_name(&service), "labels": labels},
            "spec": {"type": "LoadBalancer", "selector": {"cluster.x-k8s.io/role": "worker"},
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": port}]},
        });
        let before = place.mirrors.create(&by_reference, &serde_json::from_value(mirror)?).await?;
        left.push((name, mirror_name(&service), serde_json::to_value(before)?));
    }
    let keys = |former: Value| {
        json!({
            "infraLabels": {"team": "blue"}, "formerLabels": former,
            "loadBalancer": {"creationPollTimeout": 5}, "instancesV2": {"enabled": false},
        })
    };
    let provider = place.configured_as("without", &access, &keys(json!({})), &[ALONE]).await?;
    for (name, mirror, before) in &left {
        place.has_event(name, "SyncLoadBalancerFailed", &format!("{mirror} is not ours")).await?;
        let now = serde_json::to_value(place.mirrors.get(mirror).await?)?;
        ensure!(
            now["metadata"]["labels"] == before["metadata"]["labels"] && now["spec"] == before["spec"],
            "{name}: expected a Service of another name unchanged, saw {now}"
        );
    }
    drop(provider);

    let former = keys(json!({CLUSTER_NAME: ["kubernetes", ""], "team": ["red"]}));
    let _provider = place.configured_as("with", &access, &former, &[ALONE]).await?;
    for (name, mirror, before) in &left {
        let is_ours = |now: &Value| {
            let labels = &now["metadata"]["labels"];
            labels[CLUSTER_NAME] == CLUSTER && labels["team"] == "blue"
        };
        let now = place.mirror(mirror, "today's labels", is_ours).await?;
        for pointer in ["/metadata/uid", "/spec/clusterIP", "/spec/ports/0/nodePort"] {
            ensure!(
                now.pointer(pointer) == before.pointer(pointer),
                "expected {pointer} unchanged, saw {now}"
            );
        }
        place.served(name).await?;
        place.guests.delete(name, &DeleteParams::default()).await?;
        until_gone(&place.guests, name, "the guest's Service", Deadline::Reaction).await?;
        until_gone(&place.mirrors, mirror, "the infra Service", Deadline::Reaction).await?;
    }
    Ok(())
}

/// A Service that gets no address delays no other; infra's message reaches the guest.
async fn a_stuck_service_holds_up_no_other(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let _provider = place.provider("a", CLUSTER, &[ALONE]).await?;
    let message = "Failed to allocate IP: no available IPs";
    let refused = place.faults.inject(Fault::Refuse { message: message.to_owned() });
    for number in 0..20 {
        place.create(&format!("stuck-{number}"), json!({})).await?;
    }
    place.has_event("stuck-19", "AllocationFailed", message).await?;
    drop(refused);
    for number in 0..20 {
        place.served(&format!("stuck-{number}")).await?;
    }
    Ok(())
}

/// A second guest of another name in the same infra namespace neither takes nor deletes what is not its own.
async fn a_clone_neither_steals_nor_deletes(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let first = place.provider("a", CLUSTER, &[ALONE]).await?;
    let service = place.create("web", json!({})).await?;
    let mirror = mirror_name(&service);
    place.served("web").await?;
    drop(first);
    let before = place.mirrors.get(&mirror).await?;
    let _clone = place.provider("b", "clone", &[ALONE]).await?;
    place.has_event("web", "SyncLoadBalancerFailed", "is not ours").await?;
    place.guests.delete("web", &DeleteParams::default()).await?;
    until_gone(&place.guests, "web", "the clone's Service", Deadline::Reaction).await?;
    let after = place.mirrors.get(&mirror).await?;
    ensure!(
        after.metadata.resource_version == before.metadata.resource_version,
        "expected the mirror unchanged by the other guest, saw another version"
    );
    Ok(())
}

/// Two replicas: one acts; the other takes over when it dies, and at once when it gets SIGTERM.
async fn another_replica_takes_over(fixture: Fixture) -> Result<()> {
    let place = Place::new(&fixture).await?;
    let lease = format!("--leader-elect-resource-name=ccm-{}", place.namespace);
    let first = place.provider("a", CLUSTER, &[&lease]).await?;
    place.create("one", json!({})).await?;
    place.served("one").await?;
    let second = place.provider("b", CLUSTER, &[&lease]).await?;
    first.process.kill().await;
    place.create("two", json!({})).await?;
    place.served("two").await?;

    let third = place.provider("c", CLUSTER, &[&lease]).await?;
    second.process.signal(Signal::SIGTERM);
    let ended = second.process.exited().await;
    ensure!(ended.success(), "expected exit code 0 of the holder on SIGTERM, saw {ended}");
    place.create("three", json!({})).await?;
    place.served("three").await?;
    let kind = ApiResource::erase::<Lease>(&());
    let leases: Api<DynamicObject> = Api::namespaced_with(fixture.guest.clone(), "kube-system", &kind);
    let name = format!("ccm-{}", place.namespace);
    // No program can read a time so far away; it must not keep anybody from leading.
    let thief = json!({"spec": {"holderIdentity": "thief", "renewTime": "9999-12-31T23:59:59.999999Z"}});
    leases.patch(&name, &PatchParams::default(), &Patch::Merge(thief)).await?;
    until("the lease to expire and be taken back", Deadline::Reaction, async || {
        let lease = leases.get(&name).await?.data;
        Ok(if lease["spec"]["holderIdentity"] == "thief" { Err(lease.to_string()) } else { Ok(()) })
    })
    .await?;
    place.create("four", json!({})).await?;
    place.served("four").await?;
    let ended = third.process.ended();
    ensure!(ended.is_none(), "expected the replica that lost its lease to run on, saw {ended:?}");
    Ok(())
}
