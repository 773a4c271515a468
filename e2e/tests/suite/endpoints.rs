//! Endpoints of infra's LoadBalancer Services: written by a real cloud controller manager between the two real API servers, over
//! virtual machines that are real to KubeVirt and run no guest.

pub mod scene;
pub mod two_guests;

use anyhow::{Result, ensure};
use bench::scenario::{Deadline, until};
use k8s_openapi::api::{
    core::v1::{Endpoints, Event, Service},
    rbac::v1::RoleBinding,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use crate::{fixture::Fixture, provider::mirror_name};

use scene::{CLUSTER, OURS, OwnEndpoints, Scene};

tests! {
    Services:
        they_follow_the_guest,
        they_follow_the_vms,
        handed_over_without_a_gap,
        what_is_anothers_stays,
        without_the_right_a_selector_stays,
        without_a_proof_of_the_addresses_a_selector_stays;
}

/// As kubevirt/cloud-provider-kubevirt: we write those of Services with policy Local.
fn reference() -> Value {
    json!({"loadBalancer": {"enableEPSController": true}})
}

/// We write all.
fn managed() -> Value {
    json!({"loadBalancer": {"endpoints": "Managed"}})
}

/// We write none.
fn selected() -> Value {
    json!({"loadBalancer": {}})
}

/// A backend that moves, endpoints without a Node, conditions, the Node's exclusion; a slice that somebody deletes.
async fn they_follow_the_guest(fixture: Fixture) -> Result<()> {
    let scene = Scene::new(&fixture).await?;
    let [one, two] = scene.two_workers().await?;
    let provider = scene.provider("a", &reference()).await?;
    let service = scene
        .place
        .create("web", json!({"externalTrafficPolicy": "Local", "selector": {"app": "web"}}))
        .await?;
    let mirror = mirror_name(&service);
    scene
        .place
        .mirror(&mirror, "a mirror without selector", |it| it["spec"].get("selector").is_none())
        .await?;
    scene.until(&mirror, "none yet", OwnEndpoints::is_empty).await?;

    scene.serves("web", &json!([Scene::endpoint(&one, true)])).await?;
    let ready = scene.until(&mirror, "the first", |all| all.names() == [&one]).await?;
    let instance = scene.instance(&one).await?;
    let slice = ready.slices[0].clone();
    let found = &slice["endpoints"][0];
    ensure!(
        found["addresses"] == json!([instance["status"]["interfaces"][0]["ipAddress"]]),
        "expected the VM's address, saw {found}"
    );
    ensure!(found["nodeName"] == instance["status"]["nodeName"], "expected the VM's infra node, saw {found}");
    ensure!(
        found["conditions"] == json!({"ready": true, "serving": true, "terminating": false}),
        "expected a ready endpoint, saw {found}"
    );
    let service = serde_json::to_value(service)?;
    let port = &slice["ports"][0];
    ensure!(
        port["port"] == service["spec"]["ports"][0]["nodePort"] && port["name"] == "http",
        "expected the guest's node port, saw {port}"
    );
    let owner = &slice["metadata"]["ownerReferences"][0];
    ensure!(
        owner["kind"] == "Service" && owner["name"] == json!(mirror),
        "expected the mirror as owner, saw {owner}"
    );

    // The single backend moves, in its slice and to another slice.
    scene.serves("web", &json!([Scene::endpoint(&two, true)])).await?;
    scene.until(&mirror, "the second", |all| all.names() == [&two]).await?;
    scene.guest_slices.delete("web", &DeleteParams::default()).await?;
    scene.serves("web", &json!([Scene::endpoint(&one, true)])).await?;
    scene.until(&mirror, "the first again", |all| all.names() == [&one]).await?;

    scene.serves("web", &json!([{"addresses": ["192.192.192.192"], "conditions": {}}])).await?;
    let all = scene.until(&mirror, "both", |all| all.names() == [&one, &two]).await?;
    ensure!(all.ready() == 2, "expected endpoints without conditions to be ready, saw {} of 2", all.ready());
    scene.exclude(&one, Some("true")).await?;
    scene.until(&mirror, "without an excluded node", |all| all.names() == [&two]).await?;
    scene.exclude(&one, None).await?;
    scene.until(&mirror, "both again", |all| all.names() == [&one, &two]).await?;

    let ending = json!({"ready": false, "serving": true, "terminating": true});
    let mut endpoint = Scene::endpoint(&two, false);
    endpoint["conditions"] = ending.clone();
    scene.serves("web", &json!([Scene::endpoint(&one, false), endpoint])).await?;
    scene.until(&mirror, "one that ends", |all| all.of(&two)["conditions"] == ending).await?;

    scene.infra_slices.delete(&all.slices[0].name(), &DeleteParams::default()).await?;
    scene.until(&mirror, "the slice again", |all| all.names() == [&one, &two]).await?;
    ensure!(provider.process.ended().is_none(), "expected the process to run, saw it ended");
    scene.end().await
}

/// With policy Cluster every VM of the guest; each follows its VM's addresses, its host, its end and its start.
async fn they_follow_the_vms(fixture: Fixture) -> Result<()> {
    let scene = Scene::new(&fixture).await?;
    let [one, two] = scene.two_workers().await?;
    let _provider = scene.provider("a", &managed()).await?;
    let service = scene.place.create("web", json!({})).await?;
    let mirror = mirror_name(&service);
    scene.until(&mirror, "both VMs", |all| all.names() == [&one, &two] && all.ready() == 2).await?;

    // What virt-handler would write: an address of each family, and the node after a live migration.
    let was = scene.instance(&one).await?;
    let host = if was["status"]["nodeName"] == "infra-node-1" { "infra-node-2" } else { "infra-node-1" };
    let moved = json!([{"op": "replace", "path": "/status/interfaces/0/ipAddress", "value": "10.7.7.7"},
        {"op": "replace", "path": "/status/interfaces/0/ipAddresses", "value": ["10.7.7.7", "fd00::7"]}]);
    scene.patch_instance(&one, &moved).await?;
    let now = scene
        .until(&mirror, "the new address", |all| all.of(&one)["addresses"] == json!(["10.7.7.7"]))
        .await?;
    ensure!(
        now.slices.iter().all(|slice| slice["addressType"] == "IPv4"),
        "expected IPv4 slices only, saw {:?}",
        now.slices
    );
    let moved = json!([{"op": "replace", "path": "/status/nodeName", "value": host}]);
    scene.patch_instance(&one, &moved).await?;
    scene.until(&mirror, "the new host", |all| all.of(&one)["nodeName"] == host).await?;

    scene.run_strategy(&two, "Halted").await?;
    scene.until(&mirror, "without a stopped VM", |all| all.ready_names() == [&one]).await?;
    scene.until(&mirror, "no endpoint of a stopped VM", |all| all.names() == [&one]).await?;
    scene.run_strategy(&two, "Always").await?;
    scene.until(&mirror, "the started VM", |all| all.ready_names() == [&one, &two]).await?;

    // Its Node names this VM, but its label names another guest.
    let label = "/metadata/labels/cluster.x-k8s.io~1cluster-name";
    for (cluster, ready) in [("other", vec![&one]), (CLUSTER, vec![&one, &two])] {
        let relabelled = json!([{"op": "replace", "path": label, "value": cluster}]);
        scene.patch_instance(&two, &relabelled).await?;
        scene.until(&mirror, "VMs of this guest alone", |all| all.ready_names() == ready).await?;
    }

    scene.delete_node(&one).await?;
    scene.until(&mirror, "without a deleted Node", |all| all.names() == [&two]).await?;
    scene.end().await
}

/// A Service is taken over from its selector and given back, by the configuration and by its own policy, and has a ready
/// endpoint at every moment.
async fn handed_over_without_a_gap(fixture: Fixture) -> Result<()> {
    let scene = Scene::new(&fixture).await?;
    let [one, two] = scene.two_workers().await?;
    let provider = scene.provider("a", &selected()).await?;
    let service = scene.place.create("web", json!({})).await?;
    let mirror = mirror_name(&service);
    scene.serves("web", &json!([Scene::endpoint(&one, true)])).await?;
    scene.by_selector(&mirror).await?;
    let gaps = scene.watch_for_gaps(&mirror);
    gaps.until_watching().await?;

    drop(provider);
    let provider = scene.provider("a", &managed()).await?;
    scene.by_us(&mirror).await?;
    let all = scene.endpoints(&mirror).await?;
    ensure!(all.names() == [&one, &two], "expected the VMs that should serve, saw {:?}", all.names());
    let older: Api<Endpoints> = Api::namespaced(fixture.infra.clone(), &scene.place.namespace);
    ensure!(
        older.get_opt(&mirror).await?.is_none(),
        "expected no Endpoints object, which would be copied, saw one"
    );
    drop(provider);
    let provider = scene.provider("a", &selected()).await?;
    scene.by_selector(&mirror).await?;

    drop(provider);
    let _provider = scene.provider("a", &reference()).await?;
    for _ in 0..2 {
        scene.policy("web", "Local").await?;
        scene.by_us(&mirror).await?;
        let all = scene.endpoints(&mirror).await?;
        ensure!(all.names() == [&one], "expected the VMs that should serve, saw {:?}", all.names());
        scene.policy("web", "Cluster").await?;
        scene.by_selector(&mirror).await?;
    }
    gaps.none()?;
    scene.end().await
}

/// Another guest's Service of the same name in the same infra namespace, and slices that others write, stay as they are.
async fn what_is_anothers_stays(fixture: Fixture) -> Result<()> {
    let scene = Scene::new(&fixture).await?;
    let [one, _] = scene.two_workers().await?;
    let labels = json!({"cluster.x-k8s.io/cluster-name": "other", "cluster.x-k8s.io/tenant-service-name": "web",
        "cluster.x-k8s.io/tenant-service-namespace": scene.place.namespace});
    let other = json!({"metadata": {"name": "a-of-another-guest", "labels": labels},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80, "targetPort": 30999}]}});
    scene.place.mirrors.create(&PostParams::default(), &serde_json::from_value(other)?).await?;
    scene.foreign_slice("of-another-guest", "a-of-another-guest", OURS, &labels).await?;
    let _provider = scene.provider("a", &managed()).await?;
    let service = scene.place.create("web", json!({"externalTrafficPolicy": "Local"})).await?;
    let mirror = mirror_name(&service);
    let own = json!({"cluster.x-k8s.io/cluster-name": CLUSTER});
    scene.foreign_slice("by-hand", &mirror, "somebody", &own).await?;
    let before =
        [scene.infra_slices.get("of-another-guest").await?, scene.infra_slices.get("by-hand").await?];
    scene.serves("web", &json!([Scene::endpoint(&one, true)])).await?;
    scene.until(&mirror, "ours", |all| all.names() == [&one]).await?;
    scene.place.guests.delete("web", &DeleteParams::default()).await?;
    until("our slices to be gone", Deadline::Reaction, async || {
        let left = scene.endpoints(&mirror).await?.slices.len();
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} are left")) })
    })
    .await?;
    for slice in before {
        let name = slice.metadata.name.unwrap_or_default();
        let now = scene.infra_slices.get(&name).await?;
        ensure!(
            now.metadata.resource_version == slice.metadata.resource_version,
            "expected {name} unchanged, saw another version"
        );
    }
    scene.end().await
}

/// Without the right to write slices a Service has its selector; it gives it up when the right comes and gets it back when it goes.
async fn without_the_right_a_selector_stays(fixture: Fixture) -> Result<()> {
    let scene = Scene::without_rights(&fixture).await?;
    let [_, two] = scene.two_workers().await?;
    let provider = scene.provider("a", &managed()).await?;
    let service = scene.place.create("web", json!({})).await?;
    let mirror = mirror_name(&service);
    scene.by_selector(&mirror).await?;
    let log = std::fs::read_to_string(provider.process.log())?;
    let said = log.lines().filter(|line| line.contains("kubevirt_eps_controller is switched off")).count();
    ensure!(said == 1, "expected the missing right to be reported once, saw {said} reports");
    ensure!(
        log.contains("create endpointslices in the infra namespace"),
        "expected the missing right in the log, saw {log}"
    );

    scene.place.grant(&fixture, "endpoints").await?;
    scene.by_us(&mirror).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(fixture.infra.clone(), &scene.place.namespace);
    bindings.delete("kccm-endpoints", &DeleteParams::default()).await?;
    // Something to write, so that the missing right shows.
    scene.exclude(&two, Some("true")).await?;
    scene.place.mirror(&mirror, "its selector again", |it| it["spec"].get("selector").is_some()).await?;
    let fresh = scene.place.create("fresh", json!({})).await?;
    scene.place.mirror(&mirror_name(&fresh), "a selector", |it| it["spec"].get("selector").is_some()).await?;
    scene.end().await
}

/// The bench's VMs are bridged, so their guests could report any address. Without the networks of the workers no endpoint is
/// written, an event says so, and what was written before goes when the selector is back.
async fn without_a_proof_of_the_addresses_a_selector_stays(fixture: Fixture) -> Result<()> {
    let scene = Scene::new(&fixture).await?;
    scene.two_workers().await?;
    let provider = scene.provider("a", &managed()).await?;
    let before = scene.place.create("before", json!({})).await?;
    scene.by_us(&mirror_name(&before)).await?;
    drop(provider);

    let mut anywhere = managed();
    anywhere["instancesV2"] = json!({"nodeAddresses": {"within": []}});
    let _provider = scene.provider("a", &anywhere).await?;
    let fresh = scene.place.create("fresh", json!({})).await?;
    for service in [&before, &fresh] {
        scene.by_selector(&mirror_name(service)).await?;
    }
    let events: Api<Event> = Api::namespaced(fixture.guest.clone(), &scene.place.namespace);
    until("an event that says why", Deadline::Reaction, async || {
        let all = events.list(&ListParams::default()).await?;
        let told = |service: &Service| {
            all.iter().any(|event| {
                event.reason.as_deref() == Some("EndpointAddressesUnproved")
                    && event.involved_object.uid == service.metadata.uid
            })
        };
        Ok(if told(&before) && told(&fresh) { Ok(()) } else { Err(format!("{} others", all.items.len())) })
    })
    .await?;
    scene.end().await
}

trait Named {
    fn name(&self) -> String;
}

impl Named for Value {
    fn name(&self) -> String {
        self["metadata"]["name"].as_str().unwrap_or_default().to_owned()
    }
}
