//! The faults that a simulator injects; they can change while it runs.
//!
//! A plan is a set of faults, each of which lives as long as its [`Injected`] guard, so that tests which run side by
//! side add and remove only their own. What a fault means is its simulator's business.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The active faults of one simulator. Clones name the same plan.
#[derive(Debug)]
pub struct FaultPlan<F>(Arc<watch::Sender<Faults<F>>>);

/// A fault in force; dropping it takes the fault away.
#[derive(Debug)]
#[must_use = "dropping it takes the fault away"]
pub struct Injected<F> {
    plan: FaultPlan<F>,
    id: u64,
}

/// How a step is held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// The step comes this many milliseconds after it became possible.
    Millis(u64),
    /// The step does not come while the fault is in force.
    Forever,
}

/// A step that a fault holds up, and for which objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStep<Step, Selector> {
    /// Which step.
    pub step: Step,
    /// How late.
    pub hold: Hold,
    /// Of which objects.
    #[serde(default)]
    pub at: Selector,
}

/// Whether a step may be taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Now.
    Go,
    /// Not before so much more time.
    Wait(Duration),
    /// Not before the faults change.
    Stuck,
}

/// Since when each pending step has been possible; the clock that [`Hold::Millis`] counts on.
#[derive(Debug)]
pub struct Pending<K>(Mutex<BTreeMap<K, Instant>>);

#[derive(Debug)]
struct Faults<F> {
    next: u64,
    active: BTreeMap<u64, F>,
}

impl<F> Clone for FaultPlan<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<F> Default for FaultPlan<F> {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Faults { next: 0, active: BTreeMap::new() })))
    }
}

impl<F: Clone> FaultPlan<F> {
    /// Puts `fault` in force until the returned guard is dropped.
    pub fn inject(&self, fault: F) -> Injected<F> {
        let mut id = 0;
        self.0.send_modify(|faults| {
            id = faults.next;
            faults.next += 1;
            faults.active.insert(id, fault);
        });
        Injected { plan: self.clone(), id }
    }

    /// The faults in force, in the order of their injection.
    pub fn active(&self) -> Vec<F> {
        self.0.borrow().active.values().cloned().collect()
    }
}

impl<F: Send + Sync + 'static> FaultPlan<F> {
    /// One item for each change of the plan (changes in quick succession may share one).
    pub fn changes(&self) -> impl Stream<Item = ()> + Send + use<F> {
        changes(self.0.subscribe())
    }
}

impl<F> Drop for Injected<F> {
    fn drop(&mut self) {
        self.plan.0.send_modify(|faults| {
            faults.active.remove(&self.id);
        });
    }
}

/// The changes of a watch channel as a stream, which ends with the channel.
pub(super) fn changes<T: Send + Sync + 'static>(
    receiver: watch::Receiver<T>,
) -> impl Stream<Item = ()> + Send {
    stream::unfold(
        receiver,
        |mut receiver| async move { receiver.changed().await.ok().map(|()| ((), receiver)) },
    )
}

/// Several holds on one step: the longest counts, and any [`Hold::Forever`] outlasts all.
pub fn verdict(waited: Duration, holds: impl IntoIterator<Item = Hold>) -> Verdict {
    let mut longest = Duration::ZERO;
    for hold in holds {
        match hold {
            Hold::Forever => return Verdict::Stuck,
            Hold::Millis(millis) => longest = longest.max(Duration::from_millis(millis)),
        }
    }
    match longest.checked_sub(waited) {
        Some(left) if !left.is_zero() => Verdict::Wait(left),
        _ => Verdict::Go,
    }
}

impl<K> Default for Pending<K> {
    fn default() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

impl<K: Ord> Pending<K> {
    /// How long the step `key` has been possible; it becomes so with the first call.
    pub fn waited(&self, key: K) -> Duration {
        self.lock().entry(key).or_insert_with(Instant::now).elapsed()
    }

    /// Forgets every step that `keep` rejects: it was taken, or is no longer possible.
    pub fn retain(&self, keep: impl Fn(&K) -> bool) {
        self.lock().retain(|key, _| keep(key));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<K, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` selects all; `Some` only what is equal.
pub(super) fn selects(wanted: Option<&str>, actual: &str) -> bool {
    wanted.is_none_or(|wanted| wanted == actual)
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    #[test]
    fn a_fault_lives_as_long_as_its_guard() {
        let plan = FaultPlan::default();
        let one = plan.inject("one");
        let two = plan.inject("two");
        assert_eq!(plan.active(), ["one", "two"]);
        drop(one);
        assert_eq!(plan.active(), ["two"]);
        drop(two);
        assert!(plan.active().is_empty());
    }

    #[test]
    fn a_change_is_told_and_no_change_is_not() {
        let plan = FaultPlan::default();
        let mut changes = Box::pin(plan.changes());
        assert_eq!(changes.next().now_or_never(), None);
        let fault = plan.inject(1);
        assert_eq!(changes.next().now_or_never(), Some(Some(())));
        drop(fault);
        assert_eq!(changes.next().now_or_never(), Some(Some(())));
        assert_eq!(changes.next().now_or_never(), None);
    }

    #[test]
    fn the_longest_hold_counts() {
        let ms = Duration::from_millis;
        assert_eq!(verdict(ms(0), []), Verdict::Go);
        assert_eq!(verdict(ms(40), [Hold::Millis(100), Hold::Millis(50)]), Verdict::Wait(ms(60)));
        assert_eq!(verdict(ms(100), [Hold::Millis(100)]), Verdict::Go);
        assert_eq!(verdict(ms(900), [Hold::Millis(100), Hold::Forever]), Verdict::Stuck);
    }

    #[test]
    fn a_forgotten_step_starts_anew() {
        let pending = Pending::default();
        let first = pending.waited("a");
        assert!(pending.waited("a") >= first);
        pending.retain(|_| false);
        assert!(pending.waited("a") < Duration::from_secs(1));
    }
}
