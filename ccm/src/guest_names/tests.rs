//! Names of mirrors, and which infra Services are this guest's.

use super::*;
use crate::{guest::services::GuestService, infra::mirrors::InfraService};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

const UID: &str = "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3";

fn identity() -> Identity {
    Identity {
        cluster: "guest".parse().unwrap(),
        infra_labels: [("team".to_owned(), "blue".to_owned())].into(),
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
