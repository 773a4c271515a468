//! Which Nodes of the guest take traffic of load balancers, by the framework's rule (k8s.io/cloud-provider v0.34,
//! `controllers/service`, `stableNodeSetPredicates`). Pure. The rule does not consider whether a Node is ready.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Label: the Node takes no traffic of load balancers, unless Go parses the value as false.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Taint: the cluster autoscaler is about to remove the Node.
pub const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// The texts that Go's `strconv.ParseBool` parses as false. A value that it can't parse excludes the Node.
const FALSE_WORDS: [&str; 6] = ["0", "f", "F", "false", "FALSE", "False"];

/// Why a Node takes no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// It is being deleted.
    Deleting,
    /// It has [`EXCLUDE_LABEL`].
    Label,
    /// It has [`AUTOSCALER_TAINT`].
    Autoscaler,
}

/// The Nodes that take traffic: `providerID` by name.
pub type NodeSet = BTreeMap<String, String>;

/// Why this Node takes no traffic. `None` = it takes traffic.
pub fn exclusion(metadata: &ObjectMeta, taints: &[Taint]) -> Option<Exclusion> {
    exclusion_by(metadata.deletion_timestamp.is_some(), metadata.labels.as_ref(), taints)
}

/// The same, from only these properties of a Node.
pub fn exclusion_by(
    deleting: bool,
    labels: Option<&BTreeMap<String, String>>,
    taints: &[Taint],
) -> Option<Exclusion> {
    let excluded = labels.and_then(|labels| labels.get(EXCLUDE_LABEL));
    if deleting {
        Some(Exclusion::Deleting)
    } else if excluded.is_some_and(|value| !FALSE_WORDS.contains(&value.as_str())) {
        Some(Exclusion::Label)
    } else if taints.iter().any(|taint| taint.key == AUTOSCALER_TAINT) {
        Some(Exclusion::Autoscaler)
    } else {
        None
    }
}

/// The Nodes that take traffic, of all Nodes: metadata, taints and `providerID` of each.
pub fn node_set<'a>(all: impl IntoIterator<Item = (&'a ObjectMeta, &'a [Taint], &'a str)>) -> NodeSet {
    let usable = all.into_iter().filter(|(metadata, taints, _)| exclusion(metadata, taints).is_none());
    usable.map(|(metadata, _, id)| (metadata.name.clone().unwrap_or_default(), id.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    fn node(label: Option<&str>, taint_key: Option<&str>, deleting: bool) -> (ObjectMeta, Vec<Taint>) {
        let labels = label.map(|value| json!({ EXCLUDE_LABEL: value }));
        let deleted = deleting.then_some("2026-11-21T00:00:00Z");
        let metadata = json!({ "name": "n", "labels": labels, "deletionTimestamp": deleted });
        let taint =
            |key: &str| Taint { key: key.to_owned(), effect: "NoSchedule".into(), ..Taint::default() };
        (serde_json::from_value(metadata).unwrap(), taint_key.map(taint).into_iter().collect())
    }

    #[rstest]
    #[case::plain(None, None, false, None)]
    #[case::label(Some(""), None, false, Some(Exclusion::Label))]
    #[case::label_true(Some("true"), None, false, Some(Exclusion::Label))]
    #[case::label_not_understood(Some("no"), None, false, Some(Exclusion::Label))]
    #[case::label_false(Some("false"), None, false, None)]
    #[case::label_f(Some("F"), None, false, None)]
    #[case::autoscaler(None, Some(AUTOSCALER_TAINT), false, Some(Exclusion::Autoscaler))]
    #[case::other_taint(None, Some("node.kubernetes.io/not-ready"), false, None)]
    #[case::deleting(None, None, true, Some(Exclusion::Deleting))]
    fn the_frameworks_rule(
        #[case] label: Option<&str>,
        #[case] taint: Option<&str>,
        #[case] deleting: bool,
        #[case] wanted: Option<Exclusion>,
    ) {
        let (metadata, taints) = node(label, taint, deleting);
        assert_eq!(exclusion(&metadata, &taints), wanted);
        let set = node_set([(&metadata, taints.as_slice(), "kubevirt://n")]);
        assert_eq!(set.get("n").map(String::as_str), wanted.is_none().then_some("kubevirt://n"));
    }

    proptest! {
        /// Nothing that kubelet reports about the health of a Node changes the set.
        #[test]
        fn only_the_three_reasons_exclude(taint in "[a-z./]{1,20}", label in proptest::option::of("(false|0|f)")) {
            let (metadata, taints) = node(label.as_deref(), Some(&taint), false);
            prop_assert_eq!(exclusion(&metadata, &taints), None);
        }
    }
}
