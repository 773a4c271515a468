//! The system UUID, by which a Node and a VM are recognised as the same machine.

use uuid::{Uuid, uuid};

/// An SMBIOS system UUID in a form that can be compared: lower case, without dashes.
///
/// Firmware and systems differ in the byte order of the first three groups: SMBIOS before 2.6 and Windows read them with the
/// lowest byte first (SMBIOS specification 7.2.1). Both spellings are the same UUID; of the two, the first in the alphabet is
/// kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SystemUuid(String);

impl SystemUuid {
    /// Hexadecimal digits of a UUID.
    const DIGITS: usize = 32;

    /// `None` if the text is not a UUID, or is one that firmware without a UUID shows (all zeros, all ones).
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String =
            text.trim().chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
        let legal = digits.len() == Self::DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let says_nothing = digits.bytes().all(|b| b == b'0') || digits.bytes().all(|b| b == b'f');
        (legal && !says_nothing).then(|| {
            let swapped = swapped(&digits);
            Self(digits.min(swapped))
        })
    }

    /// The UUID of a VM of this name that was made before KubeVirt 1.6, and has not been given another since
    /// (kubevirt/kubevirt#13156). Whoever knows the name knows it.
    pub fn of_name(vm: &str) -> Option<Self> {
        Self::parse(&Uuid::new_v5(&OF_NAMES, vm.as_bytes()).to_string())
    }
}

/// The namespace of the UUIDs that KubeVirt makes from names (`pkg/virt-controller/watch/vm/firmware.go`, `magicUUID`).
const OF_NAMES: Uuid = uuid!("6a1a24a1-4061-4607-8bf4-a3963d0c5895");

/// The other spelling of these digits: the bytes of the first three groups in reverse order.
fn swapped(digits: &str) -> String {
    let reversed = |group: &str| -> String {
        let bytes: Vec<&str> = (0..group.len()).step_by(2).map(|at| &group[at..at + 2]).collect();
        bytes.into_iter().rev().collect()
    };
    [&digits[..8], &digits[8..12], &digits[12..16]].map(reversed).concat() + &digits[16..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const UUID: &str = "5d307ca9-b3ef-428c-8861-06e72d69f223";

    #[rstest]
    #[case::the_same(UUID, true)]
    #[case::upper_case_without_dashes("5D307CA9B3EF428C886106E72D69F223", true)]
    #[case::swapped("a97c305d-efb3-8c42-8861-06e72d69f223", true)]
    #[case::first_group_only("a97c305d-b3ef-428c-8861-06e72d69f223", false)]
    #[case::swapped_to_the_end("a97c305d-efb3-8c42-6188-06e72d69f223", false)]
    #[case::another("11111111-b3ef-428c-8861-06e72d69f223", false)]
    fn both_byte_orders_are_the_same_machine(#[case] text: &str, #[case] same: bool) {
        assert_eq!(SystemUuid::parse(UUID) == SystemUuid::parse(text), same);
        assert!(SystemUuid::parse(text).is_some());
    }

    /// As KubeVirt's `CalculateLegacyUUID` answers.
    #[test]
    fn kubevirt_made_uuids_from_names() {
        assert_eq!(SystemUuid::of_name("testvm"), SystemUuid::parse("5a9fc181-957e-5c32-9e5a-2de5e9673531"));
    }

    #[rstest]
    #[case("")]
    #[case("not-a-uuid")]
    #[case("00000000-0000-0000-0000-000000000000")]
    #[case("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF")]
    #[case("5d307ca9-b3ef-428c-8861-06e72d69f22")]
    fn what_identifies_no_machine_is_none(#[case] text: &str) {
        assert_eq!(SystemUuid::parse(text), None);
    }
}
