//! The index, fed with events as the watches feed it.

use std::collections::HashSet;

use super::*;
use crate::{
    config::policy::GuestPolicy,
    guest::services::FINALIZER,
    load_balancer::{
        plan::{Infra, PlanConfig, Refusal, Step, plan},
        quota::{Counted, Shortage},
    },
    wire::service::ServiceSpec,
};
use futures::FutureExt;
use serde_json::json;

/// An index, and the stores of its watches.
struct Fed {
    index: Index,
    writers: Writers,
}

impl Fed {
    fn new(max: Option<u32>) -> Self {
        Self::with(GuestPolicy { max_load_balancers: max, ..GuestPolicy::default() })
    }

    fn with(policy: GuestPolicy) -> Self {
        let config = PlanConfig { policy: Arc::new(policy), ..config() };
        let (index, writers) = Index::new(&config, "hcp".to_owned());
        let mut fed = Self { index, writers };
        for event in [Event::Init, Event::InitDone] {
            fed.guest(event);
        }
        for event in [Event::Init, Event::InitDone] {
            fed.infra(event);
        }
        fed
    }

    fn guest(&mut self, event: Event<GuestService>) {
        self.writers.guests.apply_watcher_event(&event);
        self.index.guest_event(event);
    }

    fn infra(&mut self, event: Event<InfraService>) {
        self.writers.mirrors.apply_watcher_event(&event);
        self.index.infra_event(event);
    }

    /// The steps for a Service, as far as the quota allows them.
    fn limited(&self, guest: &GuestService) -> Plan {
        self.index.limit(guest, plan(guest, Infra::NotSeen, &config()))
    }
}

fn config() -> PlanConfig {
    let identity =
        GuestLabels { cluster: "guest".parse().unwrap(), infra_labels: [].into(), former: [].into() };
    PlanConfig::of(identity)
}

/// UIDs, which are the names of the Services too.
const U1: &str = "00000000-0000-4000-8000-000000000001";
const U2: &str = "20000000-0000-4000-8000-000000000002";
const U3: &str = "30000000-0000-4000-8000-000000000003";

/// A Service that was created at this second.
fn guest(uid: &str, second: u32) -> GuestService {
    let created = format!("2026-11-21T00:00:{second:02}Z");
    serde_json::from_value(json!({
        "metadata": { "name": uid, "namespace": "shop", "uid": uid, "resourceVersion": "1", "creationTimestamp": created },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80, "nodePort": 30080 }] },
    }))
    .unwrap()
}

fn mirror(of: &str, uid: &str) -> InfraService {
    let labels = config().identity.labels(&guest(of, 0));
    serde_json::from_value(json!({
        "metadata": { "name": infra_name(of), "namespace": "hcp", "uid": uid, "labels": labels,
            "annotations": { crate::guest_names::SERVICE_UID_ANNOTATION: of } },
    }))
    .unwrap()
}

fn named(uids: &[&str]) -> HashSet<ObjectRef<GuestService>> {
    uids.iter().map(|uid| ObjectRef::new(uid).within("shop")).collect()
}

#[test]
fn a_change_of_either_service_reaches_all_and_a_request_the_service_controller_only() {
    let mut fed = Fed::new(None);
    let (due, changes) = (fed.index.due(), fed.index.subscribe());
    fed.guest(Event::Apply(guest(U1, 1)));
    fed.guest(Event::Apply(GuestService { spec: ServiceSpec::default(), ..guest(U2, 2) }));
    assert_eq!((due.take(), changes.take()), (named(&[U1]), named(&[U1])), "u2 asks for no load balancer");
    fed.infra(Event::Apply(mirror(U1, "m1")));
    fed.infra(Event::Apply(mirror(U2, "m2")));
    assert_eq!((due.take(), changes.take()), (named(&[U1]), named(&[U1])));
    fed.index.enqueue(ObjectRef::new(U1).within("shop"));
    assert_eq!((due.take(), changes.take()), (named(&[U1]), named(&[])));
    assert_eq!(fed.index.guest_of(&infra_name(U1)).unwrap().uid(), U1);
    fed.guest(Event::Delete(guest(U1, 1)));
    assert_eq!((due.take(), fed.index.guest_of(&infra_name(U1))).0, named(&[]), "nothing is left to do");
    assert!(fed.index.load_balancers().is_empty());
}

#[test]
fn a_service_that_was_ours_is_reported_until_it_is_gone() {
    let mut fed = Fed::new(None);
    let due = fed.index.due();
    let mut service = guest(U1, 1);
    service.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    service.spec = ServiceSpec::default();
    fed.guest(Event::Apply(service.clone()));
    assert_eq!(due.take(), named(&[U1]), "its finalizer is ours");
    service.metadata.finalizers = None;
    fed.guest(Event::Apply(service));
    assert_eq!(due.take(), named(&[U1]));
    for event in [Event::Init, Event::InitDone] {
        fed.guest(event);
    }
    assert!(fed.index.load_balancers().is_empty(), "it was deleted during a gap in the watch");
}

#[test]
fn infra_is_believed_before_the_watch_shows_it() {
    let (mut fed, name) = (Fed::new(None), infra_name(U1));
    fed.guest(Event::Apply(guest(U1, 1)));
    fed.index.created(&name);
    assert!(fed.index.is_coming(&name).is_some() && fed.index.mirror(&name).is_none());
    fed.infra(Event::Apply(mirror(U1, "m1")));
    assert!(fed.index.is_coming(&name).is_none() && fed.index.mirror(&name).is_some());
    fed.index.deleted(&name, "m1");
    assert!(fed.index.mirror(&name).is_none(), "the watch shows it still");
    fed.infra(Event::Apply(mirror(U1, "m2")));
    assert!(fed.index.mirror(&name).is_some(), "it is another one");
}

#[test]
fn the_guests_answer_to_a_patch_is_waited_for() {
    let mut fed = Fed::new(None);
    let (before, mut after) = (guest(U1, 1), guest(U1, 1));
    fed.guest(Event::Apply(before.clone()));
    after.metadata.resource_version = Some("2".to_owned());
    fed.index.patched(&after);
    assert!(fed.index.is_behind(&before).is_some() && fed.index.is_behind(&after).is_none());
}

#[test]
fn a_place_of_the_quota_goes_to_the_oldest_and_then_to_the_next() {
    let mut fed = Fed::new(Some(1));
    let (older, younger) = (guest(U1, 1), guest(U2, 2));
    fed.guest(Event::Apply(older.clone()));
    fed.guest(Event::Apply(younger.clone()));
    let refused = fed.limited(&younger);
    assert_eq!(
        (refused.steps.len(), refused.refusal),
        (0, Some(Refusal::Quota(vec![Shortage { counted: Counted::LoadBalancers, max: 1 }])))
    );
    let admitted = fed.limited(&older);
    assert!(admitted.steps.iter().any(|step| matches!(step, Step::Create(_))));
    fed.infra(Event::Apply(mirror(U1, "m1")));
    assert!(fed.index.next_places().is_empty());

    fed.guest(Event::Delete(older.clone()));
    fed.infra(Event::Delete(mirror(U1, "m1")));
    assert!(fed.index.place_freed().now_or_never().is_some(), "the controller is told");
    assert_eq!(HashSet::from_iter(fed.index.next_places()), named(&[U2]));
    assert!(fed.limited(&younger).refusal.is_none());
}

#[test]
fn one_whose_try_failed_keeps_no_place_from_others() {
    let mut fed = Fed::new(Some(1));
    let (older, younger) = (guest(U1, 1), guest(U2, 2));
    fed.guest(Event::Apply(older.clone()));
    fed.guest(Event::Apply(younger.clone()));
    assert!(fed.limited(&older).refusal.is_none());
    fed.index.set_aside(U1);
    assert!(fed.limited(&younger).refusal.is_none());
    assert!(fed.limited(&older).refusal.is_some());
}

#[test]
fn without_a_limit_no_place_is_counted() {
    let fed = Fed::new(None);
    let guest = guest(U1, 1);
    assert!(fed.limited(&guest).refusal.is_none() && fed.index.place_freed().now_or_never().is_none());
}

#[test]
fn a_place_that_a_service_got_and_never_used_is_free_when_it_needs_none() {
    let cluster_ip = |service: &GuestService| {
        let mut service = service.clone();
        service.spec = ServiceSpec::default();
        Event::Apply(service)
    };
    let deleting = |service: &GuestService| {
        let mut service = service.clone();
        service.metadata.deletion_timestamp = service.metadata.creation_timestamp.clone();
        Event::Apply(service)
    };
    let gone = |service: &GuestService| Event::Delete(service.clone());
    for end in [cluster_ip, deleting, gone] {
        let mut fed = Fed::new(Some(1));
        let (first, second) = (guest(U1, 1), guest(U2, 2));
        fed.guest(Event::Apply(first.clone()));
        fed.guest(Event::Apply(second.clone()));
        assert!(!fed.limited(&first).steps.is_empty(), "it has the only place");
        assert!(fed.limited(&second).steps.is_empty(), "there is no other");
        // The patch that adds its finalizer fails, and the user changes the Service.
        fed.guest(end(&first));
        assert!(!fed.limited(&second).steps.is_empty());
    }
}

/// A Service with so many ports and source ranges.
fn sized(uid: &str, second: u32, ports: i32, ranges: usize) -> GuestService {
    let mut service = guest(uid, second);
    let port = service.spec.ports.remove(0);
    service.spec.ports = (0..ports)
        .map(|number| crate::wire::service::ServicePort { port: 1 + number, ..port.clone() })
        .collect();
    service.spec.load_balancer_source_ranges = vec!["198.51.100.0/24".to_owned(); ranges];
    service
}

/// Its mirror as infra has it.
fn mirror_of(guest: &GuestService) -> InfraService {
    let mut infra = mirror(guest.uid(), "m");
    infra.spec = config().mirror(guest, None).spec;
    infra
}

fn ports(max: u32) -> GuestPolicy {
    GuestPolicy { max_ports: Some(max), ..GuestPolicy::default() }
}

#[test]
fn ports_and_source_ranges_are_counted_over_all_services() {
    let ranges = GuestPolicy { max_source_ranges: Some(10), ..GuestPolicy::default() };
    for (policy, old, fits, too_much) in
        [(ports(10), (6, 0), (4, 9), (5, 0)), (ranges, (1, 6), (9, 4), (1, 5))]
    {
        let mut fed = Fed::with(policy);
        let old = sized(U1, 1, old.0, old.1);
        fed.guest(Event::Apply(old.clone()));
        fed.infra(Event::Apply(mirror_of(&old)));
        let (fits, too_much) = (sized(U3, 3, fits.0, fits.1), sized(U2, 2, too_much.0, too_much.1));
        fed.guest(Event::Apply(too_much.clone()));
        fed.guest(Event::Apply(fits.clone()));
        let refused = fed.limited(&too_much);
        assert!(
            refused.steps.is_empty() && matches!(refused.refusal, Some(Refusal::Quota(_))),
            "{refused:?}"
        );
        assert!(fed.limited(&fits).refusal.is_none(), "an older one that does not fit holds it up");
        assert!(fed.index.next_places().is_empty());
        fed.guest(Event::Delete(old.clone()));
        fed.infra(Event::Delete(mirror_of(&old)));
        assert_eq!(HashSet::from_iter(fed.index.next_places()), named(&[U2]));
    }
}

/// One that exists may not grow beyond the quota, and what it was refused does not change it.
#[test]
fn a_service_that_exists_grows_within_the_quota_only() {
    let mut fed = Fed::with(ports(10));
    let (first, second) = (sized(U1, 1, 4, 0), sized(U2, 2, 4, 0));
    for service in [&first, &second] {
        fed.guest(Event::Apply(service.clone()));
        fed.infra(Event::Apply(mirror_of(service)));
    }
    let grown = |fed: &mut Fed, uid, second, ports, before: &GuestService| {
        let grown = sized(uid, second, ports, 0);
        fed.guest(Event::Apply(grown.clone()));
        let present = mirror_of(before);
        fed.index.limit(&grown, plan(&grown, Infra::Present(&present), &config()))
    };
    let refused = grown(&mut fed, U2, 2, 7, &second);
    assert!(matches!(refused.refusal, Some(Refusal::Quota(_))), "{refused:?}");
    assert!(!refused.steps.iter().any(|step| matches!(step, Step::Replace(..))), "{refused:?}");
    assert!(refused.steps.contains(&Step::AddFinalizer), "its mirror exists");
    let larger = grown(&mut fed, U1, 1, 6, &first);
    assert!(larger.steps.iter().any(|step| matches!(step, Step::Replace(..))) && larger.refusal.is_none());
    // What was promised to the first is not given to the second, before the watch shows it.
    assert!(grown(&mut fed, U2, 2, 5, &second).refusal.is_some());
    assert!(grown(&mut fed, U2, 2, 3, &second).refusal.is_none(), "less is always allowed");
}

/// A Service above the limits is refused whatever is left: it takes no place from the next.
#[test]
fn a_service_above_a_limit_takes_no_place() {
    let annotated = {
        let mut service = guest(U1, 1);
        service.metadata.annotations = Some([("a".to_owned(), "x".repeat(70_000))].into());
        service
    };
    for large in [sized(U1, 1, 101, 0), sized(U1, 1, 1, 101), annotated] {
        let mut fed = Fed::new(Some(1));
        let small = guest(U2, 2);
        fed.guest(Event::Apply(large.clone()));
        fed.guest(Event::Apply(small.clone()));
        assert!(matches!(fed.limited(&large).refusal, Some(Refusal::TooLarge(_))));
        assert!(fed.limited(&small).refusal.is_none());
    }
}

/// Set aside because it was too large, a Service that asks for less has to wait for the place of another, and gets it.
#[test]
fn a_service_that_was_set_aside_gets_the_place_for_which_it_waits() {
    let mut fed = Fed::new(Some(1));
    let (holder, large) = (guest(U2, 2), sized(U1, 1, 101, 0));
    for service in [&holder, &large] {
        fed.guest(Event::Apply(service.clone()));
    }
    fed.infra(Event::Apply(mirror_of(&holder)));
    assert!(matches!(fed.limited(&large).refusal, Some(Refusal::TooLarge(_))));
    fed.index.set_aside(U1);
    let small = sized(U1, 1, 1, 0);
    fed.guest(Event::Apply(small.clone()));
    assert!(matches!(fed.limited(&small).refusal, Some(Refusal::Quota(_))));
    fed.guest(Event::Delete(holder.clone()));
    fed.infra(Event::Delete(mirror_of(&holder)));
    assert_eq!(HashSet::from_iter(fed.index.next_places()), named(&[U1]));
}

/// One that had got a place and became too large before it was made gives the place back.
#[test]
fn a_service_that_became_too_large_gives_its_place_back() {
    let mut fed = Fed::new(Some(1));
    let (first, second) = (guest(U1, 1), guest(U2, 2));
    fed.guest(Event::Apply(first.clone()));
    fed.guest(Event::Apply(second.clone()));
    assert!(fed.limited(&first).refusal.is_none());
    let mut large = sized(U1, 1, 101, 0);
    large.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    fed.guest(Event::Apply(large));
    fed.index.set_aside(U1);
    assert!(fed.limited(&second).refusal.is_none());
}

/// A Service that was deleted during a gap in the watch has no event of its own.
#[tokio::test(start_paused = true)]
async fn what_was_answered_about_a_service_that_vanished_in_a_gap_is_not_kept() {
    let mut fed = Fed::new(None);
    let (gone, stays) = (guest(U1, 0), guest(U2, 0));
    for service in [&gone, &stays] {
        fed.guest(Event::Apply(service.clone()));
        fed.index.created(&infra_name(service.uid()));
        let mut now = service.clone();
        now.metadata.resource_version = Some("2".to_owned());
        fed.index.patched(&now);
    }
    for event in [Event::Init, Event::InitApply(stays.clone()), Event::InitDone] {
        fed.guest(event);
    }
    let is_known = |service: &GuestService| {
        let name = infra_name(service.uid());
        (fed.index.is_coming(&name).is_some(), fed.index.is_behind(service).is_some())
    };
    assert_eq!((is_known(&gone), is_known(&stays)), ((false, false), (true, true)));
}
