//! Workers, their Nodes in the guest, and which controller writes which slices in infra.

use std::collections::BTreeMap;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Result, ensure};
use bench::cluster::ApiServer;
use bench::scenario::{Deadline, start_labelled_machine, until, virtual_machine_instances, virtual_machines};
use futures::StreamExt;
use k8s_openapi::api::{core::v1::Node, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use crate::fixture::{EMPTY_IMAGE, Fixture, KUBEVIRT};
use crate::provider::{Place, Provider, foreign_slice};

/// The guest cluster's name.
pub const CLUSTER: &str = "guest";
/// The manager of our slices, as in kubevirt/cloud-provider-kubevirt.
pub const OURS: &str = "kubevirt-eps-controller";
/// The manager of the slices of a selector.
const SELECTOR: &str = "endpointslice-controller.k8s.io";
/// Label of the Nodes that these tests register.
const TEST_LABEL: &str = "bench.local/endpoints";

/// A place for a provider, with workers.
pub struct Scene {
    /// Namespaces, Services and credentials.
    pub place: Place,
    /// Infra's slices.
    pub infra_slices: Api<EndpointSlice>,
    /// The guest's slices.
    pub guest_slices: Api<EndpointSlice>,
    nodes: Api<Node>,
    infra: Client,
    /// A client as KubeVirt: virt-api accepts changes of a VMI's status from KubeVirt's own accounts only.
    kubevirt: Client,
    /// The guest cluster's name.
    pub cluster: &'static str,
    word: String,
}

/// The endpoints that we wrote for a Service.
pub struct OwnEndpoints {
    /// The slices.
    pub slices: Vec<Value>,
}

/// Finds moments at which a Service has no ready endpoint.
pub struct ServingGaps {
    found: Arc<Mutex<Vec<String>>>,
    events: Arc<AtomicUsize>,
    _watch: AbortOnDropHandle<()>,
}

impl OwnEndpoints {
    fn all(&self) -> Vec<&Value> {
        self.slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten().collect()
    }

    /// Names of the VMs, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.all().iter().filter_map(|it| it["targetRef"]["name"].as_str()).collect();
        names.sort_unstable();
        names
    }

    /// Names of those that are ready, sorted.
    pub fn ready_names(&self) -> Vec<&str> {
        let ready = self.all().into_iter().filter(|it| it["conditions"]["ready"] == true);
        let mut names: Vec<_> = ready.filter_map(|it| it["targetRef"]["name"].as_str()).collect();
        names.sort_unstable();
        names
    }

    /// How many are ready.
    pub fn ready(&self) -> usize {
        self.ready_names().len()
    }

    /// The endpoint of one VM.
    pub fn of(&self, vm: &str) -> Value {
        self.all().into_iter().find(|it| it["targetRef"]["name"] == vm).cloned().unwrap_or_default()
    }

    /// Whether slices exist and are empty.
    pub fn is_empty(&self) -> bool {
        !self.slices.is_empty() && self.all().is_empty()
    }
}

impl Scene {
    /// With the right to write endpoints.
    pub async fn new(fixture: &Fixture) -> Result<Self> {
        let scene = Self::without_rights(fixture).await?;
        scene.place.grant(fixture, "endpoints").await?;
        Ok(scene)
    }

    /// With the rights of the bases alone.
    pub async fn without_rights(fixture: &Fixture) -> Result<Self> {
        let place = Place::new(fixture).await?;
        let scene = Self::over(fixture, place, CLUSTER, fixture.word.clone()).await?;
        scene.end().await?;
        Ok(scene)
    }

    /// Over the same infra namespace, for another guest cluster, called `cluster`.
    pub async fn in_another_guest(
        &self,
        fixture: &Fixture,
        guest: &ApiServer,
        cluster: &'static str,
    ) -> Result<Self> {
        let place = self.place.in_another_guest(fixture, guest).await?;
        place.grant(fixture, "endpoints").await?;
        Self::over(fixture, place, cluster, format!("{}-{cluster}", self.word)).await
    }

    async fn over(fixture: &Fixture, place: Place, cluster: &'static str, word: String) -> Result<Self> {
        Ok(Self {
            infra_slices: Api::namespaced(fixture.infra.clone(), &place.namespace),
            guest_slices: Api::namespaced(place.guest.clone(), &place.namespace),
            nodes: Api::all(place.guest.clone()),
            infra: fixture.infra.clone(),
            kubevirt: fixture.infra_as(KUBEVIRT).await?,
            cluster,
            word,
            place,
        })
    }

    /// Removes the Nodes of this test, and what another left.
    pub async fn end(&self) -> Result<()> {
        for node in self.nodes.list(&ListParams::default().labels(TEST_LABEL)).await? {
            self.nodes.delete(&node.metadata.name.unwrap_or_default(), &DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// Starts a provider with these keys, which leaves the guest's Nodes alone.
    pub async fn provider(&self, suffix: &str, keys: &Value) -> Result<Provider> {
        let mut keys = keys.clone();
        keys["instancesV2"]["enabled"] = json!(false);
        self.place.configured(suffix, self.cluster, &keys, &["--leader-elect=false"]).await
    }

    /// Two VMs that the infra selector finds, and their Nodes.
    pub async fn two_workers(&self) -> Result<[String; 2]> {
        let names = ["one", "two"].map(|name| format!("{}-{name}", self.word));
        let labels =
            json!({"cluster.x-k8s.io/role": "worker", "cluster.x-k8s.io/cluster-name": self.cluster});
        for name in &names {
            start_labelled_machine(&self.infra, &self.place.namespace, name, EMPTY_IMAGE, &labels).await?;
            let node = json!({"metadata": {"name": node_of(name), "labels": {TEST_LABEL: ""}},
                "spec": {"providerID": format!("kubevirt://{name}")}});
            self.nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        }
        Ok(names)
    }

    /// An endpoint of the guest in a VM.
    pub fn endpoint(vm: &str, ready: bool) -> Value {
        json!({"addresses": ["10.244.0.7"], "nodeName": node_of(vm),
            "conditions": {"ready": ready, "serving": ready, "terminating": false}})
    }

    /// The guest's Service has these endpoints.
    pub async fn serves(&self, service: &str, endpoints: &Value) -> Result<()> {
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
            "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]});
        let params = PatchParams::apply("bench").force();
        self.guest_slices.patch(service, &params, &Patch::Apply(&slice)).await?;
        Ok(())
    }

    /// Creates a slice in infra as another controller does.
    pub async fn foreign_slice(
        &self,
        name: &str,
        service: &str,
        manager: &str,
        labels: &Value,
    ) -> Result<()> {
        let slice = foreign_slice(name, service, manager, labels)?;
        self.infra_slices.create(&PostParams::default(), &slice).await?;
        Ok(())
    }

    async fn slices(&self, mirror: &str) -> Result<Vec<Value>> {
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={mirror}"));
        let slices = self.infra_slices.list(&of_service).await?.items;
        slices.into_iter().map(|slice| Ok(serde_json::to_value(slice)?)).collect()
    }

    /// The slices that are there for a Service, and their versions, whoever wrote them.
    pub async fn versions(&self, mirror: &str) -> Result<BTreeMap<String, String>> {
        let slices = self.slices(mirror).await?;
        let version =
            |slice: &Value| ["name", "resourceVersion"].map(|key| slice["metadata"][key].to_string());
        Ok(slices.iter().map(|slice| version(slice).into()).collect())
    }

    /// What we wrote for a Service.
    pub async fn endpoints(&self, mirror: &str) -> Result<OwnEndpoints> {
        let mut slices = self.slices(mirror).await?;
        slices.retain(|slice| manager(slice) == OURS);
        Ok(OwnEndpoints { slices })
    }

    /// Waits until we wrote what is `wanted`.
    pub async fn until(
        &self,
        mirror: &str,
        what: &str,
        wanted: impl Fn(&OwnEndpoints) -> bool,
    ) -> Result<OwnEndpoints> {
        until(&format!("endpoints: {what}"), Deadline::MachineStart, async || {
            let ours = self.endpoints(mirror).await?;
            Ok(if wanted(&ours) { Ok(ours) } else { Err(format!("{:?}", ours.all())) })
        })
        .await
    }

    /// Waits until only we write the endpoints of a Service, and it has no selector.
    pub async fn by_us(&self, mirror: &str) -> Result<()> {
        self.handed_to(mirror, OURS, false).await
    }

    /// Waits until only its selector gives a Service endpoints.
    pub async fn by_selector(&self, mirror: &str) -> Result<()> {
        self.handed_to(mirror, SELECTOR, true).await
    }

    async fn handed_to(&self, mirror: &str, wanted: &str, selected: bool) -> Result<()> {
        until(&format!("all slices of {mirror} by {wanted}"), Deadline::PodStart, async || {
            let Some(service) = self.place.mirrors.get_opt(mirror).await? else {
                return Ok(Err("no mirror".into()));
            };
            let slices = self.slices(mirror).await?;
            let has_selector = service.spec.unwrap_or_default().selector.is_some_and(|it| !it.is_empty());
            let all_his = slices.iter().all(|slice| manager(slice) == wanted);
            let ready = slices.iter().any(is_ready);
            Ok(if has_selector == selected && all_his && ready {
                Ok(())
            } else {
                let managers: Vec<_> = slices.iter().map(|slice| (manager(slice), is_ready(slice))).collect();
                Err(format!("selector {has_selector}, slices {managers:?}"))
            })
        })
        .await
    }

    /// The VMI of a worker.
    pub async fn instance(&self, vm: &str) -> Result<Value> {
        Ok(self.instances().get(vm).await?.data)
    }

    fn instances(&self) -> Api<DynamicObject> {
        virtual_machine_instances(&self.infra, &self.place.namespace)
    }

    /// Changes the status of a worker's VMI, as virt-handler would.
    pub async fn patch_instance(&self, vm: &str, patch: &Value) -> Result<()> {
        let patch = Patch::Json::<()>(serde_json::from_value(patch.clone())?);
        let instances = virtual_machine_instances(&self.kubevirt, &self.place.namespace);
        instances.patch(vm, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Stops or starts a worker's VM.
    pub async fn run_strategy(&self, vm: &str, strategy: &str) -> Result<()> {
        let machines = virtual_machines(&self.infra, &self.place.namespace);
        patch(&machines, vm, &json!({"spec": {"runStrategy": strategy}})).await
    }

    /// Labels a worker's Node as not for load balancers, or takes the label off.
    pub async fn exclude(&self, vm: &str, value: Option<&str>) -> Result<()> {
        let labels = json!({"node.kubernetes.io/exclude-from-external-load-balancers": value});
        patch(&self.nodes, &node_of(vm), &json!({"metadata": {"labels": labels}})).await
    }

    /// Deletes a worker's Node.
    pub async fn delete_node(&self, vm: &str) -> Result<()> {
        self.nodes.delete(&node_of(vm), &DeleteParams::default()).await?;
        Ok(())
    }

    /// Changes the policy of a guest's Service.
    pub async fn policy(&self, service: &str, policy: &str) -> Result<()> {
        patch(&self.place.guests, service, &json!({"spec": {"externalTrafficPolicy": policy}})).await
    }

    /// Watches all slices of a Service from now on, in the order in which they change.
    pub fn watch_for_gaps(&self, mirror: &str) -> ServingGaps {
        let (found, events) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let config = watcher::Config::default().labels(&format!("kubernetes.io/service-name={mirror}"));
        let mut changes = Box::pin(watcher(self.infra_slices.clone(), config));
        let (told, counted) = (Arc::clone(&found), Arc::clone(&events));
        let watch = tokio::spawn(async move {
            let (mut ready, mut complete) = (BTreeMap::new(), false);
            while let Some(change) = changes.next().await {
                let said = match change {
                    Ok(Event::Init) => {
                        (ready, complete) = (BTreeMap::new(), false);
                        continue;
                    }
                    Ok(Event::InitDone) => {
                        complete = true;
                        format!("at first {ready:?}")
                    }
                    Ok(Event::InitApply(slice) | Event::Apply(slice)) => note(&mut ready, slice, false),
                    Ok(Event::Delete(slice)) => note(&mut ready, slice, true),
                    Err(error) => format!("the watch failed: {error}"),
                };
                counted.fetch_add(usize::from(complete), Ordering::Relaxed);
                if complete && !ready.values().any(|is_ready| *is_ready) {
                    told.lock().unwrap_or_else(PoisonError::into_inner).push(said);
                }
            }
        });
        ServingGaps { found, events, _watch: AbortOnDropHandle::new(watch) }
    }
}

impl ServingGaps {
    /// Waits until the watch has delivered all existing slices.
    pub async fn until_watching(&self) -> Result<()> {
        until("the watch of slices to deliver", Deadline::Reaction, async || {
            Ok(if self.events.load(Ordering::Relaxed) > 0 { Ok(()) } else { Err("no event yet".to_owned()) })
        })
        .await
    }

    /// Checks that there was none.
    pub fn none(self) -> Result<()> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(found.is_empty(), "expected a ready endpoint at every moment, saw none after: {found:?}");
        let events = self.events.load(Ordering::Relaxed);
        ensure!(events > 1, "expected changes of slices, saw {events} events");
        Ok(())
    }
}

fn note(ready: &mut BTreeMap<String, bool>, slice: EndpointSlice, deleted: bool) -> String {
    let name = slice.metadata.name.clone().unwrap_or_default();
    let slice = serde_json::to_value(slice).unwrap_or_default();
    if deleted {
        ready.remove(&name);
    } else {
        ready.insert(name.clone(), is_ready(&slice));
    }
    format!("{name} by {} (deleted: {deleted}): {ready:?}", manager(&slice))
}

fn manager(slice: &Value) -> String {
    let label = &slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"];
    label.as_str().unwrap_or_default().to_owned()
}

fn is_ready(slice: &Value) -> bool {
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints.into_iter().any(|endpoint| endpoint["conditions"]["ready"] == true)
}

/// The name of a VM's Node.
pub fn node_of(vm: &str) -> String {
    format!("node-of-{vm}")
}

/// Patches an object of the guest or of infra.
pub async fn patch<K>(api: &Api<K>, name: &str, body: &Value) -> Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
    Ok(())
}
