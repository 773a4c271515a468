//! Where the content of a disk comes from: what the controller role says of the volume, and what a filesystem shows of
//! itself.
//!
//! Infra storage that does not wipe its volumes hands an earlier owner's filesystem to a new one. So a volume that was
//! made blank is mounted only with a filesystem that was made for it: mkfs gives it the volume's own UUID.

use std::fmt;

/// The UUID of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilesystemUuid(pub [u8; 16]);

/// What the controller role says of a volume, in the volume context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The volume was made blank. `None`: it may have any content, or was made before the controller role said so.
    pub made_blank: Option<MadeBlank>,
    /// Its `StorageClass` allows to format data of an unknown kind.
    pub format_nonzero: bool,
    /// The volume was restored or cloned: it has its filesystem from its source. A new one would hide that the copy lacks it.
    pub copied: bool,
}

/// A volume that was made blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeBlank {
    /// When it was made, in seconds since 1970.
    pub since: u64,
    /// What its filesystem gets as UUID: that of its `DataVolume`.
    pub uuid: FilesystemUuid,
}

/// What a filesystem shows of its making.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Making {
    /// Its UUID.
    pub uuid: Option<FilesystemUuid>,
    /// When it was made, in seconds since 1970.
    pub at: Option<u64>,
}

impl MadeBlank {
    /// Whether a filesystem with this making was made on the volume, and not on its blocks when they were another's.
    ///
    /// A node role of an earlier version, or kubevirt/csi-driver, gives no UUID of the volume's. So one that was made
    /// since the volume exists is the volume's, too.
    pub fn is_own(&self, making: &Making) -> bool {
        making.uuid == Some(self.uuid) || making.at.is_some_and(|at| at >= self.since)
    }
}

impl FilesystemUuid {
    /// Reads the text form: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
    pub fn parse(text: &str) -> Option<Self> {
        const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
        if !text.split('-').map(str::len).eq(GROUPS) {
            return None;
        }
        let digits: Option<Vec<u8>> =
            text.chars().filter(|c| *c != '-').map(|c| u8::try_from(c.to_digit(16)?).ok()).collect();
        let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for FilesystemUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if [4, 6, 8, 10].contains(&index) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const TEXT: &str = "5d307ca9-b3ef-428c-8861-06e72d69f223";

    #[test]
    fn a_uuid_is_its_own_text() {
        let uuid = FilesystemUuid::parse(TEXT).unwrap();
        assert_eq!((uuid.0[0], uuid.0[15]), (0x5d, 0x23));
        assert_eq!(uuid.to_string(), TEXT);
        assert_eq!(FilesystemUuid::parse(&TEXT.to_uppercase()), Some(uuid));
    }

    #[rstest]
    #[case("")]
    #[case("abc")]
    #[case("5d307ca9b3ef428c886106e72d69f223")]
    #[case("5d307ca9-b3ef-428c-8861-06e72d69f22")]
    #[case("5d307ca9-b3ef-428c-8861-06e72d69f22g")]
    #[case("5d307ca9-b3ef-428c-8861-06e72d69f223-")]
    #[case("5d307ca-9b3ef-428c-8861-06e72d69f223")]
    #[case("5d307ca9-b3ef-428c-8861-06e72d69f2\u{00e9}")]
    fn other_texts_are_none(#[case] text: &str) {
        assert_eq!(FilesystemUuid::parse(text), None);
    }

    proptest! {
        #[test]
        fn every_uuid_is_read_back(bytes: [u8; 16]) {
            prop_assert_eq!(FilesystemUuid::parse(&FilesystemUuid(bytes).to_string()), Some(FilesystemUuid(bytes)));
        }
    }

    #[rstest]
    #[case::by_the_uuid(Some(1), None, true)]
    #[case::by_the_uuid_whatever_the_clock(Some(1), Some(99), true)]
    #[case::by_the_time(Some(2), Some(100), true)]
    #[case::an_earlier_owners(Some(2), Some(99), false)]
    #[case::of_unknown_time(Some(2), None, false)]
    #[case::nothing_known(None, None, false)]
    fn a_filesystem_is_the_volumes_by_its_uuid_or_its_time(
        #[case] uuid: Option<u8>,
        #[case] at: Option<u64>,
        #[case] own: bool,
    ) {
        let blank = MadeBlank { since: 100, uuid: FilesystemUuid([1; 16]) };
        let uuid = uuid.map(|byte| FilesystemUuid([byte; 16]));
        assert_eq!(blank.is_own(&Making { uuid, at }), own);
    }
}
