//! Which infra Services `--cleanup` deletes, and why each other one that carries this guest's marks stays. Pure.
//!
//! Deleted is only what is proved to be this guest's: all labels, the name and the annotations of a mirror, and a
//! cluster mark that is this guest's. The cluster mark is the UID of the guest's Service `default/kubernetes`, which the
//! guest's users can delete; the API server then makes another. So a mark that is not the UID of today still counts if
//! the guest has a Service whose mirror has that mark: the UID of a Service, which names its mirror, is never given
//! twice.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use k8s_openapi::api::core::v1::Service;
use kube::{Resource, api::ObjectMeta};
use serde::Deserialize;

use crate::{
    guest_names::{
        GUEST_CLUSTER_ANNOTATION, Identity, SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL,
        SERVICE_UID_ANNOTATION, annotation,
    },
    unreadable::Readable,
    wire::metadata::lean_metadata,
};

/// An infra Service, of which only the metadata count. So one whose spec or status can't be read is cleaned up too.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Service")]
pub(super) struct Labelled {
    /// Name, UID, labels and annotations.
    #[serde(deserialize_with = "lean_metadata")]
    pub metadata: ObjectMeta,
}

/// What the guest's API answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Guest {
    /// The UID of the guest cluster.
    pub uid: String,
    /// The names that the mirrors of its Services have.
    pub mirror_names: HashSet<String>,
}

/// What to do with the infra Services of a cluster name.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    /// Those that are proved to be this guest's.
    pub own: Vec<Labelled>,
    /// Those that stay although they carry this guest's name and marks.
    pub left: Vec<Left>,
}

/// One that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// Its name, with that of the Service that it served.
    pub name: String,
    /// Why it stays.
    pub why: Why,
}

/// Why one stays, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Why {
    /// Not even its metadata can be read.
    #[error("it can't be read ({0}); delete it by hand if it is this guest's")]
    Unreadable(String),
    /// It has some marks of a mirror, and others contradict them.
    #[error(
        "its name, labels and annotations are not those that a mirror of this guest has; delete it by hand if it is"
    )]
    Contradictory,
    /// The guest's API answers another UID, and nothing proves that the mark is an earlier one of the same guest.
    #[error(
        "it is marked as guest cluster {marked}'s, and the guest's API server answers as {answered}; if no other guest of \
         this name uses the namespace, run again with --cleanup-force"
    )]
    OtherGuest {
        /// The mark.
        marked: String,
        /// The UID that the guest answered.
        answered: String,
    },
    /// The marks are those of several guests, and nothing tells which of them is meant.
    #[error(
        "the infra services are those of {0} guest clusters of one name; to tell them apart, the guest's own API server has \
         to answer, and --cleanup-force must not be set"
    )]
    SeveralGuests(usize),
    /// It appeared while the others were deleted.
    #[error(
        "it was made while the others were deleted, so a cloud controller manager of this guest runs; stop it, and run again"
    )]
    MadeAgain,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.why)
    }
}

/// Chooses among the infra Services with the cluster's name. `guest` is what the guest answered; without it all marks
/// must name one guest.
pub(super) fn choose(found: Vec<Readable<Labelled>>, identity: &Identity, guest: Option<&Guest>) -> Choice {
    let mut choice = Choice::default();
    let mut mirrors = Vec::new();
    for infra in found {
        match infra.0 {
            Err(odd) => {
                let (name, why) = (odd.name().to_owned(), Why::Unreadable(odd.error));
                choice.left.push(Left { name, why });
            }
            Ok(infra) if identity.owns(&infra) => mirrors.push(infra),
            Ok(infra) if is_anothers(&infra, identity) || !has_marks(&infra) => {}
            Ok(infra) => choice.left.push(Left { name: described(&infra), why: Why::Contradictory }),
        }
    }
    let marks: BTreeSet<String> = mirrors.iter().filter_map(mark).map(str::to_owned).collect();
    let proved: HashSet<String> = match guest {
        Some(guest) => {
            mirrors.iter().filter(|mirror| guest.has(mirror)).filter_map(mark).map(str::to_owned).collect()
        }
        None => HashSet::new(),
    };
    for mirror in mirrors {
        let why = match (guest, mark(&mirror)) {
            (None, _) if marks.len() > 1 => Some(Why::SeveralGuests(marks.len())),
            (None, _) | (_, None) => None,
            (Some(guest), Some(mark)) if mark == guest.uid || proved.contains(mark) => None,
            (Some(guest), Some(mark)) => {
                Some(Why::OtherGuest { marked: mark.to_owned(), answered: guest.uid.clone() })
            }
        };
        match why {
            None => choice.own.push(mirror),
            Some(why) => choice.left.push(Left { name: described(&mirror), why }),
        }
    }
    choice
}

impl Guest {
    /// Whether the guest has the Service that this mirror is for.
    fn has(&self, mirror: &Labelled) -> bool {
        self.mirror_names.contains(key(mirror).0)
    }
}

/// Whether a label names another guest: the cluster's name and the operator's labels are a guest's identity.
fn is_anothers(infra: &Labelled, identity: &Identity) -> bool {
    let labels = infra.metadata.labels.as_ref();
    identity
        .common_labels()
        .iter()
        .any(|(key, value)| labels.and_then(|labels| labels.get(key)).is_some_and(|found| found != value))
}

/// Whether it has any mark that only a mirror has. Other programs make Services with the cluster's name too: Cluster
/// API's provider for KubeVirt makes that of the control plane.
fn has_marks(infra: &Labelled) -> bool {
    let labels = infra.metadata.labels.as_ref();
    [SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL]
        .iter()
        .any(|key| labels.is_some_and(|all| all.contains_key(*key)))
        || [SERVICE_UID_ANNOTATION, GUEST_CLUSTER_ANNOTATION]
            .iter()
            .any(|key| annotation(infra, key).is_some())
}

fn mark(infra: &Labelled) -> Option<&str> {
    annotation(infra, GUEST_CLUSTER_ANNOTATION)
}

/// Name and UID.
pub(super) fn key(infra: &Labelled) -> (&str, &str) {
    let ObjectMeta { name, uid, .. } = &infra.metadata;
    (name.as_deref().unwrap_or_default(), uid.as_deref().unwrap_or_default())
}

/// Its name, with the name of the Service that it served.
pub(super) fn described(infra: &Labelled) -> String {
    let label = |key: &str| infra.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    match (label(SERVICE_NAMESPACE_LABEL), label(SERVICE_NAME_LABEL)) {
        (Some(namespace), Some(name)) => format!("{} (of {namespace}/{name})", key(infra).0),
        _ => key(infra).0.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_names::infra_name;
    use rstest::rstest;
    use serde_json::{Value, json};

    /// The UID of the guest's Service with this number.
    fn uid(number: usize) -> String {
        format!("00000000-0000-4000-8000-0000000000{number}0")
    }

    fn identity() -> Identity {
        Identity {
            cluster: "c".parse().unwrap(),
            infra_labels: [("tier".to_owned(), "gold".to_owned())].into(),
            former: [].into(),
        }
    }

    /// The mirror of the Service with this number.
    fn mirror(number: usize, mark: Option<&str>) -> Value {
        json!({"metadata": {"name": infra_name(&uid(number)), "uid": number.to_string(),
            "labels": {"cluster.x-k8s.io/cluster-name": "c", "tier": "gold",
                "cluster.x-k8s.io/tenant-service-name": "web", "cluster.x-k8s.io/tenant-service-namespace": "ns"},
            "annotations": mark.map(|mark| json!({ GUEST_CLUSTER_ANNOTATION: mark }))}})
    }

    fn chosen(found: &[Value], guest: Option<&Guest>) -> Choice {
        let found = found.iter().map(|infra| serde_json::from_value(infra.clone()).unwrap()).collect();
        choose(found, &identity(), guest)
    }

    fn guest(uid_now: &str, services: &[usize]) -> Guest {
        let mirror_names = services.iter().map(|number| infra_name(&uid(*number))).collect();
        Guest { uid: uid_now.to_owned(), mirror_names }
    }

    #[rstest]
    #[case::its_own(Some(guest("g", &[])), &[Some("g"), None], 2, 0)]
    #[case::beside_another(Some(guest("g", &[])), &[Some("g"), Some("h")], 1, 1)]
    #[case::silent_and_one(None, &[Some("g"), None, Some("g")], 3, 0)]
    #[case::silent_and_two(None, &[Some("g"), Some("h"), None], 0, 3)]
    #[case::only_anothers(Some(guest("g", &[])), &[Some("h"), Some("h")], 0, 2)]
    #[case::kubernetes_was_made_anew(Some(guest("new", &[1])), &[Some("old"), Some("old")], 2, 0)]
    #[case::made_anew_and_partly_marked_again(Some(guest("new", &[1])), &[Some("new"), Some("old")], 2, 0)]
    #[case::made_anew_beside_another(Some(guest("new", &[0])), &[Some("old"), Some("old"), Some("h")], 2, 1)]
    #[case::unmarked_services_prove_nothing(Some(guest("g", &[1])), &[Some("h"), None], 1, 1)]
    fn a_guest_of_the_same_name_loses_nothing(
        #[case] guest: Option<Guest>,
        #[case] marks: &[Option<&str>],
        #[case] own: usize,
        #[case] left: usize,
    ) {
        let found: Vec<_> = marks.iter().enumerate().map(|(number, mark)| mirror(number, *mark)).collect();
        let choice = chosen(&found, guest.as_ref());
        assert_eq!((choice.own.len(), choice.left.len()), (own, left), "{choice:?}");
    }

    /// A Job runs again after a failure. What was left the first time is not taken for ours because it is alone now.
    #[test]
    fn a_second_run_keeps_what_the_first_left() {
        let guest = guest("g", &[]);
        let found = [mirror(0, Some("g")), mirror(1, Some("h"))];
        assert_eq!(chosen(&found, Some(&guest)).own.len(), 1);
        let again = chosen(&found[1..], Some(&guest));
        assert!(again.own.is_empty());
        let why = Why::OtherGuest { marked: "h".into(), answered: "g".into() };
        let name = format!("{} (of ns/web)", infra_name(&uid(1)));
        assert_eq!(again.left, [Left { name, why }]);
        assert!(again.left[0].to_string().contains("--cleanup-force"));
    }

    #[rstest]
    #[case::spec_that_nobody_reads("/spec", json!(7), true, 0)]
    #[case::status_that_nobody_reads("/status", json!({"conditions": [{"lastTransitionTime": null}]}), true, 0)]
    #[case::another_name("/metadata/name", json!("web"), false, 1)]
    #[case::another_operator_label("/metadata/labels/tier", json!("silver"), false, 0)]
    #[case::a_lost_label("/metadata/labels/tier", Value::Null, false, 1)]
    #[case::labels_that_are_none("/metadata/labels", json!("odd"), false, 1)]
    #[case::another_service_s_uid("/metadata/annotations", json!({SERVICE_UID_ANNOTATION: "other"}), false, 1)]
    fn what_carries_our_marks_is_deleted_or_named(
        #[case] path: &str,
        #[case] value: Value,
        #[case] is_own: bool,
        #[case] left: usize,
    ) {
        let mut infra = mirror(0, Some("g"));
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = infra.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
        if value.is_null() {
            drop(parent.remove(key));
        } else {
            drop(parent.insert(key.to_owned(), value));
        }
        let choice = chosen(&[infra], Some(&guest("g", &[])));
        assert_eq!((choice.own.len() == 1, choice.left.len()), (is_own, left), "{choice:?}");
    }

    #[test]
    fn the_control_plane_s_service_is_nobody_s_mirror() {
        let other = json!({"metadata": {"name": "c-lb", "labels": {"cluster.x-k8s.io/cluster-name": "c", "tier": "gold"}}});
        let choice = chosen(&[other], None);
        assert!(choice.own.is_empty() && choice.left.is_empty(), "{choice:?}");
    }
}
