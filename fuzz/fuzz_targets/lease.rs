//! The Lease of the leader election, which users of the guest may write. Whatever its times are it is read, another's fresh lease is
//! respected and an old one taken, and what is written then is read again. The files of the crate are compiled here, because nobody
//! else needs what they have.
#![no_main]

use std::time::Duration;

use fuzz::text;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

#[path = "../../ccm/src/lease/plan.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "a part of another crate")]
mod plan;
#[path = "../../ccm/src/lease/wire.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "a part of another crate")]
mod wire;

use plan::{Next, next, released, respected};
use wire::WireLease;

const ME: &str = "me";
const OWN: Duration = Duration::from_secs(15);
/// No lease is respected longer than this, whoever wrote it.
const MOST: Duration = Duration::from_mins(2);

fuzz_target!(|input: &[u8]| {
    let Some(written) = text(input).and_then(|text| serde_json::from_str::<Value>(text).ok()) else { return };
    let Ok(lease) = serde_json::from_value::<WireLease>(written.clone()) else {
        assert!(
            serde_json::from_value::<WireLease>(without_times(written)).is_err(),
            "its times made it unreadable"
        );
        return;
    };
    let spec = lease.spec.as_ref();
    let bound = respected(spec, OWN);
    assert!((OWN..=MOST).contains(&bound), "respected for {bound:?}");
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    let is_others = !holder.is_empty() && holder != ME;
    let step = |unchanged| next(spec, unchanged, ME, OWN, Timestamp::UNIX_EPOCH);
    assert_eq!(step(Duration::ZERO) == Next::Wait, is_others, "the holder is {holder:?}");
    let Next::Take(taken) = step(bound) else {
        panic!("a lease that did not change for {bound:?} is not taken")
    };
    assert_eq!(taken.holder_identity.as_deref(), Some(ME));

    let written = WireLease { metadata: lease.metadata.clone(), spec: Some((*taken).clone()) };
    let sent = serde_json::to_value(written).expect("what was read can be written");
    let again: WireLease = serde_json::from_value(sent).expect("what was written can be read");
    assert_eq!((again.metadata, again.spec.as_ref()), (lease.metadata, Some(&*taken)));
    let free = released(&taken, Timestamp::UNIX_EPOCH);
    let of_another = next(Some(&free), Duration::ZERO, "another", OWN, Timestamp::UNIX_EPOCH);
    assert!(matches!(of_another, Next::Take(_)), "a released lease is free");
});

/// The same Lease with times that every reader can read.
fn without_times(mut lease: Value) -> Value {
    if let Some(metadata) = lease.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    for time in ["acquireTime", "renewTime"] {
        if let Some(spec) = lease.get_mut("spec").and_then(Value::as_object_mut)
            && spec.contains_key(time)
        {
            spec.insert(time.to_owned(), json!("2026-11-30T06:00:00.000000Z"));
        }
    }
    lease
}
