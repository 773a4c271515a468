//! The guard: which infra objects belong to this guest, by all infra labels and the volume prefix. It prevents
//! CVE-2024-1725.

use std::{collections::BTreeMap, ops::Deref};

use kubevirt::{ObjectName, is_dns_label};

use crate::json_patch::{PatchOp, label_path};

/// Longest volume prefix: `<prefix>-` and a 32-character hash make a DNS label of at most 63.
pub const MAX_PREFIX_LENGTH: usize = 30;

/// An object that the guard can check.
pub trait Guarded {
    /// Its name.
    fn name(&self) -> &str;
    /// Its labels.
    fn labels(&self) -> &BTreeMap<String, String>;
}

/// The labels and the prefix that make an object ours.
#[derive(Clone, Debug)]
pub struct GuestGuard {
    labels: BTreeMap<String, String>,
    prefix: String,
}

/// Proof that an object passed the guard. Only [`GuestGuard::admit`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned<T>(T);

impl<T> Owned<T> {
    /// Returns the object without the proof.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// The object does not belong to this guest. The text is that of kubevirt/csi-driver, whose e2e tests search events for
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid volume name")]
pub struct Foreign;

/// The snapshot does not belong to this guest. The text is that of kubevirt/csi-driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid snapshot name")]
pub struct ForeignSnapshot;

/// A guard can't be made from these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// Labels are missing or malformed; without them every volume of the namespace would count as ours.
    #[error("infra labels {text:?} are not key=value pairs separated by commas; set --infra-cluster-labels")]
    Labels {
        /// What was given.
        text: String,
    },
    /// The prefix is missing or can't be used in names.
    #[error(
        "volume prefix {prefix:?} is not a DNS label of 1 to {MAX_PREFIX_LENGTH} characters; set --volume-prefix"
    )]
    Prefix {
        /// What was given.
        prefix: String,
    },
}

impl GuestGuard {
    /// A guard of `labels` (at least one) and `prefix` (a DNS label).
    pub fn new(labels: BTreeMap<String, String>, prefix: &str) -> Result<Self, GuardError> {
        if labels.is_empty() {
            return Err(GuardError::Labels { text: String::new() });
        }
        if !is_dns_label(prefix) || prefix.len() > MAX_PREFIX_LENGTH {
            return Err(GuardError::Prefix { prefix: prefix.to_owned() });
        }
        Ok(Self { labels, prefix: prefix.to_owned() })
    }

    /// Parses `key=value,key=value` (the form of `--infra-cluster-labels`).
    pub fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, GuardError> {
        let malformed = || GuardError::Labels { text: text.to_owned() };
        let mut labels = BTreeMap::new();
        for pair in text.split(',') {
            let (key, value) = pair.split_once('=').ok_or_else(malformed)?;
            let (key, value) = (key.trim(), value.trim());
            if key.is_empty() || value.contains('=') || labels.insert(key.into(), value.into()).is_some() {
                return Err(malformed());
            }
        }
        Ok(labels)
    }

    /// The labels that each of our objects carries.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// The prefix, without the dash that follows it in names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether a volume of ours may have this name.
    pub fn admits_name(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('-'))
    }

    /// The name of a volume that may be ours; every other id is refused.
    pub fn volume_name(&self, id: &str) -> Result<ObjectName, Foreign> {
        if self.admits_name(id) { ObjectName::parse(id).ok_or(Foreign) } else { Err(Foreign) }
    }

    /// Checks an object's labels and prefix.
    pub fn admit<T: Guarded>(&self, object: T) -> Result<Owned<T>, Foreign> {
        if self.has_our_labels(&object) && self.admits_name(object.name()) {
            Ok(Owned(object))
        } else {
            Err(Foreign)
        }
    }

    /// Checks the labels of a snapshot. Its name has the prefix of the sidecar's setting `--snapshot-name-prefix`, which
    /// is not known here; kubevirt/csi-driver does not check it either.
    pub fn admit_snapshot<T: Guarded>(&self, snapshot: T) -> Result<Owned<T>, ForeignSnapshot> {
        if self.has_our_labels(&snapshot) { Ok(Owned(snapshot)) } else { Err(ForeignSnapshot) }
    }

    fn has_our_labels<T: Guarded>(&self, object: &T) -> bool {
        self.labels.iter().all(|(key, value)| object.labels().get(key) == Some(value))
    }

    /// The guard as JSON patch tests, with which the infra API refuses the whole patch on an object without our labels.
    pub fn label_tests(&self) -> Vec<PatchOp> {
        self.labels.iter().map(|(key, value)| PatchOp::test(label_path(key), value.as_str())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    struct Thing(&'static str, BTreeMap<String, String>);
    impl Guarded for Thing {
        fn name(&self) -> &str {
            self.0
        }
        fn labels(&self) -> &BTreeMap<String, String> {
            &self.1
        }
    }

    fn labels(text: &str) -> BTreeMap<String, String> {
        GuestGuard::parse_labels(text).unwrap()
    }

    #[rstest]
    #[case("pvc-1", "a=1,b=2", true)]
    #[case("pvc-1", "a=1,b=2,c=3", true)]
    #[case("pvc-1", "a=1", false)]
    #[case("pvc-1", "a=1,b=other", false)]
    #[case("pvc1", "a=1,b=2", false)]
    #[case("pvc", "a=1,b=2", false)]
    #[case("other-1", "a=1,b=2", false)]
    fn ours_needs_all_labels_and_the_prefix(
        #[case] name: &'static str,
        #[case] has: &str,
        #[case] ours: bool,
    ) {
        let guard = GuestGuard::new(labels("a=1,b=2"), "pvc").unwrap();
        assert_eq!(guard.admit(Thing(name, labels(has))).is_ok(), ours);
    }

    #[rstest]
    #[case("snapshot-1", "a=1,b=2,c=3", true)]
    #[case("any", "a=1,b=2", true)]
    #[case("snapshot-1", "a=1", false)]
    fn a_snapshot_of_ours_needs_all_labels(
        #[case] name: &'static str,
        #[case] has: &str,
        #[case] ours: bool,
    ) {
        let guard = GuestGuard::new(labels("a=1,b=2"), "pvc").unwrap();
        assert_eq!(guard.admit_snapshot(Thing(name, labels(has))).is_ok(), ours);
    }

    #[rstest]
    #[case("")]
    #[case("a")]
    #[case("a=1,")]
    #[case("=1")]
    #[case("a=1=2")]
    #[case("a=1,a=2")]
    fn malformed_labels_are_refused(#[case] text: &str) {
        assert!(GuestGuard::parse_labels(text).is_err());
    }

    #[test]
    fn a_guard_without_labels_or_prefix_is_refused() {
        assert!(GuestGuard::new(BTreeMap::new(), "pvc").is_err());
        assert!(GuestGuard::new(labels("a=1"), "").is_err());
        assert!(GuestGuard::new(labels("a=1"), &"p".repeat(MAX_PREFIX_LENGTH + 1)).is_err());
        assert!(GuestGuard::new(labels("a=1"), "Pvc").is_err());
    }

    #[test]
    fn the_refusal_has_the_text_of_the_reference() {
        assert_eq!(Foreign.to_string(), "invalid volume name");
        assert_eq!(ForeignSnapshot.to_string(), "invalid snapshot name");
    }
}
