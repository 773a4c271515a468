//! What a replica does next about the lease: a function of what it has read.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// How many times our own duration the duration of another's lease is respected at most, and the longest that makes.
/// Who may write the Lease could name 68 years otherwise.
const MOST_OF_OWN: u32 = 10;
const MOST_RESPECTED: Duration = Duration::from_mins(2);

/// How long a lease that does not change is respected: for our own duration, or for the holder's if that is longer,
/// because the holder may have been started with other flags. The holder's counts up to a bound.
pub(crate) fn respected(seen: Option<&LeaseSpec>, own: Duration) -> Duration {
    let theirs = seen.and_then(|seen| seen.lease_duration_seconds);
    let theirs = theirs.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default();
    let most = own.saturating_mul(MOST_OF_OWN).min(MOST_RESPECTED);
    own.max(Duration::from_secs(theirs).min(most))
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    /// Write this spec; if the write succeeds, we hold the lease.
    Take(Box<LeaseSpec>),
    /// Another replica holds it.
    Wait,
}

/// What `me` does about a lease that was read as `seen` and has not changed for `unchanged`, by our own clock. `now` is
/// only written, for people to read.
pub(super) fn next(
    seen: Option<&LeaseSpec>,
    unchanged: Duration,
    me: &str,
    duration: Duration,
    now: Timestamp,
) -> Next {
    let holder = seen.and_then(|seen| seen.holder_identity.as_deref()).unwrap_or_default();
    if !holder.is_empty() && holder != me && unchanged < respected(seen, duration) {
        return Next::Wait;
    }
    let renewed = holder == me;
    let transitions = seen.and_then(|seen| seen.lease_transitions).unwrap_or_default();
    let first = seen.is_none();
    Next::Take(Box::new(LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX).max(1)),
        acquire_time: seen
            .and_then(|seen| seen.acquire_time.clone())
            .filter(|_| renewed)
            .or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if renewed || first { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }))
}

/// The spec of a released lease, which another replica takes at once (client-go's `ReleaseOnCancel`).
pub(super) fn released(seen: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        ..seen.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const DURATION: Duration = Duration::from_secs(15);

    fn held_by(holder: &str, seconds: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds),
            lease_transitions: Some(4),
            // Far in the future by our clock, which must not matter.
            renew_time: Some(MicroTime("2999-01-01T00:00:00Z".parse().unwrap())),
            ..LeaseSpec::default()
        }
    }

    fn step(seen: Option<&LeaseSpec>, unchanged: u64) -> Next {
        next(seen, Duration::from_secs(unchanged), "me", DURATION, Timestamp::UNIX_EPOCH)
    }

    #[rstest]
    #[case::nobody_made_it(None, 0, Some(0))]
    #[case::given_back(Some(held_by("", 1)), 0, Some(5))]
    #[case::ours(Some(held_by("me", 15)), 0, Some(4))]
    #[case::fresh(Some(held_by("other", 15)), 14, None)]
    #[case::old(Some(held_by("other", 15)), 15, Some(5))]
    #[case::their_duration_is_longer(Some(held_by("other", 60)), 30, None)]
    #[case::their_duration_is_shorter(Some(held_by("other", 1)), 10, None)]
    #[case::their_duration_is_absurd(Some(held_by("other", i32::MAX)), 119, None)]
    #[case::their_duration_is_capped(Some(held_by("other", i32::MAX)), 120, Some(5))]
    fn it_is_taken_when_nobody_holds_it(
        #[case] seen: Option<LeaseSpec>,
        #[case] unchanged: u64,
        #[case] transitions: Option<i32>,
    ) {
        let taken = match step(seen.as_ref(), unchanged) {
            Next::Take(spec) => {
                assert_eq!(spec.holder_identity.as_deref(), Some("me"));
                spec.lease_transitions
            }
            Next::Wait => None,
        };
        assert_eq!(taken, transitions);
    }

    #[rstest]
    #[case::no_duration(15, None, 15)]
    #[case::negative(15, Some(-1), 15)]
    #[case::longer(15, Some(60), 60)]
    #[case::ten_times_ours(2, Some(3600), 20)]
    #[case::at_most_two_minutes(60, Some(3600), 120)]
    #[case::ours_is_longer_than_the_bound(300, Some(3600), 300)]
    fn a_duration_is_respected_up_to_a_bound(
        #[case] own: u64,
        #[case] theirs: Option<i32>,
        #[case] seconds: u64,
    ) {
        let seen = LeaseSpec { lease_duration_seconds: theirs, ..LeaseSpec::default() };
        assert_eq!(respected(Some(&seen), Duration::from_secs(own)).as_secs(), seconds);
    }

    #[test]
    fn what_is_given_back_is_free_at_once() {
        let spec = released(&held_by("other", 15), Timestamp::UNIX_EPOCH);
        assert!(matches!(step(Some(&spec), 0), Next::Take(_)));
    }

    proptest! {
        #[test]
        fn two_replicas_never_both_take_a_fresh_lease(unchanged in 0u64..15, first: bool) {
            let Next::Take(spec) = step(None, 0) else { panic!("free") };
            let (me, other) = if first { ("me", "other") } else { ("other", "me") };
            let mut spec = *spec;
            spec.holder_identity = Some(me.to_owned());
            let next = next(Some(&spec), Duration::from_secs(unchanged), other, DURATION, Timestamp::UNIX_EPOCH);
            prop_assert_eq!(next, Next::Wait);
        }
    }
}
