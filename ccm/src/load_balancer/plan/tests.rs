//! The properties of the planner over a small model of the two API servers, and the cases by name.

use std::collections::BTreeMap;

use super::*;
use crate::{guest::services::FINALIZER, wire::metadata::FIELD_MANAGER};
use proptest::prelude::*;
use serde_json::{Value, json};

const UID: &str = "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3";

fn config() -> PlanConfig {
    let identity = GuestLabels {
        cluster: "guest".parse().unwrap(),
        infra_labels: BTreeMap::new(),
        former: BTreeMap::new(),
    };
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "ConfigMap".to_owned(),
        name: "anchor".to_owned(),
        uid: "anchor-uid".to_owned(),
        ..OwnerReference::default()
    };
    PlanConfig {
        guest_cluster: Some("cluster-uid".to_owned()),
        owner: Some(owner),
        ..PlanConfig::of(identity)
    }
}

/// Both clusters, reduced to one Service.
#[derive(Clone, Debug)]
struct World {
    guest: Value,
    infra: Option<Value>,
    /// How often the model had to do something.
    calls: usize,
}

impl World {
    fn new() -> Self {
        let guest = json!({
            "metadata": { "name": "web", "namespace": "shop", "uid": UID, "annotations": { "a": "1" } },
            "spec": { "type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
                "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080 }] },
            "status": {},
        });
        Self { guest, infra: None, calls: 0 }
    }

    /// The guest Service as the watch keeps it.
    fn guest(&self) -> GuestService {
        let mut guest: GuestService = serde_json::from_value(self.guest.clone()).unwrap();
        guest.slim(|annotations| GuestPolicy::default().annotations.keep_read(annotations));
        guest
    }

    fn infra(&self) -> Option<InfraService> {
        self.infra.as_ref().map(|infra| serde_json::from_value(infra.clone()).unwrap())
    }

    fn plan(&self, proved: bool) -> Plan {
        let infra = self.infra();
        let seen = match &infra {
            Some(infra) => Infra::Present(infra),
            None if proved => Infra::Gone,
            None => Infra::NotSeen,
        };
        plan(&self.guest(), seen, &config())
    }

    /// Carries out a plan as the API servers do. True = the plan asked for a read.
    fn apply(&mut self, plan: &Plan) -> bool {
        let mut confirm = false;
        for step in &plan.steps {
            self.calls += 1;
            match step {
                Step::AddFinalizer => self.guest["metadata"]["finalizers"] = json!([FINALIZER]),
                Step::RemoveFinalizer => self.guest["metadata"]["finalizers"] = json!([]),
                Step::SetStatus(ingress) => {
                    self.guest["status"] = json!({ "loadBalancer": { "ingress": ingress } });
                }
                Step::Confirm => confirm = true,
                Step::Create(mirror) => {
                    assert!(self.infra.is_none(), "created over another");
                    let mut object = mirror.new_object();
                    object["metadata"]["uid"] = json!("infra-uid");
                    self.infra = Some(object);
                    self.server_defaults();
                }
                Step::Replace(mirror, _) => {
                    let infra = self.infra().expect("replaces what is there");
                    mirror.write_into(self.infra.as_mut().unwrap(), &infra);
                    self.server_defaults();
                }
                Step::Delete(uid) => {
                    let metadata = &mut self.infra.as_mut().expect("deletes what is there")["metadata"];
                    assert_eq!(metadata["uid"], json!(uid), "deletes only what was observed");
                    metadata["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
                }
            }
        }
        confirm
    }

    /// What infra's API fills in: node ports, and who wrote the annotations.
    fn server_defaults(&mut self) {
        let infra = self.infra.as_mut().unwrap();
        for port in infra["spec"]["ports"].as_array_mut().unwrap() {
            if port.get("nodePort").is_none() {
                port["nodePort"] = json!(31000 + port["port"].as_i64().unwrap());
            }
        }
        let keys = infra["metadata"]["annotations"].as_object().unwrap().keys();
        let ours: serde_json::Map<_, _> =
            keys.filter(|key| *key != "infra").map(|key| (format!("f:{key}"), json!({}))).collect();
        infra["metadata"]["managedFields"] = json!([{ "manager": FIELD_MANAGER,
            "fieldsV1": { "f:metadata": { "f:annotations": ours } } }]);
    }

    /// Plans and acts until nothing is left to do; infra ends deletions.
    fn settle(&mut self) {
        let mut proved = false;
        for _ in 0..10 {
            let plan = self.plan(proved);
            if plan.steps.is_empty() && plan.waits_for != Some(Wait::Deletion) {
                return;
            }
            proved = self.apply(&plan);
            if self.infra().is_some_and(|infra| infra.is_deleting()) {
                self.infra = None;
            }
        }
        panic!("does not settle: {self:#?}\n{:#?}", self.plan(proved));
    }
}

#[test]
fn the_finalizer_is_on_before_anything_is_made() {
    let plan = World::new().plan(false);
    assert!(matches!(&plan.steps[..], [Step::AddFinalizer, Step::Create(_)]), "{plan:?}");
    assert_eq!(plan.waits_for, Some(Wait::Address));
}

#[test]
fn every_mirror_is_marked_and_has_its_owner_also_where_it_lost_them() {
    let mut world = World::new();
    world.settle();
    let whole = world.infra.clone().unwrap();
    assert_eq!(whole["metadata"]["annotations"][GUEST_CLUSTER_ANNOTATION], "cluster-uid");
    let owners = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "anchor", "uid": "anchor-uid" }]);
    assert_eq!(whole["metadata"]["ownerReferences"], owners);
    let other = json!({ "apiVersion": "v1", "kind": "Secret", "name": "x", "uid": "y" });
    let stale = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "anchor", "uid": "before" });
    let infra = world.infra.as_mut().unwrap();
    infra["metadata"]["ownerReferences"] = json!([other, stale]);
    infra["metadata"]["annotations"].as_object_mut().unwrap().remove(GUEST_CLUSTER_ANNOTATION);
    world.settle();
    let mended = world.infra.unwrap();
    assert_eq!(mended["metadata"]["ownerReferences"], json!([other, owners[0]]), "others' stay");
    assert_eq!(mended["metadata"]["annotations"], whole["metadata"]["annotations"]);
}

#[test]
fn a_late_address_a_changed_one_and_a_cleared_status_all_reach_the_guest() {
    let mut world = World::new();
    world.settle();
    for addresses in
        [json!([{ "ip": "192.0.2.1", "ipMode": "VIP" }]), json!([{ "hostname": "lb.example" }]), json!([])]
    {
        world.infra.as_mut().unwrap()["status"] = json!({ "loadBalancer": { "ingress": addresses } });
        world.settle();
        let shown = &world.guest["status"]["loadBalancer"]["ingress"];
        assert_eq!(*shown, addresses);
        if addresses != json!([]) {
            world.guest["status"] = json!({});
            assert!(matches!(&world.plan(false).steps[..], [Step::SetStatus(_)]));
            world.settle();
        }
    }
}

#[test]
fn a_mirror_that_somebody_deleted_is_made_again() {
    let mut world = World::new();
    world.settle();
    world.infra = None;
    world.settle();
    assert!(world.infra.is_some());
}

#[test]
fn the_finalizer_goes_only_when_infra_said_that_the_mirror_is_gone() {
    let mut world = World::new();
    world.settle();
    world.guest["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    let plan = world.plan(false);
    assert_eq!(plan.steps, [Step::Delete("infra-uid".to_owned())]);
    world.apply(&plan);
    let plan = world.plan(false);
    assert_eq!(
        (plan.steps.as_slice(), plan.waits_for),
        (&[][..], Some(Wait::Deletion)),
        "infra takes its time"
    );
    world.infra = None;
    assert_eq!(world.plan(false).steps, [Step::Confirm], "the watch alone proves nothing");
    assert_eq!(world.plan(true).steps, [Step::RemoveFinalizer]);
}

#[test]
fn a_type_without_load_balancer_gives_it_up_and_empties_the_status() {
    let mut world = World::new();
    world.settle();
    world.infra.as_mut().unwrap()["status"] =
        json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
    world.settle();
    world.guest["spec"]["type"] = json!("ClusterIP");
    world.settle();
    assert!(world.infra.is_none() && !world.guest().has_finalizer());
    assert!(world.guest().status.load_balancer.ingress.is_empty());
}

#[test]
fn without_node_ports_the_user_is_told_and_nothing_is_made() {
    let mut world = World::new();
    world.guest["spec"]["ports"][0]["nodePort"] = json!(0);
    let plan = world.plan(false);
    assert_eq!(plan.refusal, Some(Refusal::NoNodePort(80)));
    assert!(plan.steps.is_empty());
    assert!(plan.refusal.unwrap().to_string().contains("allocateLoadBalancerNodePorts"));
}

#[test]
fn a_class_is_another_controllers_matter() {
    let mut world = World::new();
    world.guest["spec"]["loadBalancerClass"] = json!("other");
    assert!(world.plan(false).is_empty());
    world.guest["metadata"]["finalizers"] = json!([FINALIZER]);
    world.guest["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    assert!(world.plan(true).is_empty(), "the finalizer is the other's too");
}

#[test]
fn what_we_made_goes_when_a_class_comes() {
    let mut world = World::new();
    world.settle();
    world.guest["spec"]["loadBalancerClass"] = json!("other");
    assert_eq!(world.plan(false).steps, [Step::RemoveFinalizer, Step::Delete("infra-uid".to_owned())]);
    world.settle();
    assert!(world.infra.is_none());
}

#[test]
fn a_clone_under_another_name_neither_steals_nor_deletes() {
    let mut world = World::new();
    world.settle();
    let key = crate::guest_names::CLUSTER_NAME_LABEL;
    world.infra.as_mut().unwrap()["metadata"]["labels"][key] = json!("original");
    let before = world.infra.clone();
    let plan = world.plan(false);
    assert!(plan.steps.is_empty() && matches!(plan.refusal, Some(Refusal::Foreign(_))), "{plan:?}");
    world.guest["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    world.settle();
    assert_eq!(world.infra, before);
    assert!(!world.guest().has_finalizer(), "nothing of ours is left");
}

prop_compose! {
    fn guest_changes()(
        kind in prop_oneof![Just("LoadBalancer"), Just("LoadBalancer"), Just("ClusterIP"), Just("NodePort"), Just("Unknown")],
        class in proptest::option::weighted(0.1, Just("other")),
        policy in prop_oneof![Just("Cluster"), Just("Local"), Just("")],
        ports in proptest::collection::vec((1..5i32, 0..3i32, any::<bool>()), 1..4),
        ranges in proptest::collection::vec(Just("198.51.100.0/24"), 0..2),
        address in prop_oneof![Just(""), Just("192.0.2.9")],
        external in proptest::collection::vec(prop_oneof![Just("192.0.2.1"), Just("192.0.2.2")], 0..2),
        family in prop_oneof![Just("IPv4"), Just("IPv6")],
        dual: bool,
        annotations in proptest::collection::btree_map("[a-c]", "[0-9]", 0..3),
        deleting in proptest::bool::weighted(0.2),
        finalizer: bool,
    ) -> Value {
        let mut ports: Vec<_> = ports;
        ports.sort_unstable();
        ports.dedup_by_key(|port| port.0);
        let ports: Vec<_> = ports.into_iter().map(|(port, node_port, udp)| json!({
            "name": format!("p{port}"), "protocol": if udp { "UDP" } else { "TCP" }, "port": port,
            "nodePort": if node_port == 0 { 0 } else { 30000 + node_port },
        })).collect();
        let mut guest = World::new().guest;
        guest["spec"] = json!({ "type": kind, "externalTrafficPolicy": policy, "ports": ports,
            "loadBalancerSourceRanges": ranges, "loadBalancerIP": address, "externalIPs": external,
            "ipFamilies": [family], "ipFamilyPolicy": if dual { "PreferDualStack" } else { "SingleStack" } });
        if let Some(class) = class { guest["spec"]["loadBalancerClass"] = json!(class); }
        guest["metadata"]["annotations"] = json!(annotations);
        if finalizer || deleting { guest["metadata"]["finalizers"] = json!([FINALIZER]); }
        if deleting { guest["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z"); }
        guest
    }
}

proptest! {
    /// plan(apply(plan(s), s)) is empty, for any sequence of guest Services.
    #[test]
    fn what_was_carried_out_leaves_nothing_to_plan(guests in proptest::collection::vec(guest_changes(), 1..5)) {
        let mut world = World::new();
        for guest in guests {
            let (status, finalizers) = (world.guest["status"].clone(), world.guest["metadata"]["finalizers"].clone());
            world.guest = guest;
            world.guest["status"] = status;
            if finalizers == json!([FINALIZER]) { world.guest["metadata"]["finalizers"] = finalizers; }
            world.settle();
            let plan = world.plan(false);
            prop_assert!(plan.steps.is_empty(), "{:?}", plan);
            prop_assert!(world.infra.is_none() || world.guest().wants_load_balancer());
        }
    }

    /// No Service that has another cluster's name, or none, is changed or deleted.
    #[test]
    fn a_foreign_object_is_never_touched(
        guest in guest_changes(), label in proptest::option::of("[a-f]{3}"), other_fields in "[a-z]{0,5}",
    ) {
        let mut world = World::new();
        world.guest = guest;
        world.infra = Some(json!({
            "metadata": { "name": "a0e4c1a529f3b4a6d8c216b1de0a9f7c", "uid": "x", "annotations": { "k": other_fields } },
            "spec": { "type": "LoadBalancer", "ports": [] },
        }));
        if let Some(label) = label {
            world.infra.as_mut().unwrap()["metadata"]["labels"] =
                json!({ crate::guest_names::CLUSTER_NAME_LABEL: label });
        }
        let before = world.infra.clone();
        let plan = world.plan(false);
        for step in &plan.steps {
            prop_assert!(!matches!(step, Step::Create(_) | Step::Replace(..) | Step::Delete(_)), "{:?}", step);
        }
        world.settle();
        prop_assert_eq!(world.infra, before);
    }
}

/// kubernetes/kubernetes#125225: `ipMode: VIP` is the default of an address, and one of two clusters may not know it.
#[test]
fn an_absent_ip_mode_is_the_default() {
    let cases = [
        (json!({ "ip": "192.0.2.1" }), json!({ "ip": "192.0.2.1", "ipMode": "VIP" }), true),
        (json!({ "ip": "192.0.2.1", "ipMode": "VIP" }), json!({ "ip": "192.0.2.1" }), true),
        (json!({ "hostname": "a.example" }), json!({ "hostname": "a.example" }), true),
        (json!({ "ip": "192.0.2.1" }), json!({ "ip": "192.0.2.1", "ipMode": "Proxy" }), false),
        (json!({ "ip": "192.0.2.1" }), json!({ "ip": "192.0.2.2", "ipMode": "VIP" }), false),
    ];
    for (infra, guest, is_same) in cases {
        let mut world = World::new();
        world.settle();
        world.infra.as_mut().unwrap()["status"] = json!({ "loadBalancer": { "ingress": [infra] } });
        world.guest["status"] = json!({ "loadBalancer": { "ingress": [guest] } });
        assert_eq!(world.plan(false).steps.is_empty(), is_same, "{infra} {guest}");
    }
}

/// A guest's API server that is not honest: the UID would become a part of URLs, or the name of another Service.
#[rstest::rstest]
#[case::path("../../pods/x")]
#[case::query("x?fieldManager=y")]
#[case::short("bc")]
#[case::empty("")]
#[case::no_hexadecimal("ge4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3")]
#[case::cut_to_the_name_of_another("0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3f")]
#[case::endless(&"a".repeat(300))]
fn a_uid_that_is_none_leads_to_nothing(#[case] uid: &str) {
    let mut world = World::new();
    world.guest["metadata"]["uid"] = json!(uid);
    assert!(world.plan(false).is_empty());
    world.guest["metadata"]["finalizers"] = json!([FINALIZER]);
    world.guest["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    assert!(world.plan(true).is_empty() && world.plan(false).is_empty());
}

impl World {
    /// The guest asks for so many ports and source ranges, and annotations of so many bytes.
    fn asks(&mut self, ports: usize, ranges: usize, bytes: usize) {
        let port = |number: usize| {
            json!({ "name": format!("p{number}"), "protocol": "TCP", "port": 1000 + number,
            "nodePort": 30000 + number })
        };
        self.guest["spec"]["ports"] = json!((0..ports).map(port).collect::<Vec<_>>());
        let range = |number: usize| format!("198.51.{}.{}/32", number / 256, number % 256);
        self.guest["spec"]["loadBalancerSourceRanges"] = json!((0..ranges).map(range).collect::<Vec<_>>());
        self.guest["metadata"]["annotations"] = json!({ "a": "x".repeat(bytes.saturating_sub(1)) });
    }

    /// Plans with these limits.
    fn plan_within(&self, limits: Limits) -> Plan {
        let infra = self.infra();
        let seen = infra.as_ref().map_or(Infra::NotSeen, Infra::Present);
        plan(&self.guest(), seen, &PlanConfig { limits, ..config() })
    }

    /// Makes the mirror of what the guest asks for, as if there were no limits.
    fn settle_without_limits(&mut self) {
        let none = Limits { ports: None, source_ranges: None, annotation_bytes: None };
        let plan = self.plan_within(none);
        self.apply(&plan);
    }
}

/// kubernetes/kubernetes#129389, vmware-tanzu/vm-operator#180: what one Service may cost infra. Nothing is made of one that
/// is too large, as a mirror with fewer ranges would be open.
#[rstest::rstest]
#[case::at_all_limits(100, 100, 65_536, &[])]
#[case::ports(101, 100, 65_536, &["101 ports (at most 100)"])]
#[case::ranges(100, 101, 65_536, &["101 source ranges (at most 100)"])]
#[case::annotations(100, 100, 65_537, &["65537 bytes of annotations (at most 65536)"])]
#[case::all(300, 257, 200_000, &["300 ports (at most 100)", "257 source ranges (at most 100)", "200000 bytes of annotations"])]
fn a_service_above_a_limit_is_refused_whole(
    #[case] ports: usize,
    #[case] ranges: usize,
    #[case] bytes: usize,
    #[case] named: &[&str],
) {
    let mut world = World::new();
    world.asks(ports, ranges, bytes);
    let plan = world.plan(false);
    let text = plan.refusal.as_ref().map(ToString::to_string).unwrap_or_default();
    assert_eq!(plan.steps.is_empty(), !named.is_empty(), "{:?}", plan.steps);
    assert_eq!(matches!(plan.refusal, Some(Refusal::TooLarge(_))), !named.is_empty());
    assert!(named.iter().all(|named| text.contains(named)), "{text}");
    assert_eq!(text.matches("at most").count(), named.len(), "{text}");
}

#[test]
fn a_limit_of_none_lets_everything_through() {
    let mut world = World::new();
    world.asks(1000, 1000, 200_000);
    world.settle_without_limits();
    assert_eq!(world.infra().unwrap().spec.ports.len(), 1000);
}

/// One that exists keeps what it has, may have less, and other things of it may change.
#[test]
fn an_existing_service_above_a_limit_keeps_what_it_has_and_gets_no_more() {
    let existing = |ports, ranges, bytes| {
        let mut world = World::new();
        world.asks(ports, ranges, bytes);
        world.settle_without_limits();
        world
    };
    for (ports, ranges, bytes) in [(150, 1, 10), (1, 150, 10), (1, 1, 70_000)] {
        let mut world = existing(ports, ranges, bytes);
        let plan = world.plan(false);
        assert!(plan.steps.is_empty() && plan.refusal.is_none() && plan.kept.len() == 1, "{plan:?}");
        world.guest["spec"]["externalTrafficPolicy"] = json!("Local");
        world.settle();
        assert_eq!(world.infra().unwrap().spec.external_traffic_policy, "Local", "another field");

        let (mut more, before) = (world.clone(), world.infra.clone());
        more.asks(ports + ports / 2, ranges + ranges / 2, bytes + bytes / 2);
        let plan = more.plan(false);
        assert!(matches!(&plan.refusal, Some(Refusal::TooLarge(_))) && plan.steps.is_empty(), "{plan:?}");
        more.settle();
        assert_eq!(more.infra, before, "it stays as it was");

        world.asks(ports.min(120), ranges.min(120), bytes.min(66_000));
        world.settle();
        assert_eq!(world.infra().unwrap().spec.ports.len(), ports.min(120), "less is allowed");
        world.asks(ports.min(100), ranges.min(100), bytes.min(65_000));
        world.settle();
        let plan = world.plan(false);
        assert!(plan.kept.is_empty() && plan.refusal.is_none(), "{plan:?}");
    }
}

/// Where the mirror is gone, nothing of it is shown, and the deletion of the Service is not held up.
#[test]
fn a_refused_service_is_cleaned_up() {
    for is_too_large in [true, false] {
        let mut world = World::new();
        world.settle();
        world.infra.as_mut().unwrap()["status"] =
            json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
        world.settle();
        if is_too_large {
            world.asks(101, 0, 1);
        } else {
            world.guest["spec"]["ports"][0]["nodePort"] = json!(0);
        }
        let mut moved = world.clone();
        moved.infra.as_mut().unwrap()["status"] =
            json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.2" }] } });
        moved.settle();
        assert_eq!(moved.guest["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.2", "it serves on");
        world.infra = None;
        assert_eq!(world.plan(false).steps, [Step::Confirm], "the watch alone proves nothing");
        world.settle();
        assert!(world.guest().status.load_balancer.ingress.is_empty());
        world.guest["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
        world.settle();
        assert!(!world.guest().has_finalizer());
    }
}

#[test]
fn an_address_that_infra_lost_just_now_stays() {
    let mut world = World::new();
    world.settle();
    world.infra.as_mut().unwrap()["status"] =
        json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
    world.settle();
    world.infra.as_mut().unwrap()["status"] = json!({});
    let moment = Moment { keeps_address: true, ..Moment::default() };
    let infra = world.infra().unwrap();
    let plan = plan(&world.guest(), Infra::Present(&infra), &PlanConfig { moment, ..config() });
    assert!(plan.steps.is_empty() && plan.keeps_address && plan.waits_for.is_none(), "{plan:?}");
    assert_eq!(world.plan(false).steps, [Step::SetStatus(Vec::new())], "and not for ever");
}
