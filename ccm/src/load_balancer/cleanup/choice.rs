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
        CLUSTER_NAME_LABEL, GUEST_CLUSTER_ANNOTATION, GuestLabels, SERVICE_NAME_LABEL,
        SERVICE_NAMESPACE_LABEL, SERVICE_UID_ANNOTATION, annotation, label,
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
    /// Its labels are former ones of this guest, which another guest may have today, and nothing else proves it.
    #[error(
        "it carries a former label of this guest, as formerLabels has it, which another guest may have too; it is proved to be \
         this guest's only if the guest's API server answers and has its Service, or the UID with which it is marked; delete \
         it by hand if it is this guest's, or take the value out of formerLabels"
    )]
    FormerLabel,
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

/// Chooses among the infra Services with the cluster's name, or a former one. `guest` is what the guest answered; without
/// it all marks must name one guest.
pub(super) fn choose(
    found: Vec<Readable<Labelled>>,
    identity: &GuestLabels,
    guest: Option<&Guest>,
) -> Choice {
    let mut choice = Choice::default();
    let mut mirrors = Vec::new();
    for infra in found {
        match infra.0 {
            Err(odd) => {
                let (name, why) = (odd.name().to_owned(), Why::Unreadable(odd.error));
                choice.left.push(Left { name, why });
            }
            Ok(infra) if identity.owned(&infra) => mirrors.push(infra),
            Ok(infra) if identity.is_anothers(&infra) || !has_marks(&infra) => {}
            Ok(infra) => choice.left.push(Left { name: described(&infra), why: Why::Contradictory }),
        }
    }
    let marks = Marks::of(&mirrors, identity, guest);
    for mirror in mirrors {
        match marks.doubt(&mirror, identity, guest) {
            None => choice.own.push(mirror),
            Some(why) => choice.left.push(Left { name: described(&mirror), why }),
        }
    }
    choice
}

/// The cluster marks of the mirrors.
#[derive(Debug, Default)]
struct Marks {
    /// Those of the mirrors that have today's labels.
    present: BTreeSet<String>,
    /// Those of the mirrors whose Services the guest has.
    proved: BTreeSet<String>,
}

impl Marks {
    fn of(mirrors: &[Labelled], identity: &GuestLabels, guest: Option<&Guest>) -> Self {
        let mut marks = Self::default();
        for mirror in mirrors {
            let Some(mark) = mark(mirror) else { continue };
            if identity.owns(mirror) {
                marks.present.insert(mark.to_owned());
            }
            if guest.is_some_and(|guest| guest.has(mirror)) {
                marks.proved.insert(mark.to_owned());
            }
        }
        marks
    }

    /// Why this one, which has the labels of this guest or former ones, is not proved to be its mirror.
    fn doubt(&self, mirror: &Labelled, identity: &GuestLabels, guest: Option<&Guest>) -> Option<Why> {
        let mark = mark(mirror);
        let is_former = !identity.owns(mirror);
        match (guest, mark) {
            (None, _) if self.present.len() > 1 => Some(Why::SeveralGuests(self.present.len())),
            (None, Some(mark)) if is_former && self.present.contains(mark) => None,
            (None, _) if is_former => Some(Why::FormerLabel),
            (Some(guest), None) if is_former && !guest.has(mirror) => Some(Why::FormerLabel),
            (None, _) | (_, None) => None,
            (Some(guest), Some(mark)) if mark == guest.uid || self.proved.contains(mark) => None,
            (Some(guest), Some(mark)) => {
                Some(Why::OtherGuest { marked: mark.to_owned(), answered: guest.uid.clone() })
            }
        }
    }
}

impl Guest {
    /// Whether the guest has the Service that this mirror is for.
    fn has(&self, mirror: &Labelled) -> bool {
        self.mirror_names.contains(key(mirror).0)
    }
}

/// Whether it has the name of a cluster, and any mark that only a mirror has. Other programs make Services with the
/// cluster's name too: Cluster API's provider for KubeVirt makes that of the control plane.
fn has_marks(infra: &Labelled) -> bool {
    let has_label = |key: &str| label(infra, key).is_some();
    let has_annotation = |key: &str| annotation(infra, key).is_some();
    has_label(CLUSTER_NAME_LABEL)
        && ([SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL].into_iter().any(has_label)
            || [SERVICE_UID_ANNOTATION, GUEST_CLUSTER_ANNOTATION].into_iter().any(has_annotation))
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
    match (label(infra, SERVICE_NAMESPACE_LABEL), label(infra, SERVICE_NAME_LABEL)) {
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

    fn identity() -> GuestLabels {
        GuestLabels {
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

    /// Mirrors that the cluster left under another name, or without one, before `formerLabels` has been told to the running
    /// program. Another guest of the namespace may have that name today.
    #[rstest]
    #[case::its_service_is_there("old", None, Some(guest("g", &[0])), true)]
    #[case::unnamed_and_its_service_is_there("", None, Some(guest("g", &[0])), true)]
    #[case::marked_as_this_guest_s("old", Some("g"), Some(guest("g", &[])), true)]
    #[case::marked_before_kubernetes_was_made_anew("old", Some("o"), Some(guest("new", &[0])), true)]
    #[case::without_a_service("old", None, Some(guest("g", &[])), false)]
    #[case::unnamed_without_a_service("", None, Some(guest("g", &[])), false)]
    #[case::marked_as_another_s("old", Some("h"), Some(guest("g", &[])), false)]
    #[case::a_silent_guest("old", None, None, false)]
    #[case::a_silent_guest_and_a_mark("old", Some("g"), None, false)]
    fn what_a_former_name_left_is_deleted_if_it_is_proved(
        #[case] name: &str,
        #[case] mark: Option<&str>,
        #[case] guest: Option<Guest>,
        #[case] is_own: bool,
    ) {
        let mut left = mirror(0, mark);
        left["metadata"]["labels"]["tier"] = json!("silver");
        match name {
            "" => drop(left["metadata"]["labels"].as_object_mut().unwrap().remove(CLUSTER_NAME_LABEL)),
            name => left["metadata"]["labels"][CLUSTER_NAME_LABEL] = json!(name),
        }
        let former = [(CLUSTER_NAME_LABEL, vec!["old", ""]), ("tier", vec!["silver"])];
        let texts = |all: Vec<&str>| all.into_iter().map(str::to_owned).collect();
        let former = former.into_iter().map(|(key, all)| (key.to_owned(), texts(all))).collect();
        let identity = GuestLabels { former, ..identity() };
        let found = || vec![serde_json::from_value(left.clone()).unwrap()];
        let choice = choose(found(), &identity, guest.as_ref());
        assert_eq!((choice.own.len(), choice.left.len()), if is_own { (1, 0) } else { (0, 1) }, "{choice:?}");
        let not_told = choose(found(), &self::identity(), guest.as_ref());
        assert!(not_told.own.is_empty() && not_told.left.is_empty(), "another guest's: {not_told:?}");
    }

    /// One of today's labels is marked: the guest is silent, and the mark tells whose the other is.
    #[test]
    fn a_mark_of_today_s_mirrors_proves_those_of_a_former_label() {
        let mut former = mirror(1, Some("g"));
        former["metadata"]["labels"]["tier"] = json!("silver");
        let identity =
            GuestLabels { former: [("tier".to_owned(), vec!["silver".to_owned()])].into(), ..identity() };
        let found = [mirror(0, Some("g")), former].map(|infra| serde_json::from_value(infra).unwrap());
        assert_eq!(choose(found.into(), &identity, None).own.len(), 2);
    }

    #[test]
    fn the_control_plane_s_service_is_nobody_s_mirror() {
        let other = json!({"metadata": {"name": "c-lb", "labels": {"cluster.x-k8s.io/cluster-name": "c", "tier": "gold"}}});
        let choice = chosen(&[other], None);
        assert!(choice.own.is_empty() && choice.left.is_empty(), "{choice:?}");
    }
}
