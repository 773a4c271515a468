//! What is proved to be a left-over, and all cases that are not.

use super::*;
use crate::{
    cluster_name::DEFAULT_CLUSTER_NAME,
    guest::services::FINALIZER,
    guest_names::{CLUSTER_NAME_LABEL, SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL, SERVICE_UID_ANNOTATION},
};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

const UID: &str = "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3";
const OTHER_UID: &str = "ffffffff-9f3b-4a6d-8c21-6b1de0a9f7c3";
const CLUSTER_UID: &str = "c1a52000-0000-4000-8000-000000000000";

fn identity(cluster: &str) -> GuestLabels {
    GuestLabels {
        cluster: cluster.parse().unwrap(),
        infra_labels: [("team".to_owned(), "blue".to_owned())].into(),
        former: [].into(),
    }
}

fn infra(cluster: &str, change: &Value) -> InfraService {
    let mut object = json!({ "metadata": {
        "name": infra_name(UID),
        "labels": { CLUSTER_NAME_LABEL: cluster, SERVICE_NAME_LABEL: "web", SERVICE_NAMESPACE_LABEL: "shop", "team": "blue" },
        "annotations": { SERVICE_UID_ANNOTATION: UID, GUEST_CLUSTER_ANNOTATION: CLUSTER_UID },
    } });
    for (pointer, value) in change.as_object().into_iter().flatten() {
        let (parent, key) = pointer.rsplit_once('|').unwrap();
        let parent = object.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value.is_null() {
            parent.remove(key)
        } else {
            parent.insert(key.to_owned(), value.clone())
        };
    }
    serde_json::from_value(object).unwrap()
}

fn guest(uid: &str, kind: &str, finalizer: bool) -> GuestService {
    let finalizers = if finalizer { vec![FINALIZER] } else { Vec::new() };
    let metadata = json!({ "name": "web", "namespace": "shop", "uid": uid, "finalizers": finalizers });
    serde_json::from_value(json!({ "metadata": metadata, "spec": { "type": kind } })).unwrap()
}

fn judged(infra: &InfraService, answer: Answer<'_>, seen_before: bool) -> Classification {
    let identity = identity("guest");
    judge(infra, answer, Observed { identity: &identity, guest_cluster: Some(CLUSTER_UID), seen_before })
}

#[test]
fn what_the_guest_does_not_have_is_a_left_over() {
    let marked = infra("guest", &json!({}));
    assert_eq!(judged(&marked, Answer::Absent, false), Classification::LeftOver);
    let another = guest(OTHER_UID, "LoadBalancer", true);
    assert_eq!(judged(&marked, Answer::Present(&another), false), Classification::LeftOver);
}

#[rstest]
#[case("LoadBalancer", false, Classification::Stays)]
#[case("LoadBalancer", true, Classification::Stays)]
#[case("ClusterIP", true, Classification::Stays)]
#[case("ClusterIP", false, Classification::LeftOver)]
fn a_service_that_is_there_decides(
    #[case] kind: &str,
    #[case] finalizer: bool,
    #[case] wanted: Classification,
) {
    let own = guest(UID, kind, finalizer);
    assert_eq!(judged(&infra("guest", &json!({})), Answer::Present(&own), true), wanted);
}

#[rstest]
#[case::other_cluster(json!({"/metadata/labels|cluster.x-k8s.io/cluster-name": "other"}))]
#[case::other_team(json!({"/metadata/labels|team": "red"}))]
#[case::no_team(json!({"/metadata/labels|team": null}))]
#[case::no_service(json!({"/metadata/labels|cluster.x-k8s.io/tenant-service-name": null}))]
#[case::no_namespace(json!({"/metadata/labels|cluster.x-k8s.io/tenant-service-namespace": ""}))]
#[case::other_name(json!({"/metadata|name": "ingress"}))]
#[case::name_of_another_uid(json!({"/metadata/annotations|cluster.x-k8s.io/tenant-service-uid": OTHER_UID}))]
#[case::going(json!({"/metadata|deletionTimestamp": "2026-11-21T00:00:00Z"}))]
fn what_is_not_ours_in_everything_stays(#[case] change: Value) {
    assert_eq!(judged(&infra("guest", &change), Answer::Absent, true), Classification::Stays);
}

#[test]
fn a_guest_of_the_same_name_has_another_mark() {
    let change = json!({"/metadata/annotations|cluster.x-k8s.io/tenant-cluster-uid": OTHER_UID});
    assert!(matches!(judged(&infra("guest", &change), Answer::Absent, true), Classification::Unproved(_)));
    let identity = identity("guest");
    let known = Observed { identity: &identity, guest_cluster: None, seen_before: true };
    let classification = judge(&infra("guest", &json!({})), Answer::Absent, known);
    assert!(matches!(classification, Classification::Unproved(_)), "who the guest is must be known");
}

#[test]
fn what_the_reference_left_is_believed_at_the_second_look_and_under_a_name_of_its_own() {
    let change = json!({"/metadata/annotations|cluster.x-k8s.io/tenant-cluster-uid": null,
        "/metadata/annotations|cluster.x-k8s.io/tenant-service-uid": null});
    let unmarked = infra("guest", &change);
    assert!(matches!(judged(&unmarked, Answer::Absent, false), Classification::Unproved(_)));
    assert_eq!(judged(&unmarked, Answer::Absent, true), Classification::LeftOver);
    let unnamed = identity(DEFAULT_CLUSTER_NAME);
    let known = Observed { identity: &unnamed, guest_cluster: Some(CLUSTER_UID), seen_before: true };
    let classification = judge(&infra(DEFAULT_CLUSTER_NAME, &change), Answer::Absent, known);
    assert!(matches!(classification, Classification::Unproved(_)));
}

proptest! {
    /// Whatever the answer is, another cluster's Service is never a left-over of ours.
    #[test]
    fn another_clusters_is_never_one(
        cluster in "[a-z]{1,8}", team in "[a-z]{1,5}", seen_before: bool, present: bool, uid in "[0-9a-f]{8}",
    ) {
        prop_assume!(cluster != "guest" || team != "blue");
        let foreign = infra(&cluster, &json!({"/metadata/labels|team": team}));
        let own = guest(&uid, "ClusterIP", false);
        let answer = if present { Answer::Present(&own) } else { Answer::Absent };
        prop_assert_eq!(judged(&foreign, answer, seen_before), Classification::Stays);
    }
}
