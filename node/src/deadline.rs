//! When a call must be answered: the caller's `grpc-timeout`, less a margin, so that the answer (and its reason) is sent
//! before the transport drops the handler.

use std::time::Duration;

use tokio::time::Instant;

/// For callers that give no time-out; the kubelet's own is 2 minutes (`csiTimeout`).
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(2);
/// Longest margin.
const MAX_MARGIN: Duration = Duration::from_secs(1);
/// A short time-out gives up this fraction of itself.
const MARGIN_FRACTION: u32 = 10;
/// Longer time-outs are cut to this; it also keeps absurd values from overflowing the clock.
const MAX_TIMEOUT: Duration = Duration::from_hours(1);
/// Digits of a value (gRPC over HTTP/2: `TimeoutValue`).
const MAX_DIGITS: usize = 8;

/// When to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// Latest moment for the answer.
    pub answer_by: Instant,
}

impl Deadline {
    /// From the value of a `grpc-timeout` header that came in at `now`. A value that can not be read counts as missing.
    pub fn new(header: Option<&str>, now: Instant) -> Self {
        let timeout = header.and_then(parse).unwrap_or(DEFAULT_TIMEOUT).min(MAX_TIMEOUT);
        let margin = (timeout / MARGIN_FRACTION).min(MAX_MARGIN);
        Self { answer_by: now + timeout.saturating_sub(margin) }
    }
}

fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 60 * 60)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case(Some("2M"), 119_000)]
    #[case(Some("120000m"), 119_000)]
    #[case(Some("1S"), 900)]
    #[case(Some("99999999H"), 3_599_000)]
    #[case(Some("0n"), 0)]
    #[case(None, 119_000)]
    #[case(Some("abc"), 119_000)]
    #[case(Some("123456789S"), 119_000)]
    #[case(Some("é"), 119_000)]
    #[case(Some(""), 119_000)]
    fn the_answer_leaves_before_the_time_is_up(#[case] header: Option<&str>, #[case] millis: u64) {
        let now = Instant::now();
        assert_eq!(Deadline::new(header, now).answer_by - now, Duration::from_millis(millis));
    }

    proptest! {
        #[test]
        fn no_header_breaks_it(header in "\\PC{0,12}") {
            let now = Instant::now();
            prop_assert!(Deadline::new(Some(&header), now).answer_by <= now + MAX_TIMEOUT);
        }
    }
}
