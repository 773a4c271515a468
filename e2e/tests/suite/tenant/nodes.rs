//! Recipes with Nodes and Leases.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use bench::scenario::{Deadline, until};
use futures::{StreamExt, TryStreamExt, stream::iter};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    Recipes,
    guests::{Tenant, is_served},
    is_accepted, recipe,
};
use crate::{
    endpoints::scene::OwnEndpoints,
    provider::mirror_name,
    rows::Row::{Kind, Like},
};

/// Kubelet's taint (`--cloud-provider=external`).
const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";

/// In the order in which they are tried.
pub fn recipes() -> Recipes<Tenant> {
    vec![
        recipe(Kind, "an agent that makes up an address", |tenant| Box::pin(made_up_address(tenant))),
        recipe(Kind, "Nodes that are VMs of others", |tenant| Box::pin(nodes_of_others(tenant))),
        recipe(
            Like("Nodes that are VMs of others: each Node costs the same"),
            "a thousand Nodes",
            |tenant| Box::pin(many_nodes(tenant)),
        ),
        recipe(
            Like("load_balancer::another_replica_takes_over, with a Lease of years; it takes two minutes"),
            "a Lease that is taken again and again",
            |tenant| Box::pin(stolen_lease(tenant)),
        ),
    ]
}

fn node(name: &str, provider_id: Option<&str>, labels: &Value, uuid: &str) -> Result<Node> {
    let info = json!({"architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
        "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "",
        "systemUUID": uuid});
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"providerID": provider_id, "taints": [
            {"key": UNINITIALIZED, "value": "true", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "Hostname", "address": name}], "nodeInfo": info},
    }))?)
}

/// M4: by providerID, by name and by label, VMs of another guest and of nobody; ids that are paths and queries.
async fn nodes_of_others(tenant: &Tenant) -> Result<()> {
    let (place, scene, victim) = (tenant.place(), &tenant.scene, &tenant.victim);
    let nodes: Api<Node> = Api::all(place.guest.clone());
    let (theirs, nobodys) =
        (format!("kubevirt://{}", victim.vm), format!("kubevirt://{}", victim.unlabelled));
    let label = json!({"node.kubernetes.io/instance-id": victim.vm});
    let no_labels = json!({});
    let mut lies = vec![
        node("evil-id", Some(&theirs), &no_labels, "")?,
        node("evil-nobodys", Some(&nobodys), &no_labels, "")?,
        node("evil-label", None, &label, "")?,
        node(&victim.vm, None, &no_labels, "")?,
        node("evil-uuid", Some(&theirs), &no_labels, "11111111-2222-4333-8444-555555555555")?,
    ];
    let odd = [
        "kubevirt://../../secrets/x",
        "kubevirt://another/name",
        "kubevirt://a%2F..%2Fb",
        "kubevirt://a?watch=true",
        "kubevirt://a#b",
        "kubevirt://",
        "kubevirt:///",
        "kubevirt://\n",
        "kubevirt://ü",
        "KUBEVIRT://a",
    ];
    for (number, id) in odd.into_iter().enumerate() {
        lies.push(node(&format!("evil-odd-{number}"), Some(id), &no_labels, "")?);
    }
    lies.push(node("evil-long", Some(&format!("kubevirt://{}", "a".repeat(100_000))), &no_labels, "")?);
    let all: BTreeSet<String> = lies.iter().map(ResourceExt::name_any).collect();
    for lie in &lies {
        is_accepted(nodes.create(&PostParams::default(), lie).await)?;
    }
    for name in ["evil-id", "evil-label", victim.vm.as_str()] {
        tenant.node_was_told(name, "InstanceDoubted").await?;
    }
    // One of the tenant's own VMs, which was asked for last.
    let honest = format!("kubevirt://{}", tenant.machines[0]);
    nodes.create(&PostParams::default(), &node("honest", Some(&honest), &no_labels, "")?).await?;
    let is_initialized = |node: &Node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        !taints.into_iter().flatten().any(|taint| taint.key == UNINITIALIZED)
    };
    until("the tenant's own Node to be initialised", Deadline::Reaction, async || {
        let honest = nodes.get("honest").await?;
        Ok(if is_initialized(&honest) { Ok(()) } else { Err(format!("{:?}", honest.spec)) })
    })
    .await?;

    let service = place.create("web", json!({})).await?;
    let mirror = mirror_name(&service);
    let ours = tenant.machines.clone();
    let found = scene.until(&mirror, "the tenant's own VMs", |found| found.ready_names() == ours).await?;
    for foreign in [&victim.vm, &victim.unlabelled] {
        ensure!(!found.names().contains(&foreign.as_str()), "expected {foreign} to be no backend, saw it");
    }
    for name in all.iter().filter(|name| *name != "evil-nobodys") {
        let Some(node) = nodes.get_opt(name).await? else { continue };
        let shown = serde_json::to_string(&node.status)? + &serde_json::to_string(node.labels())?;
        let told = victim.vm_addresses.iter().find(|address| shown.contains(&format!("\"{address}\"")));
        ensure!(told.is_none(), "expected nothing of the other guest's VM in the Node {name}, saw {shown}");
    }
    place.guests.delete("web", &DeleteParams::default()).await?;
    for name in all.iter().map(String::as_str).chain(["honest"]) {
        is_accepted(nodes.delete(name, &DeleteParams::default()).await)?;
    }
    Ok(())
}

/// H2: root in a VM answers in the place of its guest agent. What is outside the networks of the tenant's workers is no endpoint: a
/// Service that has the VM's true address keeps it, and a new one has the other VM alone.
async fn made_up_address(tenant: &Tenant) -> Result<()> {
    let (place, scene) = (tenant.place(), &tenant.scene);
    let [one, two] = &tenant.machines;
    let service = place.create("agent", json!({})).await?;
    let mirror = mirror_name(&service);
    scene.until(&mirror, "both VMs", |all| all.ready_names() == [one, two]).await?;
    let shown = scene.instance(one).await?["status"]["interfaces"][0].clone();
    let addresses = |first: &Value, all: &Value| {
        json!([{"op": "replace", "path": "/status/interfaces/0/ipAddress", "value": first},
            {"op": "replace", "path": "/status/interfaces/0/ipAddresses", "value": all}])
    };
    let made_up = json!(tenant.victim.address);
    scene.patch_instance(one, &addresses(&made_up, &json!([made_up]))).await?;
    let later = place.create("agent-later", json!({})).await?;
    scene.until(&mirror_name(&later), "the other VM alone", |all| all.names() == [two]).await?;
    let is_true = |all: &OwnEndpoints| all.of(one)["addresses"] == json!([shown["ipAddress"]]);
    scene.until(&mirror, "the true address still", is_true).await?;
    scene.patch_instance(one, &addresses(&shown["ipAddress"], &shown["ipAddresses"])).await?;
    scene.until(&mirror_name(&later), "both VMs again", |all| all.ready_names() == [one, two]).await?;
    for name in ["agent", "agent-later"] {
        place.guests.delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}

/// H4: each Node without a providerID is compared with all VMs.
async fn many_nodes(tenant: &Tenant) -> Result<()> {
    const COUNT: usize = 1000;
    const IN_FLIGHT: usize = 16;
    let nodes: Api<Node> = Api::all(tenant.place().guest.clone());
    iter(0..COUNT)
        .map(|number| {
            let nodes = nodes.clone();
            async move {
                let node = node(&format!("flood-{number}"), None, &json!({"flood": ""}), "")?;
                nodes.create(&PostParams::default(), &node).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<Vec<()>>()
        .await?;
    is_served(tenant.place(), "beside-nodes").await?;
    tenant.place().guests.delete("beside-nodes", &DeleteParams::default()).await?;
    nodes.delete_collection(&DeleteParams::default(), &ListParams::default().labels("flood")).await?;
    Ok(())
}

/// M3: while one replica leads, the tenant takes its Lease for years, some times.
async fn stolen_lease(tenant: &Tenant) -> Result<()> {
    const TIMES: usize = 5;
    const THIEF: &str = "thief";
    let place = tenant.place();
    let name = format!("ccm-{}-tenant", place.namespace);
    let keys = json!({"loadBalancer": {"creationPollTimeout": 5}, "instancesV2": {"enabled": false}});
    let elected = format!("--leader-elect-resource-name={name}");
    let provider = place.configured("elected", tenant.scene.cluster, &keys, &[&elected]).await?;
    let leases: Api<Lease> = Api::namespaced(place.guest.clone(), "kube-system");
    let holder = async || -> Result<String> {
        let lease = leases.get_opt(&name).await?.and_then(|lease| lease.spec);
        Ok(lease.and_then(|spec| spec.holder_identity).unwrap_or_default())
    };
    let is_held = async || {
        let held = holder().await?;
        Ok(if held.is_empty() || held == THIEF { Err(format!("it is held by {held:?}")) } else { Ok(()) })
    };
    until("the replica to lead", Deadline::Reaction, is_held).await?;
    for _ in 0..TIMES {
        let now = k8s_openapi::jiff::Timestamp::now();
        let stolen = json!({"spec": {"holderIdentity": THIEF, "leaseDurationSeconds": i32::MAX,
            "renewTime": format!("{now:.6}"), "leaseTransitions": i32::MAX}});
        leases.patch(&name, &PatchParams::default(), &Patch::Merge(stolen)).await?;
        until("the thief to hold the Lease", Deadline::Reaction, async || {
            let held = holder().await?;
            Ok(if held == THIEF { Ok(()) } else { Err(held) })
        })
        .await?;
    }
    until("the replica to lead again", Deadline::PodStart, is_held).await?;
    is_served(place, "beside-lease").await?;
    place.guests.delete("beside-lease", &DeleteParams::default()).await?;
    provider.stop().await.context("the replica whose Lease was taken")
}
