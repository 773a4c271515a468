//! Two guests in one infra namespace: one whose objects must stay, and the tenant's.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bench::{
    cluster::start_another_tenant,
    command::goal::Plan,
    scenario::{Deadline, start_labelled_machine, until},
    supervise::Supervisor,
};
use k8s_openapi::api::core::v1::{Event, Service};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Recipes, SERVED_WITHIN, load_balancers, nodes,
    record::Record,
    usage::{Counts, Usage},
};
use crate::{
    endpoints::{
        scene::{CLUSTER, Scene},
        two_guests::Started,
    },
    fixture::{EMPTY_IMAGE, Fixture},
    provider::{ALONE, Place, Provider, mirror_name},
    rows,
};

/// The tenant's guest cluster.
pub const TENANT: &str = "other";
/// What the operator allows the tenant, in `deploy/cloud-controller-manager/infra/base` and more of the same kind.
pub const MOST: Counts = Counts {
    services: 20,
    ports: 200,
    // With a health check's of each.
    node_ports: 220,
    source_ranges: 100,
    // Marks that the program writes itself, of 100 bytes each.
    annotation_bytes: 20 * 1024,
    // A Service has one slice for each family of addresses, and one more while they change.
    slices: 60,
    // The tenant's two VMs in each slice.
    endpoints: 120,
    // Of the VMs and of the load balancer's simulator too.
    events: 1000,
};

/// The guest whose objects must stay.
pub struct Victim {
    /// Its load balancer.
    pub mirror: String,
    /// The address of that.
    pub address: String,
    /// The Service in the guest.
    pub service: Service,
    /// The guest's UID.
    pub mark: String,
    /// One of its VMs.
    pub vm: String,
    /// The addresses of that.
    pub vm_addresses: Vec<String>,
    /// A VM of the namespace that does not say whose it is.
    pub unlabelled: String,
    scene: Scene,
    provider: Provider,
}

/// The tenant's guest.
pub struct Tenant {
    /// Its cluster and its part of the infra namespace.
    pub scene: Scene,
    /// Its own VMs.
    pub machines: [String; 2],
    /// Who must not be reached.
    pub victim: Victim,
}

impl Victim {
    async fn new(fixture: &Fixture) -> Result<Self> {
        let scene = Scene::new(fixture).await?;
        let machines = scene.two_workers().await?;
        let unlabelled = format!("{}-unlabelled", fixture.word);
        let namespace = &scene.place.namespace;
        start_labelled_machine(&fixture.infra, namespace, &unlabelled, EMPTY_IMAGE, &json!({})).await?;
        let provider = scene.provider("victim", &json!({"loadBalancer": {"endpoints": "Managed"}})).await?;
        let service = scene.place.create("web", json!({"selector": {"app": "web"}})).await?;
        let address = scene.place.served("web").await?;
        let mirror = mirror_name(&service);
        scene.until(&mirror, "its own VMs", |all| all.ready_names() == machines).await?;
        let now = scene.place.mirrors.get(&mirror).await?;
        let mark = now.annotations().get("cluster.x-k8s.io/tenant-cluster-uid").cloned();
        let [vm, _] = machines;
        let interfaces = scene.instance(&vm).await?["status"]["interfaces"][0].clone();
        let vm_addresses = interfaces["ipAddresses"].as_array().into_iter().flatten();
        let vm_addresses: Vec<String> =
            vm_addresses.filter_map(|address| address.as_str().map(str::to_owned)).collect();
        ensure!(!vm_addresses.is_empty(), "expected the VM's addresses, saw {interfaces}");
        let mark = mark.context("expected a mark of the guest on its mirror, saw none")?;
        Ok(Self { mirror, address, service, mark, vm, vm_addresses, unlabelled, scene, provider })
    }
}

impl Tenant {
    /// The tenant's objects.
    pub fn place(&self) -> &Place {
        &self.scene.place
    }

    /// The tenant's Services as JSON: what a recipe wrote may be of no type.
    fn services(&self) -> Api<DynamicObject> {
        let (guest, kind) = (self.place().guest.clone(), ApiResource::erase::<Service>(&()));
        Api::namespaced_with(guest, &self.place().namespace, &kind)
    }

    /// Deletes all Services of the tenant, and waits until nothing of them is left in infra.
    pub async fn clear(&self) -> Result<()> {
        let (services, all) = (self.services(), ListParams::default());
        for service in services.list(&all).await? {
            services.delete(&service.name_any(), &DeleteParams::default()).await?;
        }
        let own =
            ListParams::default().labels(&format!("cluster.x-k8s.io/cluster-name={}", self.scene.cluster));
        until("nothing of the tenant's Services to be left", Deadline::PodStart, async || {
            let guests: Vec<_> = services.list(&all).await?.iter().map(ResourceExt::name_any).collect();
            let mirrors = self.place().mirrors.list_metadata(&own).await?;
            let mirrors: Vec<_> = mirrors.iter().map(ResourceExt::name_any).collect();
            Ok(if guests.is_empty() && mirrors.is_empty() {
                Ok(())
            } else {
                Err(format!("Services {guests:?}, mirrors {mirrors:?}"))
            })
        })
        .await
    }

    /// Changes the status of a Service of the tenant.
    pub async fn patch_status(&self, name: &str, status: Value) -> kube::Result<DynamicObject> {
        let patch = Patch::Merge(json!({ "status": status }));
        self.services().patch_status(name, &PatchParams::default(), &patch).await
    }

    /// Waits until a Service shows an address, whatever else its status has.
    pub async fn has_address(&self, name: &str) -> Result<()> {
        until(&format!("an address of {name}"), Deadline::Reaction, async || {
            let status = self.services().get(name).await?.data["status"].clone();
            let has_address = status["loadBalancer"]["ingress"][0]["ip"].is_string();
            Ok(if has_address { Ok(()) } else { Err(status["loadBalancer"].to_string()) })
        })
        .await
    }

    /// Waits until an event of this reason is about the object `name`, which has no namespace.
    pub async fn node_was_told(&self, name: &str, reason: &str) -> Result<()> {
        let events: Api<Event> = Api::namespaced(self.place().guest.clone(), "default");
        let about = ListParams::default().fields(&format!("involvedObject.name={name}"));
        until(&format!("an event {reason} about {name}"), Deadline::Reaction, async || {
            let all = events.list(&about).await?.items;
            let reasons: Vec<_> = all.into_iter().filter_map(|event| event.reason).collect();
            Ok(if reasons.iter().any(|found| found == reason) { Ok(()) } else { Err(format!("{reasons:?}")) })
        })
        .await
    }

    async fn provider(&self, suffix: &str) -> Result<Provider> {
        let policy = json!({"annotations": {"allow": []}, "externalIPs": [], "loadBalancerIPs": [],
            "maxLoadBalancers": MOST.services, "maxPorts": MOST.ports, "maxSourceRanges": MOST.source_ranges});
        let keys = json!({
            "loadBalancer": {"endpoints": "Managed", "creationPollTimeout": 5, "sweepInterval": 1, "policy": policy},
            "instancesV2": {"enabled": true, "zoneAndRegionEnabled": false},
        });
        self.place().configured(suffix, self.scene.cluster, &keys, &[ALONE]).await
    }
}

/// A new Service of a guest gets its address within the bound.
pub async fn is_served(place: &Place, name: &str) -> Result<()> {
    let began = Instant::now();
    place.create(name, json!({})).await?;
    place.served(name).await?;
    let took = began.elapsed();
    ensure!(took <= SERVED_WITHIN, "expected {name} to be served within {SERVED_WITHIN:?}, saw {took:?}");
    Ok(())
}

fn recipes() -> Recipes<Tenant> {
    load_balancers::recipes().into_iter().chain(nodes::recipes()).collect()
}

/// Everything that a guest's administrator can write for the cloud controller manager to read.
pub async fn what_a_guest_writes_reaches_nobody_else(fixture: Fixture) -> Result<()> {
    let started = Started(Supervisor::new(fixture.run.join("logs")));
    let programs = Plan::read(&fixture.run)?.artifacts.programs;
    let server = start_another_tenant(&started.0, &programs).await?;
    let victim = Victim::new(&fixture).await?;
    let scene = victim.scene.in_another_guest(&fixture, &server, TENANT).await?;
    let machines = scene.two_workers().await?;
    let tenant = Tenant { scene, machines, victim };
    ensure!(tenant.scene.cluster != CLUSTER, "expected two guests, saw one");

    let namespace = &tenant.place().namespace;
    let record = Record::of_load_balancers(&fixture.infra, namespace).await?;
    let usage = Usage::of(&fixture.infra, namespace, tenant.scene.cluster);
    let provider = tenant.provider("tenant").await?;
    is_served(tenant.place(), "first").await?;
    tenant.clear().await?;
    for recipe in rows::chosen(recipes()) {
        println!("the tenant tries: {}", recipe.name);
        (recipe.run)(&tenant).await.with_context(|| recipe.name)?;
        record.ensure_unchanged().await.with_context(|| recipe.name)?;
        let ended = provider.process.ended();
        ensure!(ended.is_none(), "{}: expected the provider to run, saw {ended:?}", recipe.name);
    }
    is_served(tenant.place(), "after").await?;
    is_served(&tenant.victim.scene.place, "after").await?;
    record.ensure_unchanged().await?;
    // What the recipes left in the guest is there when a program starts.
    provider.stop().await?;
    let _again = tenant.provider("again").await?;
    is_served(tenant.place(), "again").await?;
    record.ensure_unchanged().await?;
    let most = usage.ensure_within(&MOST)?;
    println!("the most that the tenant had of infra: {most:?}");
    tenant.clear().await?;
    let alive = tenant.victim.provider.process.ended();
    ensure!(alive.is_none(), "expected the other guest's provider to run, saw {alive:?}");
    tenant.victim.scene.end().await
}
