//! Each case by name, and the properties of the patch.

use super::*;
use crate::{config::policy::Withheld, load_balancer::mirror::Refused};
use proptest::prelude::*;
use rstest::rstest;

fn guest(kind: &str, shown: bool) -> GuestService {
    let ingress = if shown { json!([{ "ip": "192.0.2.1" }]) } else { json!([]) };
    let guest = json!({ "metadata": { "name": "web", "uid": "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3" },
        "spec": { "type": kind }, "status": { "loadBalancer": { "ingress": ingress } } });
    serde_json::from_value(guest).unwrap()
}

fn waits(wait: Wait) -> Plan {
    Plan { waits_for: Some(wait), ..Plan::default() }
}

fn refuses(refusal: Refusal) -> Plan {
    Plan { refusal: Some(refusal), ..Plan::default() }
}

#[rstest]
#[case::done(Plan::default(), true, false, ("True", "Provisioned"), ("True", "Serving"))]
#[case::waits(waits(Wait::Address), false, false, ("False", "Pending"), ("False", "NotProvisioned"))]
#[case::waits_long(waits(Wait::Address), false, true, ("False", "NoAddress"), ("False", "NotProvisioned"))]
#[case::goes(waits(Wait::Deletion), true, false, ("False", "Deleting"), ("False", "NotProvisioned"))]
#[case::quota(refuses(Refusal::Quota(Vec::new())), false, false, ("False", "QuotaExceeded"), ("False", "NotProvisioned"))]
#[case::too_large(refuses(Refusal::TooLarge(Vec::new())), false, false, ("False", "TooLarge"), ("False", "NotProvisioned"))]
#[case::too_large_serves_on(refuses(Refusal::TooLarge(Vec::new())), true, false, ("True", "TooLarge"), ("True", "Serving"))]
#[case::no_port(refuses(Refusal::NoNodePort(80)), false, false, ("False", "NoNodePort"), ("False", "NotProvisioned"))]
#[case::serves_on(refuses(Refusal::NoNodePort(80)), true, false, ("True", "NoNodePort"), ("True", "Serving"))]
fn each_state_has_its_reason(
    #[case] plan: Plan,
    #[case] shown: bool,
    #[case] overdue: bool,
    #[case] provisioned: (&str, &str),
    #[case] serving: (&str, &str),
) {
    let said = conditions(&guest("LoadBalancer", shown), &plan, overdue, Backends::Nodes);
    let said: Vec<_> = said.iter().map(|said| (said.status, said.reason)).collect();
    assert_eq!(said, [provisioned, serving]);
}

#[rstest]
#[case(Backends::Unknown, "Unknown", "NodesUnknown")]
#[case(Backends::Elsewhere, "Unknown", "EndpointsElsewhere")]
#[case(Backends::NoNodes, "False", "NoNodes")]
#[case(Backends::Nodes, "True", "Serving")]
fn what_traffic_goes_to_decides_whether_it_serves(
    #[case] backends: Backends,
    #[case] status: &str,
    #[case] reason: &str,
) {
    let said = conditions(&guest("LoadBalancer", true), &Plan::default(), false, backends);
    assert_eq!((said[1].status, said[1].reason), (status, reason));
    let early = conditions(&guest("LoadBalancer", false), &waits(Wait::Address), false, Backends::NoNodes);
    assert_eq!(early[1].reason, NO_NODES, "told at once, as the framework does");
}

#[test]
fn an_address_that_the_plan_brings_counts() {
    let ingress = serde_json::from_value(json!([{ "ip": "192.0.2.1" }])).unwrap();
    let mut plan = refuses(Refusal::NoNodePort(80));
    plan.steps.push(Step::SetStatus(ingress));
    assert_eq!(conditions(&guest("LoadBalancer", false), &plan, false, Backends::Nodes)[0].status, "True");
}

#[test]
fn what_was_refused_is_told_while_the_rest_serves() {
    let refused = Refused::Policy(Withheld::Annotations(vec!["x".to_owned()]));
    let plan = Plan { refused: vec![refused], ..Plan::default() };
    let said = &conditions(&guest("LoadBalancer", true), &plan, false, Backends::Nodes)[0];
    assert_eq!((said.status, said.reason), ("True", "PartlyRefused"));
    assert!(said.message.contains("annotations x"), "{}", said.message);
}

#[test]
fn no_load_balancer_has_no_conditions() {
    assert_eq!(conditions(&guest("ClusterIP", false), &Plan::default(), false, Backends::Nodes), []);
    let plan = Plan { steps: vec![Step::RemoveFinalizer], ..Plan::default() };
    assert_eq!(conditions(&guest("LoadBalancer", false), &plan, false, Backends::Nodes), []);
}

/// What the API server does with the entries of a patch.
fn apply(present: &[Condition], patch: &[Value]) -> Vec<Condition> {
    let mut after = present.to_vec();
    for entry in patch {
        after.retain(|condition| json!(condition.kind) != entry["type"]);
        if entry.get("$patch").is_none() {
            after.push(serde_json::from_value(entry.clone()).unwrap());
        }
    }
    after
}

fn text(second: u8) -> String {
    format!("2026-11-21T00:00:{second:02}Z")
}

fn time(second: u8) -> Time {
    serde_json::from_value(json!(text(second))).unwrap()
}

prop_compose! {
    fn wanted()(
        kinds in proptest::sample::subsequence(vec![PROVISIONED, SERVING], 0..=2),
        status in prop_oneof![Just(TRUE), Just(FALSE), Just(UNKNOWN)],
        reason in prop_oneof![Just("A"), Just("B")],
        message in "[a-c]{0,2}",
    ) -> Vec<WantedCondition> {
        kinds.into_iter().map(|kind| WantedCondition { kind, status, reason, message: message.clone() }).collect()
    }
}

proptest! {
    #[test]
    fn a_patch_makes_what_is_wanted_and_leaves_nothing_to_write(
        stories in proptest::collection::vec(wanted(), 1..6), foreign in proptest::collection::vec("[a-z]{3}/X", 0..2),
    ) {
        let other = |kind: &String| Condition { kind: kind.clone(), status: TRUE.into(), reason: "R".into(),
            last_transition_time: Some(text(0)), message: String::new() };
        let mut present: Vec<_> = foreign.iter().map(other).collect();
        for (second, story) in (1u8..).zip(stories) {
            let after = apply(&present, &patch(&present, &story, &time(second)));
            prop_assert!(patch(&after, &story, &time(59)).is_empty());
            prop_assert_eq!(after.iter().filter(|condition| is_ours(condition)).count(), story.len());
            for kind in &foreign {
                prop_assert!(after.contains(&other(kind)), "{} is not ours to change", kind);
            }
            for condition in after.iter().filter(|condition| is_ours(condition)) {
                let before = present.iter().find(|before| before.kind == condition.kind);
                let kept = before.filter(|before| before.status == condition.status);
                let since = kept.map_or(Some(text(second)), |kept| kept.last_transition_time.clone());
                prop_assert_eq!(&condition.last_transition_time, &since);
            }
            present = after;
        }
    }
}
