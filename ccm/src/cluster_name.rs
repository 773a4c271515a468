//! The guest cluster's name, `--cluster-name`. It is a label value on everything that this guest has in the infra
//! cluster.

use std::fmt;
use std::str::FromStr;

/// Longest label value (Kubernetes, "Labels and Selectors").
const MAX_LENGTH: usize = 63;

/// The framework's default of `--cluster-name`, which many guests may share.
pub const DEFAULT_CLUSTER_NAME: &str = "kubernetes";

/// A name that can be a label value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName(String);

/// The text can't be a label value.
#[derive(Debug, thiserror::Error)]
#[error(
    "cluster name {0:?} can not be a label value: 1 to {MAX_LENGTH} letters, digits, '-', '_' or '.', \
     a letter or digit at both ends"
)]
pub struct NoLabelValue(String);

impl FromStr for ClusterName {
    type Err = NoLabelValue;

    /// Drops white space, and the quotes that templates write into a plain YAML scalar (`--cluster-name="x"`).
    fn from_str(text: &str) -> Result<Self, NoLabelValue> {
        let bare = text.trim();
        let unquoted = ['"', '\''].iter().find_map(|quote| bare.strip_prefix(*quote)?.strip_suffix(*quote));
        let name = unquoted.unwrap_or(bare);
        let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let legal = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        let bytes = name.as_bytes();
        if legal && bytes.len() <= MAX_LENGTH && alphanumeric(bytes.first()) && alphanumeric(bytes.last()) {
            Ok(Self(name.to_owned()))
        } else {
            Err(NoLabelValue(text.to_owned()))
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl ClusterName {
    /// The name as a label value.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the flag's default: then nobody may have named this cluster, and it proves nothing.
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT_CLUSTER_NAME
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("guest", "guest")]
    #[case("\"guest\"", "guest")]
    #[case("'guest'", "guest")]
    #[case(" guest-1.a_b ", "guest-1.a_b")]
    fn quotes_and_space_around_it_are_dropped(#[case] given: &str, #[case] wanted: &str) {
        assert_eq!(given.parse::<ClusterName>().unwrap().as_str(), wanted);
    }

    #[rstest]
    #[case("")]
    #[case("\"\"")]
    #[case("\"guest")]
    #[case("-guest")]
    #[case("guest.")]
    #[case("a b")]
    #[case("gäste")]
    #[case("a23456789012345678901234567890123456789012345678901234567890abcd")]
    fn what_can_be_no_label_is_refused(#[case] given: &str) {
        assert!(given.parse::<ClusterName>().is_err(), "{given:?}");
    }

    proptest! {
        #[test]
        fn every_label_value_is_a_name(name in "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?") {
            for text in [name.clone(), format!("\"{name}\"")] {
                let parsed: ClusterName = text.parse().unwrap();
                prop_assert_eq!(parsed.as_str(), &name);
            }
        }
    }
}
