//! The endpoint controller over two API servers that answer from a table.

use std::sync::Arc;

use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use serving::Tasks;

use crate::{
    access::{GuestCluster, InfraCluster},
    announcer::EventSink,
    endpoints::{context::Context, metrics::EndpointMetrics, session::Session},
    fake_api::FakeApi,
    guest::{nodes::watch::NodeWatch, services::GuestService},
    guest_names::{GuestLabels, infra_name},
    handover::EndpointChoice,
    infra::machines::{feed::Feed, index::MachineIndex, reads::InfraReads},
    load_balancer::{
        index::{Index as ServiceIndex, Writers},
        plan::PlanConfig,
    },
    nodes::{address::AddressPolicy, recognise::Unlabelled},
    queue_metrics::QueueMetrics,
    repairs::Contested,
};

/// UID of the guest's Service.
pub(super) const UID: &str = "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3";
/// The question for a right.
pub(super) const RIGHTS: &str = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
/// The list of infra's slices.
pub(super) const SLICES: &str = "GET /apis/discovery.k8s.io/v1/namespaces/hcp/endpointslices";

/// `loadBalancer.selectorless` alone: another program writes the endpoints.
pub(super) const OTHERS_WRITE: EndpointChoice =
    EndpointChoice { selectorless: true, slices_for_local: false, slices_for_all: false };

/// Both clusters, and what the controllers share.
pub(super) struct World {
    pub(super) guest: FakeApi,
    pub(super) infra: FakeApi,
    pub(super) context: Context,
    writers: Writers,
}

impl World {
    /// A guest with one Service, whose mirror has these changes in its spec and labels.
    pub(super) fn new(choice: EndpointChoice, spec: &Value, labels: &Value) -> Self {
        let (guest, infra, tasks) = (FakeApi::default(), FakeApi::default(), Tasks::default());
        let (guests, mirrors) =
            (GuestCluster::over(guest.client()), InfraCluster::over(infra.client(), "hcp"));
        let identity =
            GuestLabels { cluster: "guest".parse().unwrap(), infra_labels: [].into(), former: [].into() };
        let (services, writers) = ServiceIndex::new(&PlanConfig::of(identity.clone()), "hcp".to_owned());
        let (reads, index) = (InfraReads::new(&mirrors), Arc::new(MachineIndex::default()));
        let context = Context {
            identity,
            choice,
            unlabelled: Unlabelled::default(),
            addresses: AddressPolicy::default(),
            services,
            nodes: NodeWatch::new(&guests, tasks.clone()),
            gate: Arc::default(),
            feed: Feed::new(reads, Arc::clone(&index)),
            index,
            metrics: EndpointMetrics::default(),
            contested: Contested::default(),
            events: EventSink::start(guests.clone(), "test", &tasks),
            queue: QueueMetrics::default().queue("test"),
            guest: guests,
            infra: mirrors,
        };
        let mut world = Self { guest, infra, context, writers };
        world.show(spec, labels);
        world
    }

    fn show(&mut self, spec: &Value, labels: &Value) {
        let web = json!({"metadata": {"name": "web", "namespace": "shop", "uid": UID}, "spec": {"type": "LoadBalancer"}});
        let name = infra_name(UID);
        let mut mirror = json!({"kind": "Service", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "hcp", "uid": "m1", "labels": {"cluster.x-k8s.io/cluster-name": "guest"}},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80, "targetPort": 30080}]}});
        for (place, more) in [("spec", spec), ("metadata/labels", labels)] {
            let place = mirror.pointer_mut(&format!("/{place}")).unwrap();
            for (key, value) in more.as_object().unwrap() {
                place[key] = value.clone();
            }
        }
        self.infra.answer(&format!("GET /api/v1/namespaces/hcp/services/{name}"), 200, mirror.clone());
        let guest: GuestService = serde_json::from_value(web).unwrap();
        for event in [Event::Init, Event::InitApply(guest), Event::InitDone] {
            self.writers.guests.apply_watcher_event(&event);
            self.context.services.guest_event(event);
        }
        for event in [Event::Init, Event::InitApply(serde_json::from_value(mirror).unwrap()), Event::InitDone]
        {
            self.writers.mirrors.apply_watcher_event(&event);
            self.context.services.infra_event(event);
        }
    }

    /// The guest's Service is deleted, and nobody reconciles it before.
    pub(super) fn lose_service(&mut self) {
        for event in [Event::Init, Event::InitDone] {
            self.writers.guests.apply_watcher_event(&event);
            self.context.services.guest_event(event);
        }
    }

    /// The answer to questions for rights from now on.
    pub(super) fn grants(&self, is_allowed: bool) {
        let answer = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
            "spec": {}, "status": {"allowed": is_allowed}});
        self.infra.answer(RIGHTS, 201, answer);
    }

    /// A session with or without the right to delete Endpoints.
    pub(super) fn session(&self, may_convert: bool) -> Arc<Session> {
        Arc::new(Session::new(self.context.clone(), may_convert))
    }

    /// The guest's Service as its reconcile gets it.
    pub(super) fn service(&self) -> Arc<GuestService> {
        self.context.services.guest_of(&infra_name(UID)).unwrap()
    }
}

/// A slice of the mirror. `manager` is the program that writes it.
pub(super) fn slice(name: &str, manager: &str, is_ready: bool) -> Value {
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": name, "namespace": "hcp", "uid": format!("uid-{name}"), "labels": {
            "kubernetes.io/service-name": infra_name(UID), "endpointslice.kubernetes.io/managed-by": manager}},
        "addressType": "IPv4", "ports": [{"port": 30080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"ready": is_ready}}]})
}

/// A list of slices.
pub(super) fn slices(items: &[Value]) -> Value {
    json!({"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {"resourceVersion": "7"},
        "items": items})
}
