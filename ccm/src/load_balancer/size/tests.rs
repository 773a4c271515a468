//! Which annotations count, on both sides.

use super::*;
use crate::config::policy::{AnnotationPolicy, KeyPattern};
use rstest::rstest;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn guest(annotations: &Value) -> GuestService {
    serde_json::from_value(json!({ "metadata": { "name": "web", "uid": "u", "annotations": annotations } }))
        .unwrap()
}

/// An infra Service with these annotations, of which we or the upstream cloud provider wrote `own`.
fn infra(annotations: &Value, own: &[&str]) -> InfraService {
    let own: BTreeMap<_, _> = own.iter().map(|key| (format!("f:{key}"), json!({}))).collect();
    serde_json::from_value(json!({ "metadata": { "name": "x", "annotations": annotations, "managedFields": [{
        "manager": "kubevirt-cloud-controller-manager", "fieldsV1": { "f:metadata": { "f:annotations": own } } }] } }))
    .unwrap()
}

fn policy() -> GuestPolicy {
    let text = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let annotations = AnnotationPolicy {
        deny: vec![KeyPattern::Exact("denied".to_owned())],
        defaults: text("default", "12345"),
        overrides: text("fixed", "12345"),
        ..AnnotationPolicy::default()
    };
    GuestPolicy { annotations, ..GuestPolicy::default() }
}

#[rstest]
#[case::its_own(json!({"a": "123", "bc": ""}), 6)]
#[case::denied(json!({"denied": "123"}), 0)]
#[case::fixed(json!({"fixed": "12345"}), 0)]
#[case::fixed_otherwise(json!({"fixed": "1"}), 0)]
#[case::as_the_default(json!({"default": "12345"}), 12)]
#[case::kubectls(json!({LAST_APPLIED: "{}"}), 0)]
#[case::ours(json!({SERVICE_UID_ANNOTATION: "u", GUEST_CLUSTER_ANNOTATION: "c", ADOPTED_ANNOTATION: "{}"}), 0)]
#[case::none(json!(null), 0)]
fn the_guests_annotations_that_reach_infra_count(#[case] annotations: Value, #[case] bytes: usize) {
    assert_eq!(Size::asked(&guest(&annotations), &policy()).annotation_bytes, bytes);
}

#[rstest]
#[case::passed_on_before(json!({"a": "123"}), &["a"], json!({}), 4)]
#[case::by_a_manager_that_is_not_recorded(json!({"a": "123"}), &[], json!({"a": "1234567"}), 4)]
#[case::infras(json!({"b": "123"}), &[], json!({"a": "1"}), 0)]
#[case::infras_that_the_guest_may_not_have(json!({"denied": "123"}), &[], json!({"denied": "1"}), 0)]
#[case::of_the_operator(json!({"default": "12345", "fixed": "12345"}), &["default", "fixed"], json!({}), 0)]
#[case::of_the_operator_and_the_guest(json!({"default": "12345"}), &["default"], json!({"default": "12345"}), 12)]
#[case::ours(json!({SERVICE_UID_ANNOTATION: "u"}), &[SERVICE_UID_ANNOTATION], json!({SERVICE_UID_ANNOTATION: "v"}), 0)]
#[case::kubectls(json!({LAST_APPLIED: "{}"}), &[LAST_APPLIED], json!({LAST_APPLIED: "{}"}), 0)]
fn of_what_infra_has_the_guests_annotations_count(
    #[case] annotations: Value,
    #[case] own: &[&str],
    #[case] asked: Value,
    #[case] bytes: usize,
) {
    let size = Size::present(&infra(&annotations, own), &guest(&asked), &policy());
    assert_eq!(size.annotation_bytes, bytes);
}
