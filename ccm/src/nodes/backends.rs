//! Which Nodes of the guest may be backends of load balancers: the framework's rule (k8s.io/cloud-provider v0.34,
//! `controllers/service`, `stableNodeSetPredicates`), and one reason of our own. Pure. The rule does not consider
//! whether a Node is ready.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::collections::BTreeMap;

use crate::guest::nodes::GuestNode;

/// Label: the Node takes no traffic of load balancers, unless Go parses the value as false.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Taint: the cluster autoscaler is about to remove the Node.
pub const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// The texts that Go's `strconv.ParseBool` parses as false. A value that it can't parse excludes the Node.
const FALSE_WORDS: [&str; 6] = ["0", "f", "F", "false", "FALSE", "False"];

/// Why a Node is no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// It is being deleted.
    Deleting,
    /// It has [`EXCLUDE_LABEL`].
    Label,
    /// It has [`AUTOSCALER_TAINT`].
    Autoscaler,
    /// No cloud provider has initialised it, so nothing serves node ports on it yet. The framework counts such a Node
    /// among those that it reports to the users of a Service; only our endpoints leave it out.
    Uninitialized,
}

/// The Nodes that the framework counts: `providerID` by name.
pub type NodeSet = BTreeMap<String, String>;

/// Why this Node is no backend. `None` = it may be one.
pub fn exclusion(node: &GuestNode) -> Option<Exclusion> {
    if node.deleting {
        Some(Exclusion::Deleting)
    } else if node.labels.get(EXCLUDE_LABEL).is_some_and(|value| !FALSE_WORDS.contains(&value.as_str())) {
        Some(Exclusion::Label)
    } else if node.has_taint(AUTOSCALER_TAINT) {
        Some(Exclusion::Autoscaler)
    } else if node.is_uninitialized() {
        Some(Exclusion::Uninitialized)
    } else {
        None
    }
}

/// Whether the framework counts this Node.
pub fn is_counted(node: &GuestNode) -> bool {
    exclusion(node).is_none_or(|reason| reason == Exclusion::Uninitialized)
}

/// Updates the set by the Node with this name as it is now; `None` = it is gone. True = the set has changed.
pub fn update(set: &mut NodeSet, name: &str, now: Option<&GuestNode>) -> bool {
    match now.filter(|node| is_counted(node)).map(|node| &node.claims.provider_id) {
        Some(id) => set.insert(name.to_owned(), id.clone()).as_ref() != Some(id),
        None => set.remove(name).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::nodes::{UNINITIALIZED_TAINT, WireNode};
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    fn node(label: Option<&str>, taint_key: Option<&str>, deleting: bool) -> GuestNode {
        let labels = label.map(|value| json!({ EXCLUDE_LABEL: value }));
        let deleted = deleting.then_some("2026-11-21T00:00:00Z");
        let taints: Vec<_> =
            taint_key.into_iter().map(|key| json!({ "key": key, "effect": "NoSchedule" })).collect();
        let wire = json!({ "metadata": { "name": "n", "labels": labels, "deletionTimestamp": deleted },
            "spec": { "providerID": "kubevirt://n", "taints": taints } });
        GuestNode::from(&serde_json::from_value::<WireNode>(wire).unwrap())
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
    #[case::uninitialized(None, Some(UNINITIALIZED_TAINT), false, Some(Exclusion::Uninitialized))]
    #[case::label_and_uninitialized(Some(""), Some(UNINITIALIZED_TAINT), false, Some(Exclusion::Label))]
    fn the_rule(
        #[case] label: Option<&str>,
        #[case] taint: Option<&str>,
        #[case] deleting: bool,
        #[case] expected: Option<Exclusion>,
    ) {
        let node = node(label, taint, deleting);
        assert_eq!(exclusion(&node), expected);
        let (mut set, counts) = (NodeSet::new(), matches!(expected, None | Some(Exclusion::Uninitialized)));
        assert_eq!((is_counted(&node), update(&mut set, "n", Some(&node))), (counts, counts));
        assert_eq!(set.get("n").map(String::as_str), counts.then_some("kubevirt://n"));
    }

    #[test]
    fn the_set_changes_with_its_nodes_and_their_ids_only() {
        let mut set = NodeSet::new();
        let there = node(None, None, false);
        assert!(update(&mut set, "n", Some(&there)));
        assert!(!update(&mut set, "n", Some(&there)));
        let mut renamed = there.clone();
        renamed.claims.provider_id = "kubevirt://m".to_owned();
        assert!(update(&mut set, "n", Some(&renamed)));
        assert!(update(&mut set, "n", Some(&node(Some(""), None, false))), "it is excluded now");
        assert!(!update(&mut set, "n", None));
    }

    proptest! {
        /// Nothing that kubelet reports about the health of a Node changes the set.
        #[test]
        fn only_the_reasons_exclude(taint in "[a-z./]{1,20}", label in proptest::option::of("(false|0|f)")) {
            prop_assert_eq!(exclusion(&node(label.as_deref(), Some(&taint), false)), None);
        }
    }
}
