//! The pause after failures, by Service.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// After a conflict the watch usually brings the new object; this pause is for a watch that is behind.
const AFTER_CONFLICT: Duration = Duration::from_millis(200);
/// First and longest pause after any other failure; it doubles in between.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// More doublings exceed the longest pause anyway.
const MOST_DOUBLINGS: u32 = 5;

/// Failures in a row, by the Service's UID.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    failures: Mutex<HashMap<String, u32>>,
}

impl Retries {
    /// Records one more failure; returns the pause.
    pub(crate) fn failed(&self, uid: &str, conflict: bool) -> Duration {
        let mut failures = self.lock();
        let count = failures.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        match *count {
            1 if conflict => AFTER_CONFLICT,
            count => FIRST.saturating_mul(1 << count.saturating_sub(1).min(MOST_DOUBLINGS)).min(LONGEST),
        }
    }

    /// Ends the row of failures.
    pub(crate) fn succeeded(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let retries = Retries::default();
        assert_eq!(retries.failed("b", true), AFTER_CONFLICT);
        let pauses: Vec<_> = (0..7).map(|_| retries.failed("a", false).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        retries.succeeded("a");
        assert_eq!(retries.failed("a", false), FIRST);
    }
}
