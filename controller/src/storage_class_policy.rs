//! Which infra storage classes this guest may use: the text of `INFRA_STORAGE_CLASS_ENFORCEMENT`, and its decision.
//!
//! `HyperShift` writes the keys in lower camel case. The documentation of kubevirt/csi-driver prints some of them
//! capitalised, and kubevirt/csi-driver then ignores them silently. Both spellings are read here, and unknown keys are
//! reported.

use std::{collections::BTreeSet, fmt};

use serde_json::Value;
use serving::go_yaml::{self, NotYaml};

use crate::keys::{ALLOW_ALL, ALLOW_DEFAULT, ALLOW_LIST, SNAPSHOT_MAPPING};

/// Which infra storage classes may be used. The default allows all of them, as kubevirt/csi-driver does if there is no
/// text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageClassPolicy {
    all: bool,
    default: bool,
    listed: BTreeSet<String>,
    groups: Vec<SnapshotGroup>,
}

/// Infra classes that go together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SnapshotGroup {
    storage: Vec<String>,
    snapshot: Vec<String>,
}

/// The text is not a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not YAML.
    #[error("INFRA_STORAGE_CLASS_ENFORCEMENT is not YAML: {0}")]
    Yaml(#[from] NotYaml),
    /// A key has a value of another type.
    #[error("{key} of INFRA_STORAGE_CLASS_ENFORCEMENT must be {wanted}")]
    Type {
        /// Key.
        key: String,
        /// Wanted type.
        wanted: &'static str,
    },
}

/// The class may not be used (the text of kubevirt/csi-driver).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("infraStorageclass is not in the allowed list: {class}; ask the infra administrator for one that is")]
pub struct NotAllowed {
    class: String,
}

/// No snapshot of a volume may be of this class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "infra snapshot class {} is not allowed for volumes of infra storage class {}: {}; set infraSnapshotClassName of the VolumeSnapshotClass, or ask the infra administrator for an entry in storageSnapshotMapping",
    asked.as_deref().unwrap_or("(none)"),
    storage.as_deref().unwrap_or("(default)"),
    if fitting.is_empty() { "no snapshot class is".to_owned() } else { format!("use one of {}", fitting.join(", ")) }
)]
pub struct SnapshotClassNotAllowed {
    storage: Option<String>,
    asked: Option<String>,
    fitting: Vec<String>,
}

impl Default for StorageClassPolicy {
    fn default() -> Self {
        Self { all: true, default: true, listed: BTreeSet::new(), groups: Vec::new() }
    }
}

impl fmt::Display for StorageClassPolicy {
    /// Writes what is allowed, for the log of the start.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = self.listed.iter().map(String::as_str);
        let allowed: Vec<_> = self.default.then_some("infra's default").into_iter().chain(listed).collect();
        match allowed.as_slice() {
            _ if self.all => f.write_str("all"),
            [] => f.write_str("none"),
            allowed => f.write_str(&allowed.join(", ")),
        }
    }
}

impl StorageClassPolicy {
    /// Reads the text; also returns the unknown keys, for a warning. A blank text is the default; a key that is absent
    /// in any other text is false or empty.
    pub fn parse(text: &str) -> Result<(Self, Vec<String>), PolicyError> {
        if text.trim().is_empty() {
            return Ok((Self::default(), Vec::new()));
        }
        let keys = match go_yaml::parse(text)? {
            Value::Null => return Ok((Self::default(), Vec::new())),
            Value::Object(keys) => keys,
            _ => return Err(wrong_type("the text", "a map of keys")),
        };
        let mut policy = Self { all: false, default: false, listed: BTreeSet::new(), groups: Vec::new() };
        let mut unknown = Vec::new();
        for (key, value) in &keys {
            match lower_first(key).as_str() {
                ALLOW_ALL => policy.all = flag(key, value)?,
                ALLOW_DEFAULT => policy.default = flag(key, value)?,
                ALLOW_LIST => policy.listed = names(key, value)?.into_iter().collect(),
                SNAPSHOT_MAPPING => policy.groups = groups(key, value, &mut unknown)?,
                _ => unknown.push(key.clone()),
            }
        }
        Ok((policy, unknown))
    }

    /// Whether a volume may be of this class; `None` = infra's default class.
    pub fn permit(&self, class: Option<&str>) -> Result<(), NotAllowed> {
        let permitted = self.all
            || match class {
                None => self.default,
                Some(class) => self.listed.contains(class),
            };
        if permitted {
            Ok(())
        } else {
            Err(NotAllowed { class: class.unwrap_or("the default class").to_owned() })
        }
    }

    /// The infra snapshot class for a volume of this infra storage class, where the guest asks for `asked`; `None` = the
    /// infra cluster's default.
    ///
    /// Where groups name the storage class, only their snapshot classes serve. kubevirt/csi-driver asks for none under
    /// `allowDefault`, whatever the guest's class says (kubevirt/csi-driver#176).
    pub fn snapshot_class(
        &self,
        storage: Option<&str>,
        asked: Option<&str>,
    ) -> Result<Option<String>, SnapshotClassNotAllowed> {
        let is_of =
            |group: &&SnapshotGroup| group.storage.iter().any(|class| Some(class.as_str()) == storage);
        let mut of_class = self.groups.iter().filter(is_of).peekable();
        let is_open = of_class.peek().is_none() && (self.all || self.default);
        let fitting: Vec<String> = of_class.flat_map(|group| group.snapshot.iter().cloned()).collect();
        match asked {
            Some(asked) if is_open || fitting.iter().any(|class| class == asked) => {
                Ok(Some(asked.to_owned()))
            }
            None if is_open => Ok(None),
            None if !fitting.is_empty() => Ok(fitting.into_iter().next()),
            _ => Err(SnapshotClassNotAllowed {
                storage: storage.map(str::to_owned),
                asked: asked.map(str::to_owned),
                fitting,
            }),
        }
    }
}

fn groups(key: &str, value: &Value, unknown: &mut Vec<String>) -> Result<Vec<SnapshotGroup>, PolicyError> {
    let Value::Array(groups) = value else {
        return if value.is_null() { Ok(Vec::new()) } else { Err(wrong_type(key, "a list of groups")) };
    };
    let mut read = Vec::new();
    for group in groups {
        let mut classes = SnapshotGroup::default();
        let group = group.as_object().ok_or_else(|| wrong_type(key, "a list of maps"))?;
        for (inner, value) in group {
            match lower_first(inner).as_str() {
                "storageClasses" => classes.storage = names(inner, value)?,
                "volumeSnapshotClasses" => classes.snapshot = names(inner, value)?,
                _ => unknown.push(format!("{key}.{inner}")),
            }
        }
        read.push(classes);
    }
    Ok(read)
}

fn flag(key: &str, value: &Value) -> Result<bool, PolicyError> {
    match value {
        Value::Null => Ok(false),
        other => other.as_str().and_then(go_yaml::flag).ok_or_else(|| wrong_type(key, "true or false")),
    }
}

fn names(key: &str, value: &Value) -> Result<Vec<String>, PolicyError> {
    let wrong = || wrong_type(key, "a list of names");
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

fn wrong_type(key: &str, wanted: &'static str) -> PolicyError {
    PolicyError::Type { key: key.to_owned(), wanted }
}

/// Writes `AllowList` as `allowList`.
fn lower_first(key: &str) -> String {
    let mut characters = key.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn policy(text: &str) -> StorageClassPolicy {
        let (policy, unknown) = StorageClassPolicy::parse(text).unwrap();
        assert_eq!(unknown, Vec::<String>::new());
        policy
    }

    // The texts of HyperShift's storage drivers Default and Manual, and both spellings of the documentation of
    // kubevirt/csi-driver.
    const DEFAULT: &str = "allowAll: false\nallowDefault: true\nallowList: []\n";
    const MANUAL: &str = "allowAll: false\nallowList: [a, b]\nstorageSnapshotMapping:\n- storageClasses: [a]\n  volumeSnapshotClasses: [s]\n";
    const CAPITALS: &str = "AllowList: [a]\nStorageSnapshotMapping:\n- StorageClasses:\n  - a\n  VolumeSnapshotClasses:\n  - s\n";

    #[rstest]
    #[case("", None, true)]
    #[case("", Some("any"), true)]
    #[case("  \n", Some("any"), true)]
    #[case("{}", None, false)]
    #[case("allowAll: true", Some("any"), true)]
    #[case("allowAll: true", None, true)]
    #[case(DEFAULT, None, true)]
    #[case(DEFAULT, Some("a"), false)]
    #[case(MANUAL, None, false)]
    #[case(MANUAL, Some("a"), true)]
    #[case(MANUAL, Some("c"), false)]
    #[case(CAPITALS, Some("a"), true)]
    #[case(CAPITALS, Some("b"), false)]
    #[case::names_like_other_types("allowAll: no\nallowList: [2024, 1.10, true]", Some("1.10"), true)]
    #[case::nor_their_values("allowAll: no\nallowList: [2024, 1.10, true]", Some("1.1"), false)]
    #[case::an_old_boolean("allowAll: Yes", Some("any"), true)]
    #[case::no_list("allowAll: false\nallowList: null", None, false)]
    fn decisions(#[case] text: &str, #[case] class: Option<&str>, #[case] allowed: bool) {
        assert_eq!(policy(text).permit(class).is_ok(), allowed);
    }

    #[rstest]
    #[case("", "all")]
    #[case("{}", "none")]
    #[case(DEFAULT, "infra's default")]
    #[case(MANUAL, "a, b")]
    #[case("allowDefault: true\nallowList: [b, a]", "infra's default, a, b")]
    fn what_is_allowed_is_shown(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(policy(text).to_string(), shown);
    }

    const TWO_GROUPS: &str = "allowAll: true\nstorageSnapshotMapping:\n- storageClasses: [a, b]\n  volumeSnapshotClasses: [s, t]\n- storageClasses: [c]\n";

    #[rstest]
    #[case::no_text("", Some("a"), None, Ok(None))]
    #[case::asked_without_a_text("", Some("a"), Some("x"), Ok(Some("x")))]
    #[case::default_honours_the_class(DEFAULT, None, Some("x"), Ok(Some("x")))]
    #[case::default_with_infras_own(DEFAULT, Some("standard"), None, Ok(None))]
    #[case::mapped(MANUAL, Some("a"), Some("s"), Ok(Some("s")))]
    #[case::mapped_and_none_asked(MANUAL, Some("a"), None, Ok(Some("s")))]
    #[case::another(MANUAL, Some("a"), Some("x"), Err("use one of s"))]
    #[case::not_mapped(MANUAL, Some("b"), Some("s"), Err("no snapshot class is"))]
    #[case::not_mapped_and_none_asked(MANUAL, Some("b"), None, Err("no snapshot class is"))]
    #[case::capitals(CAPITALS, Some("a"), Some("s"), Ok(Some("s")))]
    #[case::nothing_allowed("{}", None, None, Err("no snapshot class is"))]
    #[case::second_of_a_group(TWO_GROUPS, Some("b"), Some("t"), Ok(Some("t")))]
    #[case::a_group_binds_under_allow_all(TWO_GROUPS, Some("a"), Some("x"), Err("use one of s, t"))]
    #[case::a_group_without_snapshots(TWO_GROUPS, Some("c"), None, Err("no snapshot class is"))]
    #[case::in_no_group(TWO_GROUPS, Some("d"), Some("x"), Ok(Some("x")))]
    fn snapshot_classes(
        #[case] text: &str,
        #[case] storage: Option<&str>,
        #[case] asked: Option<&str>,
        #[case] expected: Result<Option<&str>, &str>,
    ) {
        let decided = policy(text).snapshot_class(storage, asked);
        match (decided, expected) {
            (Ok(class), Ok(expected)) => assert_eq!(class.as_deref(), expected),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (decided, _) => panic!("{decided:?}"),
        }
    }

    #[test]
    fn the_policy_knows_each_key_of_its_table_and_no_other() {
        for key in crate::keys::POLICY {
            let (_, unknown) = StorageClassPolicy::parse(&format!("{}: null", key.name)).unwrap();
            assert_eq!(unknown, Vec::<String>::new());
        }
        let (_, unknown) = StorageClassPolicy::parse("denyList: null").unwrap();
        assert_eq!(unknown, ["denyList"]);
    }

    #[test]
    fn unknown_keys_are_reported_wherever_they_are() {
        let text = "allowall: true\nstorageSnapshotMapping:\n- classes: [a]\n";
        let (policy, mut unknown) = StorageClassPolicy::parse(text).unwrap();
        unknown.sort();
        assert_eq!(unknown, ["allowall", "storageSnapshotMapping.classes"]);
        assert!(policy.permit(Some("a")).is_err(), "a misspelt key allows nothing");
    }

    #[rstest]
    #[case("allowAll: maybe")]
    #[case("allowList: a")]
    #[case("[1, 2]")]
    #[case("allowList: [")]
    fn another_text_is_refused(#[case] text: &str) {
        assert!(StorageClassPolicy::parse(text).is_err());
    }

    #[test]
    fn the_refusal_has_the_text_of_the_upstream_driver() {
        let error = policy(MANUAL).permit(Some("c")).unwrap_err();
        assert!(error.to_string().starts_with("infraStorageclass is not in the allowed list"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,200}") {
            drop(StorageClassPolicy::parse(&text));
        }
    }
}
