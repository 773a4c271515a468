//! The pace of an object's changes. A guest user may change a Service as fast as the guest's API server takes it, and
//! each change may need calls to infra. The first ones are made at once. If they go on, the CCM reconciles the object at
//! growing intervals and writes only its last state; other objects do not wait for it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::backoff::doubled;

/// How many objects are remembered; above it all are forgotten.
const MOST_KEPT: usize = 10_000;

/// How fast one object may change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PaceLimits {
    /// Changes in a row without a pause.
    pub(crate) free: u32,
    /// Pause after these. It doubles with each further change.
    pub(crate) first_pause: Duration,
    /// Longest pause.
    pub(crate) longest_pause: Duration,
    /// If no change is made for so long, the next one is again the first.
    pub(crate) forgotten_after: Duration,
}

/// The changes in a row of each object, by its UID.
#[derive(Debug)]
pub(crate) struct ChangePace {
    limits: PaceLimits,
    made: Mutex<HashMap<String, Made>>,
}

#[derive(Debug)]
struct Made {
    count: u32,
    /// When the last one was made.
    at: Instant,
}

impl ChangePace {
    pub(crate) fn new(limits: PaceLimits) -> Self {
        Self { limits, made: Mutex::default() }
    }

    /// How much longer the object has to wait for its next reconcile. `None` = it is due.
    pub(crate) fn wait(&self, object: &str) -> Option<Duration> {
        let made = self.lock();
        let made = made.get(object)?;
        let left = self.pause(made.count).saturating_sub(made.at.elapsed());
        (!left.is_zero()).then_some(left)
    }

    /// Records a reconcile of the object that changed something.
    pub(crate) fn changed(&self, object: &str) {
        let mut all = self.lock();
        if all.len() >= MOST_KEPT && !all.contains_key(object) {
            all.clear();
        }
        let made = all.entry(object.to_owned()).or_insert_with(|| Made { count: 0, at: Instant::now() });
        if made.at.elapsed() > self.limits.forgotten_after {
            made.count = 0;
        }
        *made = Made { count: made.count.saturating_add(1), at: Instant::now() };
    }

    /// Keeps only the objects that still exist.
    pub(crate) fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().retain(|object, _| is_there(object));
    }

    fn pause(&self, count: u32) -> Duration {
        let PaceLimits { free, first_pause, longest_pause, .. } = self.limits;
        count
            .checked_sub(free)
            .map_or(Duration::ZERO, |doublings| doubled(first_pause, doublings, longest_pause))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> ChangePace {
        ChangePace::new(PaceLimits {
            free: 3,
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(5),
            forgotten_after: Duration::from_secs(15),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_changes_are_free_and_then_the_pause_doubles() {
        let pace = pace();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            pace.changed("a");
            let pause = pace.wait("a").unwrap_or_default();
            pauses.push(pause.as_millis());
            tokio::time::advance(pause).await;
            assert_eq!(pace.wait("a"), None);
        }
        assert_eq!(pauses, [0, 0, 250, 500, 1000, 2000, 4000, 5000, 5000, 5000]);
        pace.changed("a");
        assert_eq!(pace.wait("b"), None, "another object does not wait");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_is_wanted_a_thousand_times_a_second_is_made_once_in_five() {
        let (pace, mut made) = (pace(), 0);
        for _ in 0..60_000 {
            if pace.wait("a").is_none() {
                pace.changed("a");
                made += 1;
            }
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!((15..=20).contains(&made), "{made} changes in a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn a_calm_object_is_forgotten_soon() {
        let pace = pace();
        for _ in 0..10 {
            pace.changed("a");
        }
        tokio::time::advance(Duration::from_secs(16)).await;
        pace.changed("a");
        assert_eq!(pace.wait("a"), None);
    }

    #[tokio::test]
    async fn objects_that_are_gone_do_not_stay() {
        let pace = pace();
        pace.changed("a");
        pace.changed("b");
        pace.keep(|object| object == "b");
        assert_eq!(pace.lock().keys().collect::<Vec<_>>(), ["b"]);
        for number in 0..=MOST_KEPT {
            pace.changed(&number.to_string());
        }
        assert!(pace.lock().len() <= MOST_KEPT);
    }
}
