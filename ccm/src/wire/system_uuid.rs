//! The system UUID, by which a Node and a VM are recognised as the same machine.

/// An SMBIOS system UUID in a form that can be compared: lower case, without dashes.
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
        (legal && !says_nothing).then_some(Self(digits))
    }
}
