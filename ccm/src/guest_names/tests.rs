//! Names of mirrors, and which infra Services are this guest's.

use super::*;
use crate::{guest::services::GuestService, infra::mirrors::InfraService};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

const UID: &str = "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3";

fn identity() -> GuestLabels {
    GuestLabels {
        cluster: "guest".parse().unwrap(),
        infra_labels: [("team".to_owned(), "blue".to_owned())].into(),
        former: FormerLabels::new(),
    }
}

fn guest() -> GuestService {
    let guest = json!({ "metadata": { "name": "web", "namespace": "shop", "uid": UID } });
    serde_json::from_value(guest).unwrap()
}

fn infra(labels: &serde_json::Value, annotations: &serde_json::Value) -> InfraService {
    let metadata = json!({ "name": infra_name(UID), "labels": labels, "annotations": annotations });
    serde_json::from_value(json!({ "metadata": metadata })).unwrap()
}

#[test]
fn the_name_is_the_references() {
    // cloudprovider.DefaultLoadBalancerName: "a" + UID without dashes, the first 32 characters.
    assert_eq!(infra_name(UID), "a0e4c1a529f3b4a6d8c216b1de0a9f7c");
}

#[test]
fn the_labels_are_the_references_and_the_operators_win() {
    let mut identity = identity();
    identity.infra_labels.insert(CLUSTER_NAME_LABEL.to_owned(), "renamed".to_owned());
    let labels = identity.labels(&guest());
    assert_eq!(labels[SERVICE_NAME_LABEL], "web");
    assert_eq!(labels[SERVICE_NAMESPACE_LABEL], "shop");
    assert_eq!((labels[CLUSTER_NAME_LABEL].as_str(), labels["team"].as_str()), ("renamed", "blue"));
    // The selector selects VMs, which do not have the operator's labels of Services.
    assert_eq!(identity.selector()[CLUSTER_NAME_LABEL], "guest");
}

#[rstest]
#[case::an_earlier_name(json!({CLUSTER_NAME_LABEL: "kubernetes", SERVICE_NAME_LABEL: "web"}), &[], true)]
#[case::an_edited_label(json!({CLUSTER_NAME_LABEL: "guest", "team": "green"}), &[], true)]
#[case::both(json!({CLUSTER_NAME_LABEL: "kubernetes", "team": "green"}), &[], true)]
#[case::neither_now_nor_before(json!({CLUSTER_NAME_LABEL: "other"}), &[], false)]
#[case::a_value_of_another_label(json!({CLUSTER_NAME_LABEL: "green"}), &[], false)]
#[case::no_name(json!({}), &[], false)]
#[case::no_name_as_before(json!({}), &[(CLUSTER_NAME_LABEL, "")], true)]
#[case::another_service_of_the_earlier_name(json!({CLUSTER_NAME_LABEL: "kubernetes", SERVICE_NAME_LABEL: "api"}), &[(SERVICE_NAME_LABEL, "api")], false)]
fn what_the_operator_says_was_ours_is_ours(
    #[case] labels: serde_json::Value,
    #[case] further: &[(&str, &str)],
    #[case] ours: bool,
) {
    let infra = infra(&labels, &json!({}));
    assert!(identity().check(&guest(), &infra).is_err(), "nothing is taken that the operator does not name");
    let mut identity = identity();
    for (key, value) in [(CLUSTER_NAME_LABEL, "kubernetes"), ("team", "green")].iter().chain(further) {
        identity.former.entry((*key).to_owned()).or_default().push((*value).to_owned());
    }
    assert_eq!(identity.check(&guest(), &infra).is_ok(), ours);
}

#[rstest]
#[case::as_we_write_it(json!({CLUSTER_NAME_LABEL: "guest", "team": "blue"}), json!({SERVICE_UID_ANNOTATION: UID}), true)]
#[case::as_the_reference_left_it(json!({CLUSTER_NAME_LABEL: "guest", SERVICE_NAME_LABEL: "web"}), json!({}), true)]
#[case::label_lost(json!({}), json!({SERVICE_UID_ANNOTATION: UID}), true)]
#[case::says_nothing(json!({}), json!({}), false)]
#[case::a_clone_under_another_name(json!({CLUSTER_NAME_LABEL: "other"}), json!({SERVICE_UID_ANNOTATION: UID}), false)]
#[case::another_team(json!({CLUSTER_NAME_LABEL: "guest", "team": "red"}), json!({}), false)]
#[case::another_service(json!({CLUSTER_NAME_LABEL: "guest", SERVICE_NAME_LABEL: "api"}), json!({}), false)]
#[case::another_uid(json!({CLUSTER_NAME_LABEL: "guest"}), json!({SERVICE_UID_ANNOTATION: "0e4c1a52-0"}), false)]
fn what_says_another_value_is_not_ours(
    #[case] labels: serde_json::Value,
    #[case] annotations: serde_json::Value,
    #[case] ours: bool,
) {
    let checked = identity().check(&guest(), &infra(&labels, &annotations));
    assert_eq!(checked.is_ok(), ours, "{checked:?}");
}

proptest! {
    #[test]
    fn a_service_of_another_cluster_is_never_ours(
        cluster in "[a-z]{1,10}", name in "[a-z]{1,5}", with_uid: bool,
    ) {
        prop_assume!(cluster != "guest");
        let annotations = if with_uid { json!({ SERVICE_UID_ANNOTATION: UID }) } else { json!({}) };
        let labels = json!({ CLUSTER_NAME_LABEL: cluster, SERVICE_NAME_LABEL: name });
        prop_assert!(identity().check(&guest(), &infra(&labels, &annotations)).is_err());
    }
}
