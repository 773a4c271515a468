//! The properties of the planner over a small model of infra, and the cases by name.

use super::*;
use crate::wire::endpoint_slice::Conditions;
use proptest::prelude::*;
use serde_json::json;

const OWNER: &str = "service-uid";

fn service(selector: bool, families: &[&str]) -> InfraService {
    let selector = if selector { json!({"cluster.x-k8s.io/role": "worker"}) } else { json!({}) };
    let service = json!({"metadata": {"name": "a1", "uid": OWNER, "labels": {"cluster.x-k8s.io/cluster-name": "guest"}},
        "spec": {"selector": selector, "ipFamilies": families,
            "ports": [{"name": "http", "port": 80, "targetPort": 30080}]}});
    serde_json::from_value(service).unwrap()
}

fn endpoint(number: u16, ready: bool) -> Endpoint {
    Endpoint {
        vm: format!("w{number:03}"),
        uid: "v".into(),
        address: [10, 0, (number >> 8) as u8, (number & 255) as u8].into(),
        host: None,
        conditions: Conditions { ready, ..Conditions::READY },
    }
}

fn wanted(endpoints: impl IntoIterator<Item = Endpoint>) -> BTreeMap<Family, Vec<Endpoint>> {
    BTreeMap::from([(Family::V4, endpoints.into_iter().collect())])
}

fn of_infra(name: &str, ready: bool) -> InfraSlice {
    let (uid, version) = (format!("uid-of-{name}"), "1".to_owned());
    let (manager, family) = (Manager::Infra, Some(Family::V4));
    InfraSlice {
        name: name.into(),
        uid,
        version,
        manager,
        family,
        owner: None,
        other_writer: None,
        is_ready: ready,
        content: None,
    }
}

/// One Service of infra, and the program that writes its endpoints.
#[derive(Clone, Debug)]
struct World {
    service: InfraService,
    writer: Writer,
    may_convert: bool,
    slices: Vec<InfraSlice>,
    wanted: BTreeMap<Family, Vec<Endpoint>>,
    version: u32,
}

impl World {
    fn new(writer: Writer, selector: bool, wanted: BTreeMap<Family, Vec<Endpoint>>) -> Self {
        let service = service(selector, &["IPv4"]);
        Self { service, writer, may_convert: true, slices: Vec::new(), wanted, version: 1 }
    }

    fn plan(&self) -> Plan {
        plan(&Observed {
            service: &self.service,
            writer: self.writer,
            may_convert: self.may_convert,
            slices: &self.slices,
            wanted: &self.wanted,
        })
    }

    /// Carries out one step as the API server does.
    fn apply(&mut self, step: &Step) {
        self.version += 1;
        match step {
            Step::Create { name, family, content } => {
                assert!(self.slices.iter().all(|slice| slice.name != *name), "{name} exists");
                let uid = format!("uid-{}", self.version);
                self.put(name, uid, *family, content);
            }
            Step::Replace { name, version, family, content } => {
                let present =
                    self.slices.iter().find(|slice| slice.name == *name).expect("replaces what is there");
                assert_eq!((present.manager, &present.version), (Manager::Ours, version));
                let uid = present.uid.clone();
                self.put(name, uid, *family, content);
            }
            Step::Drop { name, uid } => {
                let gone = self.take(name, uid);
                assert_eq!(gone.manager, Manager::Ours);
            }
            Step::Remove { name, uid } => {
                let gone = self.take(name, uid);
                assert_ne!(gone.manager, Manager::Other, "somebody else's");
            }
            Step::RemoveEndpoints => {}
        }
    }

    fn put(&mut self, name: &str, uid: String, family: Family, content: &Content) {
        assert!(content.endpoints.len() <= MAX_ENDPOINTS, "{} endpoints", content.endpoints.len());
        self.slices.retain(|slice| slice.name != *name);
        self.slices.push(InfraSlice {
            name: name.to_owned(),
            uid,
            version: self.version.to_string(),
            manager: Manager::Ours,
            family: Some(family),
            owner: Some(OWNER.to_owned()),
            other_writer: None,
            is_ready: content.endpoints.iter().any(|endpoint| endpoint.conditions.ready),
            content: Some(content.clone()),
        });
    }

    fn take(&mut self, name: &str, uid: &str) -> InfraSlice {
        let place = self.slices.iter().position(|slice| slice.name == name && slice.uid == uid);
        self.slices.remove(place.expect("deletes what is there"))
    }

    fn carry_out(&mut self) -> usize {
        let steps = self.plan().steps;
        for step in &steps {
            self.apply(step);
        }
        steps.len()
    }

    fn is_ready(&self) -> bool {
        self.slices.iter().any(|slice| slice.is_ready)
    }

    fn held(&self) -> BTreeSet<String> {
        let ours = self.slices.iter().filter_map(|slice| slice.content.as_ref());
        ours.flat_map(|content| &content.endpoints).map(|endpoint| endpoint.vm.clone()).collect()
    }

    /// Does what the service controller and infra's own controllers do next. True = something changed.
    fn turn(&mut self) -> bool {
        let plan = self.plan();
        let has_selector = !self.service.spec.selector.is_empty();
        let wants = match self.writer {
            Writer::Ours => has_selector && !plan.is_written,
            Writer::Infra => true,
            Writer::Others => false,
        };
        let of_selector = self.slices.iter().any(|slice| slice.name == "a1-by-selector");
        if wants != has_selector {
            self.service = service(wants, &["IPv4"]);
        } else if has_selector && !of_selector {
            self.slices.push(of_infra("a1-by-selector", true));
        } else {
            return false;
        }
        true
    }
}

#[test]
fn a_service_is_taken_over_from_its_selector_without_a_gap_and_given_back() {
    let mut world = World::new(Writer::Ours, true, wanted([endpoint(1, true)]));
    world.slices = vec![of_infra("a1-by-selector", true), of_infra("a1-copied", true)];
    world.slices.push(InfraSlice { manager: Manager::Other, ..of_infra("by-hand", false) });
    assert!(!world.plan().is_written, "not before they are there");
    assert_eq!(world.carry_out(), 1);
    assert!(
        world.plan().is_written && world.plan().steps.is_empty(),
        "nothing is removed while it has a selector"
    );
    world.service = service(false, &["IPv4"]);
    let steps = world.plan().steps;
    assert_eq!(steps[0], Step::RemoveEndpoints, "else copies of them would come back");
    assert!(steps.iter().all(Step::is_final));
    world.carry_out();
    let names: Vec<_> = world.slices.iter().map(|slice| slice.name.as_str()).collect();
    assert_eq!(names, ["by-hand", "a1-ipv4-0"]);
    assert_eq!(world.carry_out(), 0);

    world.writer = Writer::Infra;
    assert_eq!(world.carry_out(), 0, "ours stay until somebody else has some");
    world.service = service(true, &["IPv4"]);
    assert_eq!(world.carry_out(), 0);
    world.slices.push(of_infra("a1-by-selector", false));
    assert_eq!(world.carry_out(), 0, "and until these are ready");
    world.wanted = wanted([endpoint(2, true)]);
    assert_eq!(world.carry_out(), 1, "meanwhile ours are kept true");
    world.slices.iter_mut().for_each(|slice| slice.is_ready = true);
    assert_eq!(world.carry_out(), 1);
    assert!(world.held().is_empty());
}

#[test]
fn a_selector_is_not_given_up_for_slices_that_serve_nothing() {
    let mut world = World::new(Writer::Ours, true, wanted([endpoint(1, false)]));
    world.slices.push(of_infra("a1-by-selector", true));
    world.carry_out();
    assert!(!world.plan().is_written);
    world.wanted = wanted([endpoint(1, true)]);
    world.carry_out();
    assert!(world.plan().is_written);
}

#[test]
fn without_the_right_to_clean_up_a_selector_stays() {
    let mut world = World::new(Writer::Ours, true, wanted([endpoint(1, true)]));
    world.may_convert = false;
    world.slices.push(of_infra("a1-by-selector", true));
    assert_eq!(world.plan(), Plan::default());
    world.service = service(false, &["IPv4"]);
    assert_eq!(world.carry_out(), 1, "one without is served");
    assert_eq!(world.carry_out(), 0);
}

/// kubernetes/kubernetes#118376, #91072: what the former writer left serves VMs that are gone, beside the other program's slices.
#[test]
fn where_others_write_the_former_writers_slices_go_when_theirs_are_ready() {
    let other = |ready| InfraSlice { manager: Manager::Other, ..of_infra("a1-others", ready) };
    for (selector, others, may_convert, left) in [
        (false, None, true, 2),
        (false, Some(other(false)), true, 3),
        (true, Some(other(true)), true, 3),
        (false, Some(other(true)), true, 1),
        (false, Some(other(true)), false, 2),
    ] {
        let mut world = World::new(Writer::Ours, false, wanted([endpoint(1, true)]));
        world.carry_out();
        world.slices.push(of_infra("a1-copied", true));
        world.slices.extend(others);
        world.service = service(selector, &["IPv4"]);
        (world.writer, world.may_convert) = (Writer::Others, may_convert);
        let plan = world.plan();
        assert!(plan.steps.iter().all(Step::is_final), "{plan:?}");
        let removes_endpoints = plan.steps.contains(&Step::RemoveEndpoints);
        assert_eq!(removes_endpoints, left == 1, "{plan:?}");
        world.carry_out();
        assert_eq!(world.slices.len(), left, "{:?}", world.slices);
    }
}

/// A single backend that moves from VM to VM, and more endpoints than a slice holds.
#[test]
fn endpoints_stay_in_their_slices_and_many_fill_several() {
    let mut world = World::new(Writer::Ours, false, wanted([endpoint(1, true)]));
    world.carry_out();
    let name = world.slices[0].name.clone();
    world.wanted = wanted([endpoint(2, true)]);
    let steps = world.plan().steps;
    assert!(matches!(&steps[..], [Step::Replace { name: written, .. }] if *written == name), "{steps:?}");
    world.carry_out();

    world.wanted = wanted((0..250).map(|number| endpoint(number, true)));
    assert_eq!(world.carry_out(), 3);
    assert_eq!(world.held().len(), 250);
    world.wanted = wanted((0..250).map(|number| endpoint(number, number != 120)));
    assert_eq!(world.carry_out(), 1, "one endpoint is one slice");
    world.wanted = wanted((0..150).map(|number| endpoint(number, true)));
    world.carry_out();
    assert_eq!((world.slices.len(), world.held().len()), (2, 150));
    world.wanted = wanted([]);
    world.carry_out();
    assert_eq!((world.slices.len(), world.is_ready()), (1, false), "an empty one says that there are none");
}

/// Each family has slices of its own. If the Service no longer has a family, our slices of it are deleted; those of
/// other writers stay.
#[test]
fn slices_are_of_the_services_families() {
    let mut world = World::new(Writer::Ours, false, wanted([endpoint(1, true)]));
    let v6 = Endpoint { address: "fd00::1".parse().unwrap(), ..endpoint(1, true) };
    world.wanted.insert(Family::V6, vec![v6]);
    world.service = service(false, &["IPv4", "IPv6"]);
    assert_eq!(world.carry_out(), 2);
    for slice in &world.slices {
        let content = slice.content.as_ref().unwrap();
        let families = content.endpoints.iter().map(|endpoint| Some(Family::of(endpoint.address)));
        assert!(families.eq([slice.family]), "{slice:?}");
    }
    world.slices.push(InfraSlice {
        manager: Manager::Other,
        family: Some(Family::V6),
        ..of_infra("other", true)
    });
    world.service = service(false, &["IPv4"]);
    assert_eq!(world.carry_out(), 1);
    let names: Vec<_> = world.slices.iter().map(|slice| slice.name.as_str()).collect();
    assert_eq!(names, ["a1-ipv4-0", "other"]);
}

#[test]
fn what_the_reference_left_is_written_over_and_a_former_services_is_left() {
    let mut world = World::new(Writer::Ours, false, wanted([endpoint(1, true)]));
    let left = InfraSlice { manager: Manager::Ours, owner: Some(OWNER.into()), ..of_infra("a1-x7k2p", true) };
    let former = InfraSlice { owner: Some("former".into()), ..left.clone() };
    world.slices = vec![left, InfraSlice { name: "a1-ipv4-0".into(), ..former }];
    let steps = world.plan().steps;
    assert!(matches!(&steps[..], [Step::Replace { name, .. }] if name == "a1-x7k2p"), "{steps:?}");
    world.slices.remove(0);
    let steps = world.plan().steps;
    assert!(matches!(&steps[..], [Step::Create { name, .. }] if name == "a1-ipv4-1"), "{steps:?}");
}

fn some_slices() -> impl Strategy<Value = Vec<InfraSlice>> {
    let ours = prop::collection::vec((0u16..300, any::<bool>()), 0..140).prop_map(|endpoints| {
        let all: Vec<_> = endpoints.into_iter().map(|(number, ready)| endpoint(number, ready)).collect();
        let chunks = all.chunks(MAX_ENDPOINTS).enumerate();
        let slices = chunks.map(|(number, chunk)| InfraSlice {
            manager: Manager::Ours,
            owner: Some(OWNER.into()),
            is_ready: chunk.iter().any(|endpoint| endpoint.conditions.ready),
            content: Some(Content { labels: BTreeMap::new(), ports: Vec::new(), endpoints: chunk.to_vec() }),
            ..of_infra(&format!("a1-ipv4-{number}"), false)
        });
        slices.collect::<Vec<_>>()
    });
    let others = prop::collection::vec((any::<bool>(), any::<bool>()), 0..3).prop_map(|others| {
        let slices = others.into_iter().enumerate().map(|(number, (ready, infra))| InfraSlice {
            manager: if infra { Manager::Infra } else { Manager::Other },
            ..of_infra(&format!("other-{number}"), ready)
        });
        slices.collect::<Vec<_>>()
    });
    (ours, others).prop_map(|(ours, others)| [ours, others].concat())
}

fn some_endpoints() -> impl Strategy<Value = BTreeMap<Family, Vec<Endpoint>>> {
    let all = prop::collection::btree_map(0u16..300, any::<bool>(), 0..300);
    all.prop_map(|all| wanted(all.into_iter().map(|(number, ready)| endpoint(number, ready))))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// After a plan was carried out nothing is left to plan, and the slices of other writers are never touched.
    #[test]
    fn what_was_done_leaves_nothing_to_do(
        slices in some_slices(), wanted in some_endpoints(), selector: bool, may_convert: bool,
        writer in prop::sample::select(vec![Writer::Ours, Writer::Infra, Writer::Others]),
    ) {
        let mut world = World { may_convert, slices, ..World::new(writer, selector, wanted) };
        let others: Vec<_> = world.slices.iter().filter(|it| it.manager == Manager::Other).cloned().collect();
        let mut rounds = 0;
        while world.carry_out() > 0 {
            rounds += 1;
            prop_assert!(rounds <= 2, "it does not settle");
        }
        let after: Vec<_> = world.slices.iter().filter(|it| it.manager == Manager::Other).cloned().collect();
        prop_assert_eq!(others, after);
        if writer == Writer::Ours && !selector {
            let wanted: BTreeSet<_> = world.wanted[&Family::V4].iter().map(|it| it.vm.clone()).collect();
            prop_assert_eq!(world.held(), wanted);
        }
    }

    /// Whatever the configuration is, and in whatever order the controllers act: a Service that has a ready endpoint of
    /// any writer, and ready VMs, never loses its last ready endpoint.
    #[test]
    fn no_handover_leaves_a_gap(
        numbers in prop::collection::btree_set(1u16..250, 1..120),
        turns in prop::collection::vec((any::<bool>(), any::<bool>()), 1..30),
    ) {
        let all = wanted(numbers.into_iter().map(|number| endpoint(number, true)));
        let mut world = World { slices: vec![of_infra("a1-by-selector", true)], ..World::new(Writer::Infra, true, all) };
        for (ours, first) in turns {
            world.writer = if ours { Writer::Ours } else { Writer::Infra };
            for is_turn in [first, !first, first] {
                if is_turn {
                    world.turn();
                    prop_assert!(world.is_ready());
                } else {
                    for step in world.plan().steps {
                        world.apply(&step);
                        prop_assert!(world.is_ready(), "after {step:?}");
                    }
                }
            }
        }
    }
}

/// A policy of infra that labels every object (Kyverno, Gatekeeper, `MutatingAdmissionPolicy`).
#[test]
fn a_label_that_infra_adds_is_no_difference_and_stays() {
    let mut world = World::new(Writer::Ours, true, wanted([endpoint(1, true)]));
    world.slices.push(of_infra("a1-by-selector", true));
    world.carry_out();
    let label = |world: &mut World, key: &str, value: &str| {
        for slice in world.slices.iter_mut().filter(|slice| slice.manager == Manager::Ours) {
            slice.content.as_mut().unwrap().labels.insert(key.into(), value.into());
        }
    };
    label(&mut world, "policy/team", "a");
    let plan = world.plan();
    assert!(plan.steps.is_empty() && plan.is_written, "{plan:?}");
    // A label of ours that another program changed is written again; the others' stays with it.
    label(&mut world, "cluster.x-k8s.io/cluster-name", "other");
    let plan = world.plan();
    let [Step::Replace { content, .. }] = &plan.steps[..] else { panic!("{plan:?}") };
    assert_eq!(content.labels["policy/team"], "a");
    assert_eq!(content.labels["cluster.x-k8s.io/cluster-name"], "guest");
}
