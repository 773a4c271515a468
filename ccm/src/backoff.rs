//! Pauses that double: the one before an object is reconciled again after failures doubles with each failure in a row.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// After a conflict the watch usually brings the new object; this pause is for a watch that is behind.
pub(crate) const AFTER_CONFLICT: Duration = Duration::from_millis(200);
/// How many objects with failures are kept, so that those that are gone can't fill the memory; above it all are dropped.
const MOST_KEPT: usize = 10_000;

/// The pause after so many doublings of the first one.
pub(crate) fn doubled(first: Duration, doublings: u32, longest: Duration) -> Duration {
    first.saturating_mul(2u32.saturating_pow(doublings)).min(longest)
}

/// The failures in a row of each object, by a key such as its UID.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: Mutex<HashMap<String, u32>>,
}

impl Backoff {
    /// Pauses of `first` up to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: Mutex::default() }
    }

    /// Records one more failure; returns the pause.
    pub(crate) fn failed(&self, key: &str) -> Duration {
        let mut failures = self.lock();
        if failures.len() >= MOST_KEPT && !failures.contains_key(key) {
            failures.clear();
        }
        let count = failures.entry(key.to_owned()).or_default();
        let pause = doubled(self.first, *count, self.longest);
        *count = count.saturating_add(1);
        pause
    }

    /// Ends the row of failures.
    pub(crate) fn succeeded(&self, key: &str) {
        self.lock().remove(key);
    }

    /// Keeps only the objects that still exist.
    pub(crate) fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().retain(|key, _| is_there(key));
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_again_after_success() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let pauses: Vec<_> = (0..7).map(|_| backoff.failed("a").as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(backoff.failed("b").as_secs(), 1, "each object has its own");
        backoff.succeeded("a");
        assert_eq!(backoff.failed("a").as_secs(), 1);
    }

    #[test]
    fn objects_that_are_gone_do_not_stay() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        backoff.failed("a");
        backoff.failed("b");
        backoff.keep(|key| key == "b");
        assert_eq!(backoff.lock().keys().collect::<Vec<_>>(), ["b"]);
        for number in 0..MOST_KEPT {
            backoff.failed(&number.to_string());
        }
        assert!(backoff.lock().len() <= MOST_KEPT);
    }
}
