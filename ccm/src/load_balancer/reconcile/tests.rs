//! Reconciles of one Service over both clusters. What counts is which calls they make.

use std::sync::{Mutex, MutexGuard};

use super::*;
use crate::{
    access::{GuestCluster, InfraCluster},
    announcer::EventSink,
    backoff::Backoff,
    change_pace::ChangePace,
    guest::{nodes::watch::NodeWatch, services::FINALIZER},
    guest_names::GuestLabels,
    load_balancer::{
        calls::Services,
        controller::PACE,
        index::{Index, Writers},
        metrics::ServiceMetrics,
        nodes::Nodes,
        owner_lookup::{GuestCluster as KnownGuest, Owner},
        plan::PlanConfig,
    },
    repairs::{Contested, Repairs},
};
use http::Method;
use kube::{Client, client::Body, runtime::watcher::Event};
use serving::Tasks;

const UID: &str = "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3";
const GUESTS: &str = "/api/v1/namespaces/shop/services";
const MIRRORS: &str = "/api/v1/namespaces/hcp/services";

/// Both clusters, as far as one Service needs them.
#[derive(Default)]
struct World {
    guest: Value,
    mirror: Option<Value>,
    version: u64,
    /// Whether a finalizer of infra holds what is deleted.
    holds: bool,
    /// Whether the guest's API stores no `ipMode`, as before Kubernetes 1.29.
    drops_ip_mode: bool,
    /// Whether the user makes the Service a load balancer again when its finalizer goes.
    is_wanted_after_patch: bool,
    /// A policy of infra: this value at this place of the spec, whatever is written.
    policy: Option<(&'static str, Value)>,
    /// The address families that infra has; empty = all.
    families: Vec<&'static str>,
    /// The calls about Services, with the cluster of each.
    calls: Vec<String>,
    /// The messages of the events.
    events: Vec<String>,
}

impl World {
    fn stamp(&mut self) -> Value {
        self.version += 1;
        json!(self.version.to_string())
    }

    fn has_families(&self, mirror: &Value) -> bool {
        let asked = mirror["spec"]["ipFamilies"].as_array();
        let has = |family: &Value| family.as_str().is_some_and(|family| self.families.contains(&family));
        self.families.is_empty() || asked.is_none_or(|asked| asked.iter().all(has))
    }

    fn admit(&self, mirror: &mut Value) {
        if let Some((field, value)) = &self.policy {
            mirror["spec"][*field] = value.clone();
        }
    }

    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        if path.ends_with("/events") {
            self.events.extend(body["message"].as_str().map(str::to_owned));
        }
        if !path.starts_with(GUESTS) && !path.starts_with(MIRRORS) {
            return status(403, "Forbidden", "");
        }
        let cluster = if path.starts_with(GUESTS) { "guest" } else { "infra" };
        self.calls.push(format!("{method} {cluster}"));
        match (method.as_str(), cluster, &self.mirror) {
            ("GET", "guest", _) if self.guest.is_null() => status(404, "NotFound", "web"),
            ("GET", "guest", _) => (200, self.guest.clone()),
            ("PATCH", "guest", _) => (200, self.patched(body)),
            ("GET", _, Some(mirror)) => (200, mirror.clone()),
            ("POST", _, Some(_)) => status(409, "AlreadyExists", &infra_name(UID)),
            ("POST", _, None) if !self.has_families(body) => {
                let (code, mut refused) = status(422, "Invalid", &infra_name(UID));
                refused["details"]["causes"] = json!([{ "reason": "FieldValueInvalid", "message": "not configured",
                    "field": "spec.ipFamilies[0]" }]);
                (code, refused)
            }
            ("POST", _, None) => {
                let mut mirror = body.clone();
                mirror["metadata"]["uid"] = json!("m1");
                if let (None, Some(own)) = (mirror["spec"].get("ipFamilies"), self.families.first()) {
                    mirror["spec"]["ipFamilies"] = json!([own]);
                }
                self.admit(&mut mirror);
                mirror["metadata"]["resourceVersion"] = self.stamp();
                self.mirror = Some(mirror.clone());
                (201, mirror)
            }
            ("PUT", _, Some(mirror))
                if mirror["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] =>
            {
                status(409, "Conflict", &infra_name(UID))
            }
            ("PUT", _, _) => {
                let mut mirror = body.clone();
                self.admit(&mut mirror);
                mirror["metadata"]["resourceVersion"] = self.stamp();
                self.mirror = Some(mirror.clone());
                (200, mirror)
            }
            ("DELETE", _, Some(_)) if self.holds => {
                let mirror = self.mirror.as_mut().unwrap();
                mirror["metadata"]["finalizers"] = json!(["infra/holds"]);
                mirror["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
                (200, mirror.clone())
            }
            ("DELETE", _, Some(_)) => (200, self.mirror.take().unwrap()),
            _ => status(404, "NotFound", &infra_name(UID)),
        }
    }

    /// A strategic merge patch, as far as the CCM uses it.
    fn patched(&mut self, patch: &Value) -> Value {
        assert_eq!(patch["metadata"]["uid"], UID);
        if patch["metadata"].get("finalizers").is_some() {
            self.guest["metadata"]["finalizers"] = json!([FINALIZER]);
        }
        if patch["metadata"].get("$deleteFromPrimitiveList/finalizers").is_some() {
            self.guest["metadata"]["finalizers"] = json!([]);
            if self.is_wanted_after_patch {
                self.guest["spec"]["type"] = json!("LoadBalancer");
            }
        }
        if let Some(load_balancer) = patch["status"].get("loadBalancer") {
            let mut ingress = load_balancer["ingress"].as_array().cloned().unwrap_or_default();
            if self.drops_ip_mode {
                for entry in &mut ingress {
                    entry.as_object_mut().unwrap().remove("ipMode");
                }
            }
            self.guest["status"]["loadBalancer"] = json!({ "ingress": ingress });
        }
        for condition in patch["status"]["conditions"].as_array().into_iter().flatten() {
            let conditions = self.guest["status"]["conditions"].as_array_mut().unwrap();
            conditions.retain(|known| known["type"] != condition["type"]);
            if condition.get("$patch").is_none() {
                conditions.push(condition.clone());
            }
        }
        let is_last = self.guest["metadata"]["finalizers"] == json!([]);
        if is_last && self.guest["metadata"].get("deletionTimestamp").is_some() {
            return std::mem::take(&mut self.guest);
        }
        self.guest["metadata"]["resourceVersion"] = self.stamp();
        self.guest.clone()
    }
}

fn status(code: u16, reason: &str, name: &str) -> (u16, Value) {
    crate::fake_api::failure(code, reason, &json!({ "name": name, "kind": "services" }))
}

/// A controller of one Service.
struct Controller {
    world: Arc<Mutex<World>>,
    context: Context,
    writers: Writers,
}

impl Controller {
    fn new() -> Self {
        let guest = json!({
            "metadata": { "name": "web", "namespace": "shop", "uid": UID, "resourceVersion": "1" },
            "spec": { "type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
                "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080 }] },
            "status": { "conditions": [] },
        });
        let world = Arc::new(Mutex::new(World { guest, version: 1, ..World::default() }));
        let (client, tasks) = (client(&world), Tasks::default());
        let (guest, infra) = (GuestCluster::over(client.clone()), InfraCluster::over(client.clone(), "hcp"));
        let identity =
            GuestLabels { cluster: "guest".parse().unwrap(), infra_labels: [].into(), former: [].into() };
        let (index, writers) = Index::new(&PlanConfig::of(identity.clone()), "hcp".to_owned());
        let context = Context {
            services: Services::new(&guest, &infra),
            index,
            config: PlanConfig::of(identity),
            guest_cluster: KnownGuest::default(),
            owner: Owner::new(None, infra),
            gate: Arc::default(),
            address_timeout: Duration::from_mins(1),
            events: EventSink::start(guest, "test", &tasks),
            metrics: ServiceMetrics::default(),
            repairs: Repairs::new(Contested::default()),
            pace: ChangePace::new(PACE),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(1)),
            nodes: Nodes::start(NodeWatch::new(&GuestCluster::over(client), tasks)),
        };
        Self { world, context, writers }
    }

    /// One whose Service has its address.
    async fn serving() -> Self {
        let mut controller = Self::new();
        controller.reconcile().await;
        controller.assign_address();
        controller.reconcile().await;
        controller
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The watches show what there is; then the Service is reconciled. Returns the calls of that.
    async fn reconcile(&mut self) -> Vec<String> {
        let (guest, mirror) = {
            let world = self.world();
            (world.guest.clone(), world.mirror.clone())
        };
        let guest: GuestService = serde_json::from_value(guest).unwrap();
        let shown = Event::InitApply(guest.clone());
        for event in [Event::Init, shown, Event::InitDone] {
            self.writers.guests.apply_watcher_event(&event);
            self.context.index.guest_event(event);
        }
        let mirror = mirror.map(|mirror| Event::InitApply(serde_json::from_value(mirror).unwrap()));
        for event in [Some(Event::Init), mirror, Some(Event::InitDone)].into_iter().flatten() {
            self.writers.mirrors.apply_watcher_event(&event);
            self.context.index.infra_event(event);
        }
        self.again(&guest).await.unwrap();
        std::mem::take(&mut self.world().calls)
    }

    /// Reconciles the Service as the watch showed it before.
    async fn again(&self, shown: &GuestService) -> Result<Action, ReconcileError> {
        reconcile(shown, &self.context).await
    }

    fn mend(&self, change: impl FnOnce(&mut World)) {
        let mut world = self.world();
        change(&mut world);
        let version = world.stamp();
        if !world.guest.is_null() {
            world.guest["metadata"]["resourceVersion"] = version;
        }
    }

    fn assign_address(&self) {
        self.mend(|world| {
            world.mirror.as_mut().unwrap()["status"] =
                json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
        });
    }

    fn lose_address(&self) {
        self.mend(|world| world.mirror.as_mut().unwrap()["status"] = json!({ "loadBalancer": {} }));
    }

    fn delete(&self) {
        self.mend(|world| world.guest["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z"));
    }
}

fn client(world: &Arc<Mutex<World>>) -> Client {
    let world = Arc::clone(world);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let world = Arc::clone(&world);
        async move {
            let (parts, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or(Value::Null);
            let (code, body) = world.lock().unwrap().answer(&parts.method, parts.uri.path(), &body);
            let body = Body::from(body.to_string().into_bytes());
            Ok::<_, tower::BoxError>(http::Response::builder().status(code).body(body)?)
        }
    });
    Client::new(service, "default")
}

#[tokio::test]
async fn the_life_of_a_service_takes_two_calls_of_infra_and_three_of_the_guest() {
    let mut controller = Controller::new();
    assert_eq!(controller.reconcile().await, ["PATCH guest", "POST infra"]);
    assert!(controller.reconcile().await.is_empty(), "it waits for an address");
    controller.assign_address();
    assert_eq!(controller.reconcile().await, ["PATCH guest"]);
    assert_eq!(controller.world().guest["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
    assert!(controller.reconcile().await.is_empty(), "nothing is left to do");
    controller.delete();
    assert_eq!(controller.reconcile().await, ["DELETE infra", "PATCH guest"]);
    let world = controller.world();
    assert!(world.guest.is_null() && world.mirror.is_none());
}

#[tokio::test]
async fn a_mirror_with_an_address_from_the_start_is_shown_in_the_same_reconcile() {
    let mut controller = Controller::new();
    controller.reconcile().await;
    controller.assign_address();
    let mirror = controller.world().mirror.take();
    controller.mend(|world| world.guest["metadata"]["finalizers"] = json!([]));
    controller.world().mirror = mirror;
    // The watch does not show the mirror: the create finds it, and the read its address.
    let shown: GuestService = serde_json::from_value(controller.world().guest.clone()).unwrap();
    controller.writers.guests.apply_watcher_event(&Event::Apply(shown.clone()));
    controller.writers.mirrors.apply_watcher_event(&Event::Delete(read_mirror(&controller)));
    controller.context.index.infra_event(Event::Delete(read_mirror(&controller)));
    controller.again(&shown).await.unwrap();
    assert_eq!(controller.world().calls, ["PATCH guest", "POST infra", "GET infra", "PATCH guest"]);
}

fn read_mirror(controller: &Controller) -> InfraService {
    serde_json::from_value(controller.world().mirror.clone().unwrap()).unwrap()
}

#[tokio::test]
async fn drift_is_repaired_from_one_read_and_the_answer_is_not_read_again() {
    let mut controller = Controller::new();
    controller.reconcile().await;
    controller.mend(|world| world.mirror.as_mut().unwrap()["spec"]["ports"][0]["port"] = json!(81));
    assert_eq!(controller.reconcile().await, ["GET infra", "PUT infra"]);
    assert_eq!(controller.world().mirror.as_ref().unwrap()["spec"]["ports"][0]["port"], 80);
    assert!(controller.reconcile().await.is_empty());
}

#[tokio::test]
async fn a_mirror_that_another_program_deleted_is_created_after_a_read_of_the_service() {
    let mut controller = Controller::new();
    controller.reconcile().await;
    controller.mend(|world| world.mirror = None);
    assert_eq!(controller.reconcile().await, ["GET guest", "POST infra"]);
}

#[tokio::test]
async fn what_infra_holds_is_waited_for() {
    let mut controller = Controller::new();
    controller.reconcile().await;
    controller.world().holds = true;
    controller.delete();
    assert_eq!(controller.reconcile().await, ["DELETE infra"]);
    controller.reconcile().await;
    assert_eq!(controller.world().guest["metadata"]["finalizers"], json!([FINALIZER]));
    controller.mend(|world| world.mirror = None);
    assert_eq!(controller.reconcile().await, ["GET infra", "PATCH guest"], "the absence is proved first");
}

#[tokio::test]
async fn a_service_that_needs_no_load_balancer_any_more_loses_it_and_its_conditions() {
    let mut controller = Controller::serving().await;
    controller.mend(|world| world.guest["spec"]["type"] = json!("ClusterIP"));
    let calls = controller.reconcile().await;
    assert_eq!(calls, ["GET guest", "DELETE infra", "PATCH guest", "PATCH guest"]);
    let world = controller.world();
    assert_eq!(world.guest["metadata"]["finalizers"], json!([]));
    assert_eq!(world.guest["status"]["conditions"], json!([]));
    assert_eq!(world.guest["status"]["loadBalancer"]["ingress"], json!([]));
}

#[tokio::test]
async fn a_service_that_is_gone_is_not_served() {
    let mut controller = Controller::new();
    controller.reconcile().await;
    let shown: GuestService = serde_json::from_value(controller.world().guest.clone()).unwrap();
    controller.mend(|world| (world.mirror, world.guest) = (None, Value::Null));
    controller.writers.mirrors.apply_watcher_event(&Event::Init);
    controller.writers.mirrors.apply_watcher_event(&Event::InitDone);
    controller.context.index.infra_event(Event::InitDone);
    controller.writers.guests.apply_watcher_event(&Event::Apply(shown.clone()));
    let ended = controller.again(&shown).await.unwrap();
    assert_eq!(ended, Action::requeue(SUPERSEDED_INTERVAL));
    assert_eq!(controller.world().calls, ["GET guest"]);
}

#[tokio::test]
async fn an_address_that_the_guest_stores_otherwise_is_written_once_in_a_reconcile() {
    let mut controller = Controller::new();
    controller.world().drops_ip_mode = true;
    controller.reconcile().await;
    controller.mend(|world| {
        world.mirror.as_mut().unwrap()["status"] =
            json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1", "ipMode": "VIP" }] } });
    });
    assert_eq!(controller.reconcile().await, ["PATCH guest"]);
    assert_eq!(controller.world().guest["status"]["loadBalancer"]["ingress"], json!([{ "ip": "192.0.2.1" }]));
}

#[tokio::test]
async fn what_a_policy_of_infra_sets_does_not_keep_the_address_from_the_guest() {
    for (field, value) in [
        ("externalTrafficPolicy", json!("Local")),
        ("ports", json!([{ "name": "http", "protocol": "TCP", "port": 81, "targetPort": 30080 }])),
        ("loadBalancerSourceRanges", json!(["192.0.2.0/24"])),
    ] {
        let mut controller = Controller::new();
        controller.world().policy = Some((field, value));
        assert_eq!(controller.reconcile().await, ["PATCH guest", "POST infra", "PUT infra"], "{field}");
        controller.assign_address();
        assert_eq!(controller.reconcile().await, ["PATCH guest"], "{field}: the same repair waits");
        assert_eq!(controller.world().guest["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
    }
}

#[tokio::test]
async fn a_service_that_is_wanted_again_at_once_keeps_its_place() {
    let mut controller = Controller::new();
    controller.reconcile().await;
    controller.mend(|world| world.guest["spec"]["type"] = json!("ClusterIP"));
    let shown: GuestService = serde_json::from_value(controller.world().guest.clone()).unwrap();
    controller.writers.guests.apply_watcher_event(&Event::Apply(shown.clone()));
    controller.context.index.guest_event(Event::Apply(shown.clone()));
    let created = Event::Apply(read_mirror(&controller));
    controller.writers.mirrors.apply_watcher_event(&created);
    controller.context.index.infra_event(created);
    controller.world().calls.clear();
    // The answers show that the user has changed it back.
    controller.world().is_wanted_after_patch = true;
    controller.again(&shown).await.unwrap();
    let world = controller.world();
    assert!(world.mirror.is_some(), "{:?}", world.calls);
    assert_eq!(world.guest["metadata"]["finalizers"], json!([FINALIZER]));
    drop(world);
    assert!(controller.context.index.waited(UID) < Duration::from_secs(1));
}

/// Two load balancers in one guest (k3s-io/k3s#269, metallb/metallb#2177): another program writes the status again.
#[tokio::test(start_paused = true)]
async fn an_address_that_another_program_writes_over_is_repaired_ever_more_slowly() {
    let mut controller = Controller::serving().await;
    let mut repairs = 0;
    for _ in 0..100 {
        controller.mend(|world| {
            world.guest["status"]["loadBalancer"] = json!({ "ingress": [{ "ip": "192.0.2.66" }] });
        });
        repairs += controller.reconcile().await.iter().filter(|call| *call == "PATCH guest").count();
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!(repairs <= 6, "{repairs} in 10 s");
}

/// A load balancer of infra that corrects the mirror (`PureLB`, kubelb#143).
#[tokio::test(start_paused = true)]
async fn a_field_that_infra_corrects_is_repaired_ever_more_slowly_and_the_address_is_shown_at_once() {
    let mut controller = Controller::new();
    controller.reconcile().await;
    let mut repairs = 0;
    for _ in 0..100 {
        controller
            .mend(|world| world.mirror.as_mut().unwrap()["spec"]["externalTrafficPolicy"] = json!("Local"));
        repairs += controller.reconcile().await.iter().filter(|call| *call == "PUT infra").count();
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!((2..=6).contains(&repairs), "{repairs} in 10 s");
    controller.mend(|world| world.mirror.as_mut().unwrap()["spec"]["externalTrafficPolicy"] = json!("Local"));
    controller.assign_address();
    controller.reconcile().await;
    assert_eq!(controller.world().guest["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
}

/// A user, or a program, that changes its Service all the time.
#[tokio::test(start_paused = true)]
async fn a_service_that_flips_costs_infra_few_writes_and_gets_its_last_state() {
    let mut controller = Controller::new();
    let (mut writes, mut calls) = (0, 0);
    for flip in 0..1000 {
        let kind = if flip % 2 == 0 { "LoadBalancer" } else { "ClusterIP" };
        controller.mend(|world| {
            world.guest["spec"]["type"] = json!(kind);
            world.guest["spec"]["ports"][0]["port"] = json!(81 + flip);
        });
        let made = controller.reconcile().await;
        calls += made.len();
        writes += made.iter().filter(|call| call.ends_with("infra") && !call.starts_with("GET")).count();
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    assert!((3..=12).contains(&writes), "{writes} writes to infra in 10 s");
    assert!(calls <= 40, "{calls} calls in 10 s");
    controller.mend(|world| world.guest["spec"]["type"] = json!("LoadBalancer"));
    tokio::time::advance(Duration::from_secs(5)).await;
    controller.reconcile().await;
    assert_eq!(controller.world().mirror.as_ref().unwrap()["spec"]["ports"][0]["port"], 1080);
}

/// cozystack/cozystack#3307: infra clears the address for a moment, and external-dns would drop the name.
#[tokio::test(start_paused = true)]
async fn an_address_that_infra_loses_for_a_moment_stays() {
    let mut controller = Controller::serving().await;
    for _ in 0..10 {
        controller.lose_address();
        let calls = controller.reconcile().await;
        assert!(calls.is_empty(), "{calls:?}");
        tokio::time::advance(Duration::from_secs(5)).await;
        controller.assign_address();
        assert!(controller.reconcile().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_infra_has_lost_goes_after_a_while() {
    let mut controller = Controller::serving().await;
    controller.lose_address();
    assert!(controller.reconcile().await.is_empty());
    let shown: GuestService = serde_json::from_value(controller.world().guest.clone()).unwrap();
    let again = controller.again(&shown).await.unwrap();
    assert_eq!(again, Action::requeue(KEEP_ADDRESS), "nothing else would trigger the end of the wait");
    tokio::time::advance(KEEP_ADDRESS).await;
    assert_eq!(controller.reconcile().await, ["PATCH guest"]);
    assert_eq!(controller.world().guest["status"]["loadBalancer"]["ingress"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn an_address_of_a_mirror_that_was_replaced_goes_at_once() {
    let mut controller = Controller::serving().await;
    controller.lose_address();
    assert!(controller.reconcile().await.is_empty());
    controller.mend(|world| world.mirror.as_mut().unwrap()["metadata"]["uid"] = json!("m2"));
    assert_eq!(controller.reconcile().await, ["PATCH guest"]);
}

/// A Service above a limit has no call to infra, also where it showed an address of a mirror that is gone.
#[tokio::test(start_paused = true)]
async fn a_service_above_a_limit_is_not_made_and_shows_no_address() {
    let mut controller = Controller::serving().await;
    let many: Vec<_> =
        (0..101).map(|port| json!({ "port": 1000 + port, "nodePort": 30000 + port })).collect();
    controller.mend(|world| {
        world.mirror = None;
        world.guest["spec"]["ports"] = json!(many);
    });
    assert_eq!(controller.reconcile().await, ["GET infra", "PATCH guest"], "its absence is proved first");
    assert_eq!(controller.world().guest["status"]["loadBalancer"]["ingress"], json!([]));
    let condition = controller.world().guest["status"]["conditions"][0].clone();
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("TooLarge")));
    assert!(condition["message"].as_str().unwrap().contains("101 ports (at most 100)"), "{condition}");
    assert!(controller.reconcile().await.is_empty());
    controller.mend(|world| world.guest["spec"]["ports"] = json!(many[..100]));
    let made = controller.reconcile().await;
    assert_eq!(made, ["GET guest", "POST infra", "PATCH guest"], "it is small enough now, and waits");
}

/// kubernetes-sigs/cloud-provider-azure#1831: a guest whose first family infra does not have.
#[rstest::rstest]
#[case::second_family(json!(["IPv6", "IPv4"]), "PreferDualStack", &["IPv4"], 2, json!(["IPv4"]))]
#[case::only_the_other(json!(["IPv6"]), "SingleStack", &["IPv4"], 2, json!(["IPv4"]))]
#[case::ipv6_infra(json!(["IPv4", "IPv6"]), "PreferDualStack", &["IPv6"], 2, json!(["IPv6"]))]
#[case::first_family(json!(["IPv6", "IPv4"]), "PreferDualStack", &["IPv6", "IPv4"], 1, json!(["IPv6"]))]
#[tokio::test]
async fn a_mirror_gets_a_family_that_infra_has(
    #[case] families: Value,
    #[case] policy: &str,
    #[case] infra: &[&'static str],
    #[case] tries: usize,
    #[case] made: Value,
) {
    let mut controller = Controller::new();
    controller.mend(|world| {
        world.families = infra.to_vec();
        world.guest["spec"]["ipFamilies"] = families;
        world.guest["spec"]["ipFamilyPolicy"] = json!(policy);
    });
    let calls = controller.reconcile().await;
    assert_eq!(calls.iter().filter(|call| *call == "POST infra").count(), tries, "{calls:?}");
    let asked = controller.world().mirror.as_ref().unwrap()["spec"].get("ipFamilies").cloned();
    assert_eq!(asked.unwrap_or_default(), made);
}

/// Somebody removes the finalizer by hand while the watch has a gap. The sweep, which an operator may switch off, is not
/// needed for it.
#[tokio::test(start_paused = true)]
async fn nothing_is_kept_of_a_service_that_vanished() {
    let mut controller = Controller::serving().await;
    controller.context.backoff.failed(UID);
    controller.context.index.waits(UID);
    assert_eq!(controller.context.index.waiting(), 1);
    for event in [Event::Init, Event::InitDone] {
        controller.writers.guests.apply_watcher_event(&event);
        controller.context.index.guest_event(event);
    }
    let forgets = controller.context.keep_forgetting();
    assert!(tokio::time::timeout(Duration::from_mins(2), forgets).await.is_err(), "without end");
    assert!(controller.context.backoff.is_empty());
    assert_eq!(controller.context.index.waiting(), 0);
}

/// The UID of the guest cluster becomes known while the program runs: then its mirrors are marked with it.
#[tokio::test]
async fn a_mirror_is_marked_when_the_guest_cluster_is_known() {
    let mut controller = Controller::serving().await;
    let mark = |controller: &Controller| {
        let mirror = controller.world().mirror.clone().unwrap();
        mirror["metadata"]["annotations"].get("cluster.x-k8s.io/tenant-cluster-uid").cloned()
    };
    assert_eq!(mark(&controller), None);
    controller.context.guest_cluster = KnownGuest::new(Some("g".to_owned()));
    assert_eq!(controller.reconcile().await, ["GET infra", "PUT infra"]);
    assert_eq!(mark(&controller), Some(json!("g")));
}

/// cozystack/cozystack#2256: a load balancer that reads the selector gives no address to a mirror without.
#[rstest::rstest]
#[case::selectorless(true)]
#[case::by_selector(false)]
#[tokio::test(start_paused = true)]
async fn a_mirror_without_selector_and_address_is_reported_as_such(#[case] selectorless: bool) {
    let mut controller = Controller::new();
    controller.context.config.endpoints.choice.selectorless = selectorless;
    controller.reconcile().await;
    tokio::time::advance(controller.context.address_timeout).await;
    controller.reconcile().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let world = controller.world();
    let found = world.events.iter().find(|event| event.contains("has assigned no address")).unwrap();
    assert_eq!(found.contains("no selector"), selectorless, "{found}");
}
