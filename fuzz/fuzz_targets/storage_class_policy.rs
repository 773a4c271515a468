//! The text of `INFRA_STORAGE_CLASS_ENFORCEMENT`. What it does not allow is refused.
#![no_main]

use controller::StorageClassPolicy;
use fuzz::{assert_bounded, text};
use libfuzzer_sys::fuzz_target;
use serving::chain;

/// A class that no text names: a text with it is skipped.
const UNNAMED: &str = "z-unnamed";

fuzz_target!(|input: &[u8]| {
    let Some(text) = text(input) else { return };
    let (policy, unknown) = match StorageClassPolicy::parse(text) {
        Ok(read) => read,
        Err(error) => return assert_bounded(&chain(&error)),
    };
    assert_eq!(StorageClassPolicy::parse(text).ok(), Some((policy.clone(), unknown)));
    if text.contains(UNNAMED) {
        return;
    }
    let says_all =
        text.trim().is_empty() || policy == StorageClassPolicy::default() || policy.to_string() == "all";
    assert_eq!(policy.permit(Some(UNNAMED)).is_ok(), says_all, "{policy}");
    assert!(!says_all || policy.permit(None).is_ok());
    // A snapshot class that the guest asks for is given as asked, or not at all.
    for storage in [None, Some(UNNAMED)] {
        if let Ok(given) = policy.snapshot_class(storage, Some("y-unnamed")) {
            assert_eq!(given.as_deref(), Some("y-unnamed"));
        }
    }
});
