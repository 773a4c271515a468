//! Reconciles of a Service over an infra cluster that answers from a table. What counts is which calls they make. Where
//! another program writes the endpoints, it is what the former writers left (kubernetes#118376).

use super::*;
use crate::{
    endpoints::{
        fixture::{OTHERS_WRITE, RIGHTS, SLICES, UID, World, slice, slices},
        rights::ASK_AGAIN,
        watches::Follow,
    },
    fake_api::failure,
    handover::EndpointChoice,
    infra::{
        machines::Vmi,
        slices::{MIRROR_MANAGER, OUR_MANAGER, SELECTOR_MANAGER, WireSlice},
    },
};
use rstest::rstest;
use serde_json::{Value, json};

/// The manager of the other program's slices.
const OTHER: &str = "hosting-system";

/// A session that has seen `shown`; infra has `present`, and answers each delete.
fn following(world: &World, may_convert: bool, shown: &[Value], present: &[Value]) -> Arc<Session> {
    let session = world.session(may_convert);
    for slice in shown {
        session.put(serde_json::from_value::<WireSlice>(slice.clone()).unwrap());
    }
    world.infra.answer(SLICES, 200, slices(present));
    let done = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
    for slice in present {
        let name = slice["metadata"]["name"].as_str().unwrap();
        world.infra.answer(&delete_of(name), 200, done.clone());
    }
    world.infra.answer(&delete_of_endpoints(), 200, done);
    session
}

fn delete_of(slice: &str) -> String {
    format!("DELETE /apis/discovery.k8s.io/v1/namespaces/hcp/endpointslices/{slice}")
}

fn delete_of_endpoints() -> String {
    format!("DELETE /api/v1/namespaces/hcp/endpoints/{}", infra_name(UID))
}

/// Names of what was deleted, in order.
fn deleted(world: &World) -> Vec<String> {
    let name = |made: crate::fake_api::Made| made.call.rsplit('/').next().unwrap_or_default().to_owned();
    world.infra.made("DELETE").into_iter().map(name).collect()
}

/// The watch shows only slices with this guest's labels, so it never shows the other program's: they are read.
#[tokio::test]
async fn what_the_former_writers_left_goes_when_another_program_s_slice_is_ready() {
    let world = World::new(OTHERS_WRITE, &json!({}), &json!({}));
    let former = [("ours", OUR_MANAGER), ("copied", MIRROR_MANAGER), ("selected", SELECTOR_MANAGER)]
        .map(|(name, manager)| slice(name, manager, true));
    let mut present = former.to_vec();
    present.push(slice("other", OTHER, true));
    let session = following(&world, true, &former, &present);
    let next = reconcile(world.service(), Arc::clone(&session)).await.unwrap();
    assert_eq!(next, Action::await_change());
    assert_eq!(deleted(&world), ["ours", infra_name(UID).as_str(), "copied", "selected"]);
    let uids: Vec<_> = world
        .infra
        .made("DELETE")
        .into_iter()
        .map(|made| made.body["preconditions"]["uid"].clone())
        .collect();
    assert_eq!(uids, [json!("uid-ours"), Value::Null, json!("uid-copied"), json!("uid-selected")]);
    reconcile(world.service(), session).await.unwrap();
    assert_eq!(world.infra.made("DELETE").len(), 4, "nothing is left to do");
}

/// Whatever is not proved keeps what is there: a Service is never left without endpoints.
#[rstest]
#[case::the_other_is_not_ready(json!({}), json!({}), &[slice("other", OTHER, false)], Some(LEFT_BEHIND_INTERVAL))]
#[case::there_is_no_other(json!({}), json!({}), &[], Some(LEFT_BEHIND_INTERVAL))]
#[case::it_has_a_selector(json!({"selector": {"a": "b"}}), json!({}), &[slice("other", OTHER, true)], Some(LEFT_BEHIND_INTERVAL))]
#[case::another_guest_s(json!({}), json!({"cluster.x-k8s.io/cluster-name": "b"}), &[slice("other", OTHER, true)], None)]
#[tokio::test]
async fn nothing_goes_before_another_program_serves(
    #[case] spec: Value,
    #[case] labels: Value,
    #[case] others: &[Value],
    #[case] again: Option<Duration>,
) {
    let world = World::new(OTHERS_WRITE, &spec, &labels);
    let former = slice("selected", SELECTOR_MANAGER, true);
    let present: Vec<_> = std::iter::once(former.clone()).chain(others.iter().cloned()).collect();
    let session = following(&world, true, &[former], &present);
    let next = reconcile(world.service(), session).await.unwrap();
    assert_eq!(next, again.map_or_else(Action::await_change, Action::requeue));
    assert_eq!(deleted(&world), Vec::<String>::new());
}

/// What the watch showed is not what infra has: no left-over, or no Service any more.
#[rstest]
#[case::left_overs_are_gone(&[slice("other", OTHER, true)], 200)]
#[case::the_service_is_gone(&[slice("selected", SELECTOR_MANAGER, true), slice("other", OTHER, true)], 404)]
#[tokio::test]
async fn what_is_deleted_is_read_first(#[case] present: &[Value], #[case] service: u16) {
    let world = World::new(OTHERS_WRITE, &json!({}), &json!({}));
    let session = following(&world, true, &[slice("selected", SELECTOR_MANAGER, true)], present);
    if service == 404 {
        let (code, body) = failure(404, "NotFound", &json!({"name": infra_name(UID), "kind": "services"}));
        world.infra.answer(&format!("GET /api/v1/namespaces/hcp/services/{}", infra_name(UID)), code, body);
    }
    reconcile(world.service(), session).await.unwrap();
    assert_eq!(deleted(&world), Vec::<String>::new());
}

/// The right may be granted at any time: while a session lasts, it is asked for again.
#[tokio::test(start_paused = true)]
async fn a_right_that_is_granted_later_is_used() {
    let world = World::new(OTHERS_WRITE, &json!({}), &json!({}));
    world.grants(false);
    let former = slice("selected", SELECTOR_MANAGER, true);
    let session = following(
        &world,
        false,
        std::slice::from_ref(&former),
        &[former.clone(), slice("other", OTHER, true)],
    );
    reconcile(world.service(), Arc::clone(&session)).await.unwrap();
    assert_eq!(deleted(&world), Vec::<String>::new(), "without the right they stay");
    let asks = async |minutes: u32| {
        drop(tokio::time::timeout(ASK_AGAIN * minutes, session.keep_asking_to_convert()).await);
    };
    asks(10).await;
    assert!(!session.may_convert());
    assert!((9..=10).contains(&world.infra.made("POST").len()), "{:?}", world.infra.made("POST"));
    session.due.take();
    world.grants(true);
    asks(2).await;
    assert!(session.may_convert());
    assert_eq!(session.due.take().len(), 1, "all Services are reconciled with it");
    reconcile(world.service(), session).await.unwrap();
    assert_eq!(deleted(&world), [infra_name(UID).as_str(), "selected"]);
}

/// A policy of infra may refuse what RBAC allows. That ends neither the session nor what it does besides.
#[tokio::test(start_paused = true)]
async fn a_refused_deletion_of_endpoints_ends_nothing_and_is_tried_again() {
    let world = World::new(OTHERS_WRITE, &json!({}), &json!({}));
    world.grants(true);
    let former = slice("selected", SELECTOR_MANAGER, true);
    let session = following(
        &world,
        true,
        std::slice::from_ref(&former),
        &[former.clone(), slice("other", OTHER, true)],
    );
    let (code, body) = failure(403, "Forbidden", &json!({}));
    world.infra.answer(&delete_of_endpoints(), code, body);
    reconcile(world.service(), Arc::clone(&session)).await.unwrap();
    assert_eq!(deleted(&world), [infra_name(UID)], "the slices that infra would make again stay");
    assert!(session.refused.borrow().is_none() && !session.may_convert());
    drop(tokio::time::timeout(ASK_AGAIN * 2, session.keep_asking_to_convert()).await);
    assert!(session.may_convert());
    assert!(world.infra.made("POST").iter().all(|made| made.call == RIGHTS));
}

/// A Service whose finalizer was removed by hand has no last reconcile.
#[tokio::test(start_paused = true)]
async fn nothing_is_kept_of_a_service_that_vanished() {
    let mut world = World::new(OTHERS_WRITE, &json!({}), &json!({}));
    let session = world.session(true);
    session.backoff.failed(UID);
    world.context.gate.set(crate::handover::Work::On);
    world.context.gate.wrote(UID, true);
    world.context.metrics.count(UID, Some(Count { ready: 1, unready: 0 }));
    let forget = async || {
        drop(tokio::time::timeout(Duration::from_mins(2), session.keep_forgetting()).await);
    };
    forget().await;
    assert!(!session.backoff.is_empty(), "it is there");
    assert_eq!(world.context.gate.slices(UID), crate::handover::Slices::Written);
    world.lose_service();
    forget().await;
    assert!(session.backoff.is_empty());
    assert_eq!(world.context.gate.slices(UID), crate::handover::Slices::Coming);
    let (mut registry, mut text) = (prometheus_client::registry::Registry::default(), String::new());
    world.context.metrics.register(&mut registry);
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("kubevirt_ccm_endpoint_services{state=\"ready\"} 0\n"), "{text}");
}

/// A program of infra changes a slice whenever it is written: to something that we could write, and to what we never would.
#[rstest]
#[case::another_port(json!([]))]
#[case::endpoints_that_are_no_vm(json!([{"addresses": ["10.0.0.7"]}]))]
#[case::several_addresses(json!([{"addresses": ["10.0.0.7", "10.0.0.8"], "targetRef": {"name": "w1", "uid": "v"}}]))]
#[tokio::test(start_paused = true)]
async fn a_slice_that_another_program_writes_over_is_repaired_ever_more_slowly_and_the_service_is_told(
    #[case] endpoints: Value,
) {
    let all = EndpointChoice { selectorless: false, slices_for_local: false, slices_for_all: true };
    let world = World::new(all, &json!({}), &json!({}));
    world.context.index.replace(Vec::<Vmi>::new());
    let name = format!("{}-ipv4-0", infra_name(UID));
    let mut odd = slice(&name, OUR_MANAGER, true);
    odd["endpoints"] = endpoints;
    odd["ports"][0]["port"] = json!(9);
    odd["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Service", "name": "m", "uid": "m1", "controller": true}]);
    odd["metadata"]["managedFields"] =
        json!([{"manager": "meddler", "operation": "Update", "time": "2026-11-21T00:00:00Z"}]);
    let session = following(&world, true, std::slice::from_ref(&odd), &[]);
    let call = format!("PUT /apis/discovery.k8s.io/v1/namespaces/hcp/endpointslices/{name}");
    world.infra.answer(&call, 200, odd);
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let next = reconcile(world.service(), Arc::clone(&session)).await.unwrap();
        let seconds = 2_u64.pow(u32::try_from(pauses.len()).unwrap());
        assert_eq!(next, Action::requeue(Duration::from_secs(seconds)));
        pauses.push(seconds);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    assert_eq!(world.infra.made("PUT").len(), 5, "one for each");
    let events = world.guest.made("POST");
    assert!(
        events.iter().any(|made| made.body["reason"] == "LoadBalancerContested"
            && made.body["message"].as_str().unwrap().starts_with("meddler changes the endpoint slice")),
        "{events:?}"
    );
}
