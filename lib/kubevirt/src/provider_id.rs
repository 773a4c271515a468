//! `spec.providerID` of a Node: which VM it is, in the format of the upstream cloud provider, `kubevirt://<name>`.
//!
//! The Cluster API provider writes the same text itself, on Node and Machine, so the format can't change: it has
//! neither namespace nor cluster. Upstream reads letters, digits, `_` and `-`; the name of a VM may have dots too.

use std::fmt;

use crate::ObjectName;

/// What the name of the VM follows (kubevirt/cloud-provider-kubevirt, `instances_v2.go`).
pub const PREFIX: &str = "kubevirt://";

/// An id in our format.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProviderId {
    vm: ObjectName,
}

/// What a Node's `spec.providerID` claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It is empty.
    Nothing,
    /// It names this VM.
    Vm(ProviderId),
    /// It belongs to another provider, or names something that no VM can be called. Either way we do not act on it.
    Foreign,
}

impl ProviderId {
    /// The id of the VM `name`. `None` if no Kubernetes object can have this name.
    pub fn of(name: &str) -> Option<Self> {
        ObjectName::parse(name).map(|vm| Self { vm })
    }

    /// The name of the VM, and of its VMI.
    pub fn vm(&self) -> &str {
        self.vm.as_str()
    }
}

impl Claimed {
    /// Reads a `spec.providerID`.
    pub fn parse(text: &str) -> Self {
        if text.is_empty() {
            return Self::Nothing;
        }
        text.strip_prefix(PREFIX).and_then(ProviderId::of).map_or(Self::Foreign, Self::Vm)
    }
}

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("kubevirt://worker-1", Some("worker-1"))]
    #[case("kubevirt://pool.a-b.c1", Some("pool.a-b.c1"))]
    #[case("kubevirt://0", Some("0"))]
    #[case("", None)]
    #[case("kubevirt://", None)]
    #[case("kubevirt:/worker-1", None)]
    #[case("kubevirt:///worker-1", None)]
    #[case("kubevirt://hcp/worker-1", None)]
    #[case("kubevirt://Worker_1", None)]
    #[case("kubevirt://a..b", None)]
    #[case(" kubevirt://worker-1", None)]
    #[case("KUBEVIRT://worker-1", None)]
    #[case("aws:///eu-1/i-0", None)]
    #[case("worker-1", None)]
    fn names_a_vm_only_in_our_format(#[case] text: &str, #[case] vm: Option<&str>) {
        let claimed = Claimed::parse(text);
        match vm {
            Some(vm) => assert_eq!(claimed, Claimed::Vm(ProviderId::of(vm).unwrap())),
            None if text.is_empty() => assert_eq!(claimed, Claimed::Nothing),
            None => assert_eq!(claimed, Claimed::Foreign),
        }
    }

    #[test]
    fn a_name_too_long_for_an_object_is_nobodys() {
        let name = |length| "a".repeat(length);
        assert!(ProviderId::of(&name(253)).is_some());
        assert!(ProviderId::of(&name(254)).is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?){0,3}") {
            let id = ProviderId::of(&name).unwrap();
            prop_assert_eq!(id.to_string(), format!("kubevirt://{}", name));
            prop_assert_eq!(Claimed::parse(&id.to_string()), Claimed::Vm(id));
        }

        #[test]
        fn any_text_is_read_as_it_would_be_written_or_not_at_all(text in "(kubevirt://)?.{0,40}") {
            match Claimed::parse(&text) {
                Claimed::Vm(id) => prop_assert_eq!(id.to_string(), text),
                Claimed::Nothing => prop_assert!(text.is_empty()),
                Claimed::Foreign => prop_assert!(!text.is_empty()),
            }
        }
    }
}
