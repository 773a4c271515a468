//! The pace of repairs. Where another program keeps writing what the CCM writes too (a second load balancer, a policy, an
//! admission webhook), each repair brings the next change, at the speed of two calls, without end. The first repair is
//! made at once; if the same one is needed again, it waits, longer each time. All other steps go on.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::time::Instant;

use crate::backoff::doubled;

/// Pause before the second of the same repairs. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// If the same repair is not needed for so long after its pause, the next is again the first.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);
/// From this repair in a row on, two programs write the object: one drift, and one late event, are no sign of that.
const CONTESTED_FROM: u32 = 3;
/// How many repairs, and how many objects, are remembered; above it all are forgotten.
const MOST_KEPT: usize = 10_000;
/// How many writers the metric tells apart: whoever may write an object chooses the name.
const MOST_WRITERS: usize = 16;
/// The metric's name of all further writers, and of one that is not known.
const OTHER_WRITER: &str = "other";

/// The repairs of all objects.
#[derive(Debug)]
pub(crate) struct Repairs {
    state: Mutex<State>,
    contested: Contested,
}

#[derive(Debug, Default)]
struct State {
    /// By the object and what was written.
    made: HashMap<(String, u64), Repair>,
    /// What was written to an object last.
    wrote: HashMap<String, u64>,
}

#[derive(Debug)]
struct Repair {
    /// How many in a row.
    count: u32,
    /// When the last one was made.
    at: Instant,
}

/// Counts the repairs of what another program writes too. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Contested {
    repairs: Family<Labels, Counter>,
    writers: Arc<Mutex<HashSet<String>>>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    object: &'static str,
    writer: String,
}

impl Contested {
    /// Registers the counter.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_ccm_contested_repairs",
            "Repairs of what another program writes too, by object (status, mirror, slice) and by that program's name in managedFields",
            self.repairs.clone(),
        );
    }

    /// Counts one repair of an `object` that `writer` writes too.
    pub(crate) fn count(&self, object: &'static str, writer: Option<&str>) {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = writer.unwrap_or(OTHER_WRITER).to_owned();
        let is_named = writers.contains(&writer) || writers.len() < MOST_WRITERS;
        let writer = if is_named { writer } else { OTHER_WRITER.to_owned() };
        writers.insert(writer.clone());
        self.repairs.get_or_create(&Labels { object, writer }).inc();
    }
}

impl Repairs {
    pub(crate) fn new(contested: Contested) -> Self {
        Self { state: Mutex::default(), contested }
    }

    /// How much longer the repair of `object` that writes `wanted` has to wait. `None` = it is due.
    pub(crate) fn wait(&self, object: &str, wanted: &str) -> Option<Duration> {
        let state = self.lock();
        let repair = state.made.get(&(object.to_owned(), hash(wanted)))?;
        let left = repair.pause().saturating_sub(repair.at.elapsed());
        (!left.is_zero()).then_some(left)
    }

    /// Whether `found` is what was written to `object` last: then nobody else has written, and a change is no repair.
    pub(crate) fn is_ours(&self, object: &str, found: &str) -> bool {
        self.lock().wrote.get(object) == Some(&hash(found))
    }

    /// Records that `wanted` was written to `object`, which is no repair.
    pub(crate) fn wrote(&self, object: &str, wanted: &str) {
        let mut state = self.lock();
        if state.wrote.len() >= MOST_KEPT && !state.wrote.contains_key(object) {
            state.wrote.clear();
        }
        state.wrote.insert(object.to_owned(), hash(wanted));
    }

    /// Records a repair. If it shows that another program writes the object too, counts that by the name of the `writer`,
    /// and returns true.
    pub(crate) fn made(
        &self,
        kind: &'static str,
        (object, wanted): (&str, &str),
        writer: Option<&str>,
    ) -> bool {
        let mut state = self.lock();
        if state.made.len() >= MOST_KEPT {
            state.made.clear();
        }
        let repair = state.made.entry((object.to_owned(), hash(wanted)));
        let repair = repair.or_insert_with(|| Repair { count: 0, at: Instant::now() });
        if repair.at.elapsed() > repair.pause() + FORGOTTEN_AFTER {
            repair.count = 0;
        }
        (repair.count, repair.at) = (repair.count.saturating_add(1), Instant::now());
        let is_contested = repair.count >= CONTESTED_FROM;
        if is_contested {
            self.contested.count(kind, writer);
        }
        is_contested
    }

    /// Keeps only the objects that still exist.
    pub(crate) fn keep(&self, is_there: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        state.made.retain(|(object, _), _| is_there(object));
        state.wrote.retain(|object, _| is_there(object));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Repair {
    fn pause(&self) -> Duration {
        doubled(FIRST_PAUSE, self.count.saturating_sub(1), LONGEST_PAUSE)
    }
}

fn hash(value: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repairs() -> Repairs {
        Repairs::new(Contested::default())
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_repair_waits_longer_each_time() {
        let repairs = repairs();
        let mut pauses = Vec::new();
        for _ in 0..11 {
            assert_eq!(repairs.wait("a", "x"), None);
            repairs.made("status", ("a", "x"), None);
            let pause = repairs.wait("a", "x").unwrap();
            pauses.push(pause.as_secs());
            tokio::time::advance(pause).await;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        repairs.made("status", ("a", "x"), None);
        assert_eq!(repairs.wait("a", "y"), None, "another repair of the object");
        assert_eq!(repairs.wait("b", "x"), None, "another object");
        tokio::time::advance(LONGEST_PAUSE + FORGOTTEN_AFTER + Duration::from_secs(1)).await;
        repairs.made("status", ("a", "x"), None);
        assert_eq!(repairs.wait("a", "x"), Some(FIRST_PAUSE), "long ago is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_comes_back_is_contested() {
        let repairs = repairs();
        let made = |value| repairs.made("status", ("a", value), Some("peer"));
        assert_eq!([made("x"), made("x"), made("y"), made("x")], [false, false, false, true]);
    }

    #[tokio::test]
    async fn what_was_written_last_is_ours_and_those_that_are_gone_are_forgotten() {
        let repairs = repairs();
        repairs.wrote("a", "x");
        assert!(repairs.is_ours("a", "x") && !repairs.is_ours("a", "y") && !repairs.is_ours("b", "x"));
        repairs.made("status", ("a", "x"), None);
        repairs.keep(|object| object != "a");
        assert!(!repairs.is_ours("a", "x") && repairs.wait("a", "x").is_none());
    }

    #[test]
    fn the_metric_names_a_bounded_number_of_writers() {
        let contested = Contested::default();
        for number in 0..100 {
            contested.count("status", Some(&format!("writer-{number}")));
        }
        assert!(contested.writers.lock().unwrap().len() <= MOST_WRITERS + 1);
    }
}
