//! Nodes of the guest and the VMs that they are: a cloud controller manager of the test's own, with the rights that installers give,
//! between both real API servers and beside the real virt-controller.
//!
//! The Nodes are objects that this test registers as kubelet would; their VMs are real to KubeVirt and run no guest.

mod controllers;
mod guest_node;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bench::scenario::{
    CLUSTER_NAME, Deadline, HCP_NAMESPACE, until, until_gone, virtual_machine_instance_migrations,
    virtual_machine_instances, virtual_machines,
};
use futures::{StreamExt, TryStreamExt, stream::iter};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, KUBEVIRT},
    provider::{ALONE, Place},
};
use controllers::{Rights, start};
use guest_node::{GuestNode, NODE_IP, UNINITIALIZED, has_taint};

tests! {
    Services:
        a_node_is_recognised_and_initialised,
        a_node_shows_what_its_vm_is,
        a_node_that_load_balancers_leave_out_is_told,
        a_node_follows_its_vm,
        a_node_follows_a_live_migration,
        left_overs_go_and_foreign_nodes_stay;
    Services, long:
        two_hundred_nodes_follow_their_vms;
}

/// Taint of a Node whose VM is stopped.
const SHUTDOWN: &str = "node.cloudprovider.kubernetes.io/shutdown";
/// A zone that the test gives to infra's nodes.
const ZONE: &str = "bench-zone";
/// The well-known label of a zone, and its older name.
const ZONE_LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
/// The well-known label of a VM's type, and its older name.
const TYPE_LABELS: [&str; 2] = ["node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type"];
/// A system UUID that no VM has.
const NOBODYS_UUID: &str = "33333333-0000-4000-8000-000000000003";
/// Under which the controllers' writes are kept.
const FIELD_MANAGER: &str = "kubevirt-cloud-controller-manager";

/// How many Nodes at once.
const CROWD: usize = 200;
/// Requests of this test on their way at a time.
const IN_FLIGHT: usize = 16;

/// A Node is recognised, initialised and labelled with each of the sets of rights.
async fn a_node_is_recognised_and_initialised(fixture: Fixture) -> Result<()> {
    let zone = [(ZONE_LABELS[0], ZONE)];
    label_infra_nodes(&fixture, &json!({ zone[0].0: zone[0].1 })).await?;
    let place = Place::over_workers(&fixture).await?;
    for rights in [Rights::Reference, Rights::HyperShift, Rights::NoWatch] {
        let vm = format!("{}-{}", fixture.word, rights.word());
        fixture.empty_machine(&vm).await?;
        let controllers = start(&fixture, &place, rights).await?;
        let uuid = firmware_uuid(&fixture, &vm).await?;
        // Its name is not the VM's: only the system UUID identifies the VM.
        let guest = GuestNode::register(&fixture, &format!("node-of-{vm}"), "", Some(&uuid)).await?;
        let node = guest.until("initialised", |node| !has_taint(node, UNINITIALIZED)).await?;
        let spec = node.spec.clone().unwrap_or_default();
        ensure!(
            spec.provider_id == Some(format!("kubevirt://{vm}")),
            "expected the providerID of {vm}, saw {:?}",
            spec.provider_id
        );
        let addresses = node.status.as_ref().and_then(|status| status.addresses.clone()).unwrap_or_default();
        let shown: Vec<_> = addresses.iter().map(|a| (a.type_.as_str(), a.address.as_str())).collect();
        ensure!(
            shown == [("InternalIP", NODE_IP), ("Hostname", guest.name.as_str())],
            "expected the VM's address and the host name, saw {shown:?}"
        );
        let labels = node.metadata.labels.unwrap_or_default();
        let zones = ZONE_LABELS.map(|label| labels.get(label).map(String::as_str));
        let expected = matches!(rights, Rights::Reference).then_some(ZONE);
        ensure!(
            zones == [expected; 2],
            "expected the zone {expected:?} with the rights {}, saw {zones:?}",
            rights.word()
        );
        guest.until_event("Synced").await?;
        controllers.stop().await?;
        guest.delete().await?;
        fixture.delete_machine(&vm).await?;
    }
    label_infra_nodes(&fixture, &json!({ zone[0].0: null })).await
}

/// A VM restarts: its Node stays as it is. It is stopped: the Node is tainted and stays. It starts: the taint goes. It is
/// deleted: so is the Node.
async fn a_node_follows_its_vm(fixture: Fixture) -> Result<()> {
    let vm = fixture.word.clone();
    fixture.empty_machine(&vm).await?;
    let place = Place::over_workers(&fixture).await?;
    let controllers = start(&fixture, &place, Rights::HyperShift).await?;
    let guest = GuestNode::register(&fixture, &vm, "", None).await?;
    let uid = guest.until("initialised", |node| !has_taint(node, UNINITIALIZED)).await?.metadata.uid;
    let instances = virtual_machine_instances(&fixture.infra, HCP_NAMESPACE);

    let before = instances.get(&vm).await?.metadata.uid;
    guest.ready("False").await?;
    instances.delete(&vm, &DeleteParams::default()).await?;
    until("the restarted instance to run", Deadline::MachineStart, async || {
        let now = instances.get_opt(&vm).await?;
        let is_new = now.as_ref().is_some_and(|vmi| vmi.metadata.uid != before);
        let phase = now.map(|vmi| vmi.data["status"]["phase"].to_string()).unwrap_or_default();
        Ok(if is_new && phase.contains("Running") { Ok(()) } else { Err(phase) })
    })
    .await?;
    let node = guest.get().await?.context("expected the Node to stay after a restart, saw none")?;
    ensure!(
        node.metadata.uid == uid && !has_taint(&node, SHUTDOWN),
        "expected the Node unchanged after a restart, saw another uid or the shutdown taint"
    );

    run_strategy(&fixture, &vm, "Halted").await?;
    until_gone(&instances, &vm, "instance", Deadline::MachineStart).await?;
    let node = guest.until("tainted as shut down", |node| has_taint(node, SHUTDOWN)).await?;
    ensure!(node.metadata.uid == uid, "expected the same Node, saw another uid");

    run_strategy(&fixture, &vm, "Always").await?;
    guest.ready("True").await?;
    guest.until("without the shutdown taint", |node| !has_taint(node, SHUTDOWN)).await?;

    fixture.delete_machine(&vm).await?;
    guest.ready("False").await?;
    until_gone(&guest.nodes, &guest.name, "Node", Deadline::Reaction).await?;
    guest.until_event("DeletingNode").await?;
    controllers.stop().await
}

/// A VM live-migrates to an infra node in another zone: its Node stays, and its zone is the new one.
async fn a_node_follows_a_live_migration(fixture: Fixture) -> Result<()> {
    let vm = fixture.word.clone();
    let infra_nodes: Api<Node> = Api::all(fixture.infra.clone());
    let zone_of = |node: &str| format!("zone-of-{node}");
    for node in infra_nodes.list(&ListParams::default()).await?.items {
        let name = node.metadata.name.unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": {"labels": {ZONE_LABELS[0]: zone_of(&name)}}}));
        infra_nodes.patch(&name, &PatchParams::default(), &patch).await?;
    }
    fixture.empty_machine(&vm).await?;
    let instances = virtual_machine_instances(&fixture.infra, HCP_NAMESPACE);
    let host = |vmi: &DynamicObject| vmi.data["status"]["nodeName"].as_str().unwrap_or_default().to_owned();
    let source = host(&instances.get(&vm).await?);
    let place = Place::over_workers(&fixture).await?;
    let controllers = start(&fixture, &place, Rights::Reference).await?;
    let guest = GuestNode::register(&fixture, &vm, "", None).await?;
    let is_in = |node: &Node, zone: &str| {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        ZONE_LABELS.iter().all(|label| labels.get(*label).map(String::as_str) == Some(zone))
    };
    let uid = guest.until("in its zone", |node| is_in(node, &zone_of(&source))).await?.metadata.uid;

    let migrations = virtual_machine_instance_migrations(&fixture.infra, HCP_NAMESPACE);
    let wanted = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
        "metadata": {"name": vm}, "spec": {"vmiName": vm}});
    migrations.create(&PostParams::default(), &serde_json::from_value(wanted)?).await?;
    until("the migration to end", Deadline::PodStart, async || {
        let phase = migrations.get(&vm).await?.data["status"]["phase"].to_string();
        Ok(if phase.contains("Succeeded") { Ok(()) } else { Err(phase) })
    })
    .await?;
    let target = host(&instances.get(&vm).await?);
    ensure!(target != source, "expected the VM on another infra node, saw it on {source}");
    let node = guest.until("in its new zone", |node| is_in(node, &zone_of(&target))).await?;
    ensure!(
        node.metadata.uid == uid && !has_taint(&node, SHUTDOWN),
        "expected the Node unchanged after a migration, saw another uid or the shutdown taint"
    );

    controllers.stop().await?;
    guest.delete().await?;
    fixture.delete_machine(&vm).await?;
    label_infra_nodes(&fixture, &json!({ ZONE_LABELS[0]: null })).await
}

/// A Node with nothing but its VM's host name is recognised; it has the type that its VM has from the whole cluster,
/// and of the VM's addresses, whatever its interface is called, one of each family and none that is link-local.
async fn a_node_shows_what_its_vm_is(fixture: Fixture) -> Result<()> {
    let (vm, host) = (fixture.word.clone(), format!("host-of-{}", fixture.word));
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(
        "instancetype.kubevirt.io",
        "v1beta1",
        "VirtualMachineClusterInstancetype",
    ));
    let types: Api<DynamicObject> = Api::all_with(fixture.infra.clone(), &kind);
    let of_type = DynamicObject::new(&vm, &kind)
        .data(json!({"spec": {"cpu": {"guest": 1}, "memory": {"guest": "64Mi"}}}));
    types.create(&PostParams::default(), &of_type).await?;
    let wanted = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": vm},
        "spec": {"runStrategy": "Always", "instancetype": {"name": vm, "kind": kind.kind}, "template": {"spec": {
            "hostname": host,
            "domain": {"devices": {"interfaces": [{"name": "primary", "bridge": {}}]}},
            "networks": [{"name": "primary", "pod": {}}]}}}});
    let machines = virtual_machines(&fixture.infra, HCP_NAMESPACE);
    machines.create(&PostParams::default(), &serde_json::from_value(wanted)?).await?;
    let instances = virtual_machine_instances(&fixture.infra, HCP_NAMESPACE);
    until("the instance to run", Deadline::MachineStart, async || {
        let phase = instances.get_opt(&vm).await?.map(|vmi| vmi.data["status"]["phase"].to_string());
        Ok(if phase.as_deref() == Some("\"Running\"") { Ok(()) } else { Err(format!("{phase:?}")) })
    })
    .await?;
    let place = Place::over_workers(&fixture).await?;
    let controllers = start(&fixture, &place, Rights::HyperShift).await?;
    let guest = GuestNode::register(&fixture, &host, "", None).await?;
    let node = guest.until("initialised", |node| !has_taint(node, UNINITIALIZED)).await?;
    ensure!(node.spec.context("a Node without spec")?.provider_id == Some(format!("kubevirt://{vm}")));
    let labels = node.metadata.labels.unwrap_or_default();
    let types_shown = TYPE_LABELS.map(|label| labels.get(label));
    ensure!(types_shown == [Some(&vm); 2], "expected {vm} as both types, saw {types_shown:?}");

    let shown = json!([{"op": "replace", "path": "/status/interfaces/0/ipAddress", "value": "fe80::9"},
        {"op": "add", "path": "/status/interfaces/0/ipAddresses",
            "value": ["fe80::9", "169.254.0.9", "192.0.2.8", "192.0.2.9", "fd00::9", "fd00::a"]}]);
    let kubevirt = virtual_machine_instances(&fixture.infra_as(KUBEVIRT).await?, HCP_NAMESPACE);
    kubevirt.patch(&vm, &PatchParams::default(), &Patch::Json::<()>(serde_json::from_value(shown)?)).await?;
    // A kubelet that was given one address has no other.
    guest.patch(&json!({"metadata": {"annotations": null}})).await?;
    let internal = |node: &Node| -> Vec<String> {
        let all = node.status.as_ref().and_then(|status| status.addresses.clone()).unwrap_or_default();
        all.into_iter().filter(|it| it.type_ == "InternalIP").map(|it| it.address).collect()
    };
    guest.until("with one address of each family", |node| internal(node) == ["192.0.2.8", "fd00::9"]).await?;
    controllers.stop().await?;
    guest.delete().await?;
    fixture.delete_machine(&vm).await?;
    types.delete(&vm, &DeleteParams::default()).await?;
    Ok(())
}

/// A Node's name is that of a VM, but its system UUID is another: load balancers whose endpoints we write leave it out, and an event
/// says why.
async fn a_node_that_load_balancers_leave_out_is_told(fixture: Fixture) -> Result<()> {
    let vm = fixture.word.clone();
    fixture.empty_machine(&vm).await?;
    let place = Place::over_workers(&fixture).await?;
    place.grant(&fixture, "endpoints").await?;
    let keys = json!({"loadBalancer": {"endpoints": "Managed"}});
    let controllers = place.configured("a", CLUSTER_NAME, &keys, &[ALONE]).await?;
    let claim = format!("kubevirt://{vm}");
    let guest = GuestNode::register(&fixture, &vm, &claim, Some(NOBODYS_UUID)).await?;
    guest.until("initialised nevertheless", |node| !has_taint(node, UNINITIALIZED)).await?;
    guest.until_event("InstanceDoubted").await?;
    controllers.stop().await?;
    guest.delete().await?;
    fixture.delete_machine(&vm).await
}

/// Two hundred Nodes of stopped VMs: each is tainted once. Half of the VMs go: so do their Nodes, and no other.
async fn two_hundred_nodes_follow_their_vms(fixture: Fixture) -> Result<()> {
    let names: Vec<String> = (0..CROWD).map(|number| format!("{}-{number}", fixture.word)).collect();
    let machines = virtual_machines(&fixture.infra, HCP_NAMESPACE);
    let register = |name: &String| {
        let (name, fixture, machines) = (name.clone(), &fixture, machines.clone());
        async move {
            let halted = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
                "metadata": {"name": name}, "spec": {"runStrategy": "Halted", "template": {"spec": {
                    "domain": {"devices": {}, "memory": {"guest": "64Mi"}}}}}});
            machines.create(&PostParams::default(), &serde_json::from_value(halted)?).await?;
            let guest = GuestNode::register(fixture, &name, &format!("kubevirt://{name}"), None).await?;
            guest.patch(&json!({"spec": {"taints": null}})).await?;
            anyhow::Ok(guest)
        }
    };
    let guests: Vec<GuestNode> = iter(&names).map(register).buffered(IN_FLIGHT).try_collect().await?;
    let place = Place::over_workers(&fixture).await?;
    let controllers = start(&fixture, &place, Rights::HyperShift).await?;
    let began = Instant::now();
    let nodes: Api<Node> = Api::all(fixture.guest.clone());
    let ours = async || -> Result<Vec<Node>> {
        let all = nodes.list(&ListParams::default()).await?.items;
        Ok(all.into_iter().filter(|node| node.name_any().starts_with(&fixture.word)).collect())
    };
    until("all Nodes to have the shutdown taint", Deadline::PodStart, async || {
        let late = ours().await?.iter().filter(|node| !has_taint(node, SHUTDOWN)).count();
        Ok(if late == 0 { Ok(()) } else { Err(format!("{late} have none")) })
    })
    .await?;
    let tainted = began.elapsed();
    let (gone, kept) = names.split_at(CROWD / 2);
    for name in gone {
        machines.delete(name, &DeleteParams::default()).await?;
    }
    let began = Instant::now();
    until("the Nodes whose VMs are gone to be deleted", Deadline::PodStart, async || {
        let left = ours().await?.len();
        Ok(if left <= kept.len() { Ok(()) } else { Err(format!("{left} are there")) })
    })
    .await?;
    let value = format!(
        "tainted in {:.1} s, deleted in {:.1} s",
        tainted.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    let beside = "all looked at each 5 s";
    fixture.figures.add(
        &format!("{CROWD} Nodes of stopped VMs, then half of the VMs deleted"),
        value,
        beside,
    )?;
    let mut left: Vec<String> = ours().await?.iter().map(ResourceExt::name_any).collect();
    left.sort();
    let mut kept = kept.to_vec();
    kept.sort();
    ensure!(left == kept, "expected the Nodes whose VMs exist, saw {left:?}");
    controllers.stop().await?;
    for guest in &guests[CROWD / 2..] {
        guest.delete().await?;
        machines.delete(&guest.name, &DeleteParams::default()).await?;
    }
    Ok(())
}

/// A Node that never was initialised and whose VM is gone is removed; one of another provider in the very same state, and one
/// that nobody gave to a cloud provider, are not touched.
async fn left_overs_go_and_foreign_nodes_stay(fixture: Fixture) -> Result<()> {
    let name = |what: &str| format!("{}-{what}", fixture.word);
    let foreign =
        GuestNode::register(&fixture, &name("foreign"), "aws:///eu/i-1", Some(NOBODYS_UUID)).await?;
    let own = GuestNode::register(&fixture, &name("own"), "", Some(NOBODYS_UUID)).await?;
    own.patch(&json!({"spec": {"taints": null}})).await?;
    let left_over = GuestNode::register(&fixture, &name("left-over"), "", Some(NOBODYS_UUID)).await?;
    for node in [&foreign, &own, &left_over] {
        node.ready("Unknown").await?;
    }
    let place = Place::over_workers(&fixture).await?;
    let controllers = start(&fixture, &place, Rights::HyperShift).await?;
    until_gone(&left_over.nodes, &left_over.name, "left-over Node", Deadline::Reaction).await?;
    let gone = GuestNode::register(&fixture, &name("gone"), "kubevirt://gone.vm", None).await?;
    gone.ready("False").await?;
    until_gone(&gone.nodes, &gone.name, "Node of a gone VM", Deadline::Reaction).await?;

    for node in [&foreign, &own] {
        let object = node
            .get()
            .await?
            .with_context(|| format!("expected the Node {} to stay, saw none", node.name))?;
        let managers = object.metadata.managed_fields.clone().unwrap_or_default();
        let ours = managers.iter().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
        ensure!(
            !ours && !has_taint(&object, SHUTDOWN),
            "expected the Node {} unchanged, saw it written",
            node.name
        );
    }
    ensure!(
        has_taint(&foreign.get().await?.context("gone")?, UNINITIALIZED),
        "expected the Node of another provider to stay uninitialised, saw it initialised"
    );
    controllers.stop().await?;
    foreign.delete().await?;
    own.delete().await
}

/// The system UUID that KubeVirt gave the VM.
async fn firmware_uuid(fixture: &Fixture, vm: &str) -> Result<String> {
    let vmi = virtual_machine_instances(&fixture.infra, HCP_NAMESPACE).get(vm).await?;
    let uuid = vmi.data["spec"]["domain"]["firmware"]["uuid"].as_str();
    uuid.map(str::to_owned).with_context(|| format!("instance {vm} has no firmware UUID"))
}

async fn run_strategy(fixture: &Fixture, vm: &str, strategy: &str) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"runStrategy": strategy}}));
    let machines = virtual_machines(&fixture.infra, HCP_NAMESPACE);
    machines.patch(vm, &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn label_infra_nodes(fixture: &Fixture, labels: &Value) -> Result<()> {
    let nodes: Api<Node> = Api::all(fixture.infra.clone());
    for node in nodes.list(&ListParams::default()).await?.items {
        let name = node.metadata.name.unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        nodes.patch(&name, &PatchParams::default(), &patch).await?;
    }
    Ok(())
}
