//! When an operation must be answered: the caller's `grpc-timeout` less a margin.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// Header of the caller's timeout (gRPC over HTTP/2, "Request-Headers").
const TIMEOUT_HEADER: &str = "grpc-timeout";
/// Longest number in it (same page, `TimeoutValue`).
const MAX_DIGITS: usize = 8;
/// For callers that name no timeout: the kubelet's own timeout (`csiTimeout`), which kubevirt/csi-driver also waits.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(2);
/// Longer timeouts count as this one. It is far above the timeout of any sidecar, and keeps absurd values from
/// overflowing the clock.
const MAX_TIMEOUT: Duration = Duration::from_hours(1);
/// The margin is this fraction of the timeout, within [`MIN_MARGIN`] and [`MAX_MARGIN`].
///
/// When the timeout is over, tonic drops the handler and answers without a reason, and the caller, whose clock started
/// earlier, gives up by itself. Within the margin, the program's one thread must resume this operation, encode the
/// answer and write it to a local socket. A second is plenty for that, and is what every timeout of a real caller
/// leaves (10 s and more); a shorter timeout keeps nine tenths of itself for the work.
const MARGIN_FRACTION: u32 = 10;
/// With less, a busy thread could use up the margin in one step of another task.
const MIN_MARGIN: Duration = Duration::from_millis(20);
/// See [`MARGIN_FRACTION`].
const MAX_MARGIN: Duration = Duration::from_secs(1);

/// When an operation must be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Latest moment for the answer.
    pub answer_by: Instant,
}

impl Deadline {
    /// The deadline of an operation that has just come in with `metadata`.
    pub fn read(metadata: &MetadataMap) -> Self {
        let header = metadata.get(TIMEOUT_HEADER).and_then(|value| value.to_str().ok());
        Self::new(header, Instant::now())
    }

    /// The deadline by the value of a `grpc-timeout` header that came in at `now`. A value that can't be read counts as
    /// none.
    pub fn new(header: Option<&str>, now: Instant) -> Self {
        let timeout = header.and_then(parse).unwrap_or(DEFAULT_TIMEOUT).min(MAX_TIMEOUT);
        let margin = (timeout / MARGIN_FRACTION).clamp(MIN_MARGIN, MAX_MARGIN);
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
    #[case("3M", Some(Duration::from_mins(3)))]
    #[case("15S", Some(Duration::from_secs(15)))]
    #[case("1500m", Some(Duration::from_millis(1500)))]
    #[case("1H", Some(Duration::from_hours(1)))]
    #[case("99999999n", Some(Duration::from_nanos(99_999_999)))]
    #[case("123456789S", None)]
    #[case("S", None)]
    #[case("5s", None)]
    fn timeouts(#[case] text: &str, #[case] timeout: Option<Duration>) {
        assert_eq!(parse(text), timeout);
    }

    #[rstest]
    #[case(Some("2M"), 119_000)]
    #[case(Some("120000m"), 119_000)]
    #[case(Some("1S"), 900)]
    #[case(Some("100m"), 80)]
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
