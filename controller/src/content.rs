//! How large a volume becomes that is filled from a snapshot or from another volume.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use crate::request::Capacity;

/// The request allows only a volume that is smaller than its source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a volume of {asked} bytes is too small for its source, which has {least}; ask for as much")]
pub struct TooSmallForSource {
    asked: u64,
    least: u64,
}

/// The size of a new volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// What the guest is told, and what its snapshots and clones are compared with.
    pub guest: u64,
    /// What the `DataVolume` requests.
    pub made: u64,
}

/// The size of a volume whose source has `of_source` bytes in the guest, where CDI makes none of less than `cdi_least`.
///
/// CDI compares the plain request with the snapshot's `restoreSize` or with the source claim's request, which have its
/// filesystem overhead in them (`ValidateRequestedCloneSize`, CDI 1.65), and leaves a `DataVolume` that is smaller without a
/// claim for ever. The guest is told its own size all the same: else a restored volume, and each restored from that one,
/// would be larger than the last.
pub(crate) fn size(capacity: &Capacity, of_source: u64, cdi_least: u64) -> Result<Size, TooSmallForSource> {
    let too_small = |asked| Err(TooSmallForSource { asked, least: of_source });
    match capacity.limit {
        Some(limit) if limit < of_source => return too_small(limit),
        _ if capacity.required != 0 && capacity.required < of_source => return too_small(capacity.required),
        _ => {}
    }
    // A storage driver that restores to any size reports 0.
    let asks_for_nothing = capacity.required == 0 && of_source != 0;
    let guest = if asks_for_nothing { of_source } else { capacity.size.max(of_source) };
    Ok(Size { guest, made: guest.max(cdi_least) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn capacity(required: u64, limit: Option<u64>) -> Capacity {
        Capacity { size: required.max(1), required, limit }
    }

    #[rstest]
    #[case::the_same_size(100, None, 100, 106, Ok((100, 106)))]
    #[case::a_block_device(100, None, 100, 100, Ok((100, 100)))]
    #[case::larger(200, None, 100, 106, Ok((200, 200)))]
    #[case::a_little_larger(103, None, 100, 106, Ok((103, 106)))]
    #[case::nothing_asked(0, None, 100, 106, Ok((100, 106)))]
    #[case::of_unknown_size(0, None, 0, 0, Ok((1, 1)))]
    #[case::exactly(100, Some(100), 100, 106, Ok((100, 106)))]
    #[case::smaller(99, None, 100, 106, Err((99, 100)))]
    #[case::a_smaller_limit(0, Some(99), 100, 106, Err((99, 100)))]
    fn sizes(
        #[case] required: u64,
        #[case] limit: Option<u64>,
        #[case] of_source: u64,
        #[case] cdi_least: u64,
        #[case] expected: Result<(u64, u64), (u64, u64)>,
    ) {
        let planned = size(&capacity(required, limit), of_source, cdi_least);
        let expected = expected
            .map(|(guest, made)| Size { guest, made })
            .map_err(|(asked, least)| TooSmallForSource { asked, least });
        assert_eq!(planned, expected);
    }

    proptest! {
        /// What is made holds the source, CDI takes it, the request allows what the guest is told, and a restored volume can be
        /// restored again at its own size.
        #[test]
        fn what_is_made_suffices(
            required in 0_u64..1 << 40,
            more in prop::option::of(0_u64..1 << 40),
            of_source in 1_u64..1 << 40,
            cdi_least in 1_u64..1 << 41,
        ) {
            let capacity = capacity(required, more.map(|more| required + more).filter(|limit| *limit > 0));
            if let Ok(Size { guest, made }) = size(&capacity, of_source, cdi_least) {
                prop_assert!(made >= cdi_least && made >= guest && guest >= of_source);
                prop_assert!(capacity.admits(guest));
                let again = Capacity { size: guest, required: guest, limit: Some(guest) };
                prop_assert_eq!(size(&again, guest, made).map(|size| size.guest), Ok(guest));
            } else {
                let most = capacity.limit.unwrap_or(u64::MAX);
                prop_assert!(most < of_source || (0 < required && required < of_source));
            }
        }
    }
}
