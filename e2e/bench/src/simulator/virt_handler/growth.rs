//! Decides how large a plugged disk becomes when its claim has grown. Pure: no machine, no file.
//!
//! Follows `shouldExpandOnline` and `possibleGuestSize` of `pkg/virt-launcher/virtwrap/manager.go` and `GetDiskCapacity` of
//! `pkg/storage/types/pvc.go`, KubeVirt 1.9.0: a block volume grows to its device, a filesystem's `disk.img` to what the claim's
//! size leaves beside the filesystem's overhead. A disk never shrinks. What virt-controller does not know is not guessed: such a
//! disk keeps its size.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::vmi::ClaimInfo;
use crate::simulator::{infra_storage::BLOCK, quantity::bytes};

/// Disk images are made and grown in whole mebibytes (`AlignImageSizeTo1MiB`).
const ALIGNMENT: u64 = 1 << 20;

/// The sizes of a plugged disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// What the machine's guest sees.
    pub guest: u64,
    /// The length of its image: of a device, the device.
    pub image: u64,
    /// What its image can occupy in the filesystem that holds it: what it occupies now, and what is free.
    pub usable: u64,
}

/// The size that the disk has to get, in bytes; `None` when it keeps its own.
pub(super) fn grown(claim: &ClaimInfo, sizes: Sizes) -> Option<u64> {
    // libvirt could not read the image (`GetBlockInfo` answers a capacity of 0).
    if sizes.guest == 0 {
        return None;
    }
    let possible =
        if claim.volume_mode.as_deref() == Some(BLOCK) { sizes.image } else { in_filesystem(claim, sizes)? };
    (possible > sizes.guest).then_some(possible)
}

/// What a `disk.img` may have of its filesystem.
fn in_filesystem(claim: &ClaimInfo, sizes: Sizes) -> Option<u64> {
    let size =
        |quantities: &std::collections::BTreeMap<String, Quantity>| bytes(quantities.get("storage")?).ok();
    let of_claim = size(&claim.capacity)?.min(size(&claim.requests)?);
    let overhead: f64 = claim.filesystem_overhead.as_deref()?.parse().ok()?;
    if !(0.0..=1.0).contains(&overhead) {
        return None;
    }
    let possible = share(of_claim.min(sizes.usable), 1.0 - overhead);
    Some(possible - possible % ALIGNMENT)
}

/// A share of so many bytes, with the rounding that virt-launcher's own arithmetic has.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "virt-launcher calculates in float64, and a mebibyte's difference would be one too many"
)]
fn share(bytes: u64, part: f64) -> u64 {
    (part * bytes as f64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn claim(mode: Option<&str>, capacity: &str, request: &str, overhead: Option<&str>) -> ClaimInfo {
        let storage = |size: &str| BTreeMap::from([("storage".to_owned(), Quantity(size.to_owned()))]);
        ClaimInfo {
            access_modes: vec![],
            volume_mode: mode.map(str::to_owned),
            capacity: storage(capacity),
            requests: storage(request),
            filesystem_overhead: overhead.map(str::to_owned),
        }
    }

    fn sizes(guest: u64, image: u64, usable: u64) -> Sizes {
        Sizes { guest: guest * MIB, image: image * MIB, usable: usable * MIB }
    }

    #[rstest]
    // A device: to its physical length, whatever the claim says.
    #[case::device(Some("Block"), "320Mi", "640Mi", "0", sizes(320, 640, 0), Some(640))]
    #[case::device_as_before(Some("Block"), "640Mi", "640Mi", "0", sizes(320, 320, 0), None)]
    #[case::smaller_device(Some("Block"), "320Mi", "320Mi", "0", sizes(640, 320, 0), None)]
    // A file: CDI made 320 MiB of 340 MiB (6 %, rounded up); the same claim leaves the file as it is.
    #[case::file_as_cdi_made_it(None, "340Mi", "340Mi", "0.06", sizes(320, 320, 9000), None)]
    #[case::file(Some("Filesystem"), "725Mi", "725Mi", "0.06", sizes(320, 320, 9000), Some(681))]
    // The least of capacity, request and usable space counts.
    #[case::not_yet_grown(None, "340Mi", "725Mi", "0.06", sizes(320, 320, 9000), None)]
    #[case::request_below_capacity(None, "725Mi", "400Mi", "0.06", sizes(320, 320, 9000), Some(376))]
    #[case::full_filesystem(None, "725Mi", "725Mi", "0.06", sizes(320, 320, 400), Some(376))]
    #[case::no_overhead(None, "640Mi", "640Mi", "0", sizes(320, 320, 9000), Some(640))]
    fn a_disk_grows_as_its_claim_allows(
        #[case] mode: Option<&str>,
        #[case] capacity: &str,
        #[case] request: &str,
        #[case] overhead: &str,
        #[case] sizes: Sizes,
        #[case] grown_to: Option<u64>,
    ) {
        let claim = claim(mode, capacity, request, Some(overhead));
        assert_eq!(grown(&claim, sizes), grown_to.map(|mib| mib * MIB));
    }

    #[rstest]
    #[case::no_overhead(claim(None, "2Gi", "2Gi", None))]
    #[case::no_number(claim(None, "2Gi", "2Gi", Some("six")))]
    #[case::more_than_all(claim(None, "2Gi", "2Gi", Some("1.5")))]
    #[case::no_capacity(ClaimInfo { capacity: BTreeMap::new(), ..claim(None, "2Gi", "2Gi", Some("0.06")) })]
    #[case::no_request(ClaimInfo { requests: BTreeMap::new(), ..claim(None, "2Gi", "2Gi", Some("0.06")) })]
    #[case::no_quantity(claim(None, "much", "2Gi", Some("0.06")))]
    fn what_is_not_known_changes_nothing(#[case] claim: ClaimInfo) {
        assert_eq!(grown(&claim, sizes(320, 320, 9000)), None);
    }

    #[test]
    fn an_unreadable_image_is_left_alone() {
        assert_eq!(grown(&claim(Some("Block"), "1Gi", "1Gi", Some("0")), sizes(0, 640, 0)), None);
    }

    proptest! {
        /// What was grown is larger, in whole mebibytes for a file, within the claim, and needs no second time.
        #[test]
        fn growing_ends(
            guest in 1_u64..1 << 40, image in 0_u64..1 << 40, usable in 0_u64..1 << 40,
            capacity in 0_u64..1 << 40, request in 0_u64..1 << 40, percent in 0_u8..=100, block: bool,
        ) {
            let overhead = format!("{}.{:02}", percent / 100, percent % 100);
            let mode = if block { "Block" } else { "Filesystem" };
            let claim = claim(Some(mode), &capacity.to_string(), &request.to_string(), Some(&overhead));
            let sizes = Sizes { guest, image, usable };
            if let Some(after) = grown(&claim, sizes) {
                prop_assert!(after > guest);
                prop_assert!(block || (after % MIB == 0 && after <= capacity.min(request).min(usable)));
                let then = Sizes { guest: after, image: image.max(after), usable };
                prop_assert!(block || grown(&claim, then).is_none());
                prop_assert!(!block || after == image);
            }
        }
    }
}
