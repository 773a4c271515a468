//! How large the infra claim must be for a disk of a given size, and the reverse.
//!
//! On a block claim the disk is as large as the claim. On a filesystem claim the disk is a file, and CDI and KubeVirt
//! keep a part of the claim free, the *overhead*: `filesystemOverhead` of CDI's configuration, which this driver has no
//! right to read. CDI makes a claim of `⌈S·(1 + o)⌉` bytes for a disk of `S` bytes (`GetRequiredSpace`). KubeVirt grows
//! a plugged disk to `⌊(1 − o)·min(request, capacity, usable)⌋`, a multiple of 1 MiB (`possibleGuestSize`), where
//! `usable` is what the filesystem itself leaves; CDI takes it to be at least `claim/(1 + o)`. The two are not inverse,
//! so a claim that KubeVirt is to grow a disk on must be larger than one that CDI makes: `⌈G/(1 − o)²⌉`.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use infra::{Claim, DataVolume, Quantity};

use crate::keys::CREATED_REQUEST_ANNOTATION;

/// CDI and KubeVirt make files of multiples of this.
const MIB: u64 = 1 << 20;
/// One, in the unit of [`Overhead`].
const PER_MILLE: u64 = 1000;
/// CDI's default (`DefaultGlobalOverhead`, since 1.60; before, 55).
const DEFAULT_OVERHEAD: u64 = 60;
/// A larger overhead is not derived from a claim: it was made larger for another reason, such as the smallest claim that
/// a storage profile allows (`minimumSupportedPvcSize`), or an expansion by another program.
const LARGEST_OVERHEAD: u64 = 200;

/// The part of a filesystem claim that is kept free, in parts per thousand. CDI allows three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overhead(u64);

impl Overhead {
    /// CDI's default, where nothing is known.
    pub(crate) const DEFAULT: Self = Self(DEFAULT_OVERHEAD);

    /// The overhead by which CDI made a claim of `claim` bytes for a disk of `disk` bytes; `None` if it can't be that.
    pub(crate) fn of_new_claim(claim: u64, disk: u64) -> Option<Self> {
        let disk = disk.checked_next_multiple_of(MIB).filter(|disk| *disk > 0)?;
        let extra = u128::from(claim.saturating_sub(disk)) * u128::from(PER_MILLE);
        let rounded = (extra + u128::from(disk) / 2) / u128::from(disk);
        u64::try_from(rounded).ok().filter(|overhead| *overhead <= LARGEST_OVERHEAD).map(Self)
    }

    fn free(self) -> u128 {
        u128::from(PER_MILLE - self.0)
    }
}

/// How a disk lies on its claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The disk is the claim.
    Block,
    /// The disk is a file on the claim's filesystem.
    File(Overhead),
}

const SQUARE: u128 = (PER_MILLE * PER_MILLE) as u128;

impl Layout {
    /// How the disk lies on the claim; and, where the overhead follows from what the claim requests now, that request,
    /// which the first expansion records: afterwards it can't be read any more.
    pub(crate) fn of(volume: &DataVolume, claim: &Claim) -> (Self, Option<u64>) {
        if claim.is_block() {
            return (Self::Block, None);
        }
        let derive = |claim: u64| volume.size.and_then(|disk| Overhead::of_new_claim(claim, disk));
        if let Some(recorded) = claim.metadata.annotations.get(CREATED_REQUEST_ANNOTATION) {
            let overhead = recorded.parse().ok().and_then(derive).unwrap_or(Overhead::DEFAULT);
            return (Self::File(overhead), None);
        }
        // For `spec.pvc` CDI makes the claim as large as the disk. A claim with an allocated size has been expanded
        // before, by another program.
        let is_new = volume.uses_storage && claim.allocated().is_none();
        let request = claim.request().and_then(Quantity::bytes).filter(|_| is_new);
        match request.and_then(derive) {
            Some(overhead) => (Self::File(overhead), request),
            None => (Self::File(Overhead::DEFAULT), None),
        }
    }

    /// The size in bytes that the disk has had from the start, whatever the claim shows. A file that CDI made for
    /// `spec.pvc` is smaller than requested.
    pub(crate) fn first_disk(self, volume: &DataVolume) -> u64 {
        match self {
            Self::File(_) if !volume.uses_storage => 0,
            Self::Block | Self::File(_) => volume.size.unwrap_or_default(),
        }
    }

    /// The least claim, in bytes, on which a disk of `disk` bytes surely fits; `None` if no claim is that large.
    pub(crate) fn claim_for(self, disk: u64) -> Option<u64> {
        match self {
            Self::Block => Some(disk),
            Self::File(overhead) => {
                let disk = u128::from(disk.checked_next_multiple_of(MIB)?);
                let claim = (disk * SQUARE).div_ceil(overhead.free() * overhead.free());
                u64::try_from(claim).ok()?.checked_next_multiple_of(MIB)
            }
        }
    }

    /// The disk, in bytes, that surely fits on a claim of `claim` bytes.
    pub(crate) fn least_disk(self, claim: u64) -> u64 {
        match self {
            Self::Block => claim,
            Self::File(overhead) => {
                let claim = u128::from(claim - claim % MIB);
                whole_mib(claim * overhead.free() * overhead.free() / SQUARE)
            }
        }
    }

    /// The largest disk, in bytes, that KubeVirt makes of a claim of `claim` bytes: where the filesystem itself costs
    /// nothing.
    pub(crate) fn largest_disk(self, claim: u64) -> u64 {
        match self {
            Self::Block => claim,
            Self::File(overhead) => whole_mib(u128::from(claim) * overhead.free() / u128::from(PER_MILLE)),
        }
    }
}

fn whole_mib(bytes: u128) -> u64 {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    bytes - bytes % MIB
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const GIB: u64 = 1 << 30;

    /// CDI's `GetRequiredSpace`, with its floating-point arithmetic.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as CDI calculates"
    )]
    fn made_by_cdi(disk: u64, overhead: u64) -> u64 {
        (disk.next_multiple_of(MIB) as f64 * (1.0 + overhead as f64 / 1000.0)).ceil() as u64
    }

    /// KubeVirt's `possibleGuestSize` of a file, with its floating-point arithmetic.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as KubeVirt calculates"
    )]
    fn grown_by_kubevirt(available: u64, overhead: u64) -> u64 {
        let size = ((1.0 - overhead as f64 / 1000.0) * available as f64) as u64;
        size - size % MIB
    }

    #[rstest]
    #[case::block(Layout::Block, GIB + 1, GIB + 1)]
    #[case::no_overhead(Layout::File(Overhead(0)), GIB, GIB)]
    #[case::default(Layout::File(Overhead::DEFAULT), GIB, 1159 * MIB)]
    #[case::odd(Layout::File(Overhead(0)), GIB + 1, GIB + MIB)]
    fn a_claim_has_room_for_its_disk(#[case] layout: Layout, #[case] disk: u64, #[case] claim: u64) {
        assert_eq!(layout.claim_for(disk), Some(claim));
    }

    #[rstest]
    #[case::default(made_by_cdi(10 * GIB, 60), 10 * GIB, Some(60))]
    #[case::older_default(made_by_cdi(10 * GIB, 55), 10 * GIB, Some(55))]
    #[case::none(10 * GIB, 10 * GIB, Some(0))]
    #[case::no_whole_mib(made_by_cdi(GIB + 1, 60), GIB + 1, Some(60))]
    #[case::smaller_than_the_disk(GIB, 10 * GIB, Some(0))]
    #[case::least_claim_of_the_profile(4 * GIB, GIB, None)]
    #[case::no_disk(GIB, 0, None)]
    #[case::absurd(u64::MAX, u64::MAX, None)]
    fn the_overhead_follows_from_a_new_claim(
        #[case] claim: u64,
        #[case] disk: u64,
        #[case] overhead: Option<u64>,
    ) {
        assert_eq!(Overhead::of_new_claim(claim, disk), overhead.map(Overhead));
    }

    proptest! {
        #[test]
        fn cdis_overhead_is_found_again(disk in MIB..1_u64 << 50, overhead in 0..=LARGEST_OVERHEAD) {
            let claim = made_by_cdi(disk, overhead);
            prop_assert_eq!(Overhead::of_new_claim(claim, disk), Some(Overhead(overhead)));
        }

        /// Also on a filesystem that itself needs as much as CDI reckons with.
        #[test]
        fn kubevirt_grows_the_disk_at_least_to_its_size(
            disk in 1..1_u64 << 50, overhead in 0..=LARGEST_OVERHEAD, costly: bool,
        ) {
            let layout = Layout::File(Overhead(overhead));
            let claim = layout.claim_for(disk).unwrap();
            let usable = u64::try_from(u128::from(claim) * 1000 / u128::from(1000 + overhead)).unwrap();
            let grown = grown_by_kubevirt(if costly { usable } else { claim }, overhead);
            prop_assert!(grown >= disk, "{grown} < {disk}");
            // KubeVirt's product may be rounded up to the next whole MiB, ours is exact.
            prop_assert!(grown <= layout.largest_disk(claim) + MIB);
        }

        #[test]
        fn a_claim_surely_holds_what_it_was_made_for_and_no_more(claim in 0..1_u64 << 50, overhead in 0..=LARGEST_OVERHEAD) {
            for layout in [Layout::Block, Layout::File(Overhead(overhead))] {
                let disk = layout.least_disk(claim);
                prop_assert!(layout.claim_for(disk).unwrap() <= claim);
                prop_assert!(disk <= layout.largest_disk(claim));
                let needed = layout.claim_for(claim).unwrap();
                prop_assert!(layout.least_disk(needed) >= claim);
            }
        }

        #[test]
        fn no_size_panics(size: u64, other: u64, overhead in 0..=LARGEST_OVERHEAD) {
            for layout in [Layout::Block, Layout::File(Overhead(overhead))] {
                let _: Option<u64> = layout.claim_for(size);
                prop_assert!(layout.least_disk(size) <= layout.largest_disk(size).max(size));
            }
            let _: Option<Overhead> = Overhead::of_new_claim(size, other);
        }
    }
}
