//! Names of objects and of volumes inside a VM.

use std::fmt;

/// Longest DNS-1123 subdomain (Kubernetes object names).
const MAX_SUBDOMAIN: usize = 253;
/// Longest DNS-1123 label (Kubernetes volume names inside a VM).
const MAX_LABEL: usize = 63;

/// The name of an object, proven to be a DNS-1123 subdomain: it can be a part of a URL as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(String);

impl ObjectName {
    /// `None` when no Kubernetes object can have this name.
    pub fn parse(name: &str) -> Option<Self> {
        let legal = !name.is_empty() && name.len() <= MAX_SUBDOMAIN && name.split('.').all(is_label_like);
        legal.then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `name` is a DNS-1123 label: 1 to 63 of `[a-z0-9-]`, not starting or ending with `-`.
pub fn is_dns_label(name: &str) -> bool {
    name.len() <= MAX_LABEL && is_label_like(name)
}

fn is_label_like(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('-')
        && !part.ends_with('-')
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("pvc-1", true)]
    #[case("a.b-c.d", true)]
    #[case("", false)]
    #[case("../secrets", false)]
    #[case("a/b", false)]
    #[case("UPPER", false)]
    #[case("-a", false)]
    #[case("a..b", false)]
    #[case("a?watch=1", false)]
    fn only_a_dns_name_becomes_a_part_of_a_url(#[case] name: &str, #[case] legal: bool) {
        assert_eq!(ObjectName::parse(name).is_some(), legal);
    }

    #[test]
    fn a_name_has_at_most_253_characters() {
        assert!(ObjectName::parse(&"a".repeat(253)).is_some());
        assert!(ObjectName::parse(&"a".repeat(254)).is_none());
    }

    #[test]
    fn a_label_has_no_dots_and_at_most_63_characters() {
        assert!(is_dns_label(&"a".repeat(63)));
        assert!(!is_dns_label(&"a".repeat(64)));
        assert!(!is_dns_label("a.b"));
    }
}
