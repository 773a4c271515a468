//! At most one operation per volume at a time: which one has the volume, since when, and what it reported last.
//!
//! Kept in memory only: after a restart no operation is running.

use std::{
    collections::HashMap,
    fmt::{self, Display},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::deadline::Deadline;

/// An operation starts nothing new after its deadline, and whatever it does last is bounded far below this. An
/// operation that still runs so long after its deadline hangs in this process and keeps its volume from every other
/// operation.
const OVERDUE_AFTER: Duration = Duration::from_mins(2);

/// What an operation reported last: readable by whoever waits for it. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LastReport(Arc<Mutex<Option<String>>>);

impl LastReport {
    /// Replaces the report.
    pub fn set(&self, report: impl Display) {
        let report = report.to_string();
        *self.lock() = Some(report);
    }

    /// Reports only if there is no report yet: for what explains less than any other report.
    pub fn set_first(&self, report: impl Display) {
        self.lock().get_or_insert_with(|| report.to_string());
    }

    /// The text is whole after any panic: it is replaced at once.
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Display for LastReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.lock().as_deref().unwrap_or("nothing reported yet"))
    }
}

/// What an operation locks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The volume, wherever it is.
    Volume,
    /// The volume on one node: a shared volume may be attached to several at once.
    Node(String),
    /// The size of the volume: it may be attached and detached while it grows.
    Size,
}

/// Another operation has the volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rpc} of volume {volume} has been under way for {} s ({last_report}); retry when it has ended", age.as_secs())]
pub struct Busy {
    /// The volume.
    pub volume: String,
    /// The RPC that has it.
    pub rpc: &'static str,
    /// Since when.
    pub age: Duration,
    /// What it reported last.
    pub last_report: String,
}

/// The operations that have a volume. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Mutex<HashMap<String, Vec<Held>>>>);

/// A lock that is held.
#[derive(Debug)]
struct Held {
    rpc: &'static str,
    scope: Scope,
    since: Instant,
    deadline: Deadline,
    last_report: LastReport,
}

/// Holds a lock until dropped.
#[derive(Debug)]
pub struct Lock {
    in_flight: InFlight,
    volume: String,
    scope: Scope,
    last_report: LastReport,
}

impl InFlight {
    /// Locks `volume` for `rpc`, which is to end by `deadline`; fails while another operation has it.
    pub fn lock(
        &self,
        rpc: &'static str,
        volume: &str,
        scope: Scope,
        deadline: Deadline,
    ) -> Result<Lock, Busy> {
        let mut held = self.held();
        let of_volume = held.entry(volume.to_owned()).or_default();
        let meets =
            |other: &&Held| scope == Scope::Volume || other.scope == Scope::Volume || other.scope == scope;
        if let Some(busy) = of_volume.iter().find(meets) {
            return Err(Busy {
                volume: volume.to_owned(),
                rpc: busy.rpc,
                age: busy.since.elapsed(),
                last_report: busy.last_report.to_string(),
            });
        }
        let last_report = LastReport::default();
        let (since, shared) = (Instant::now(), last_report.clone());
        of_volume.push(Held { rpc, scope: scope.clone(), since, deadline, last_report: shared });
        Ok(Lock { in_flight: self.clone(), volume: volume.to_owned(), scope, last_report })
    }

    /// Age of the oldest operation that has a volume, also when its caller is gone.
    pub fn oldest(&self) -> Option<Duration> {
        self.held().values().flatten().map(|held| held.since.elapsed()).max()
    }

    /// How long after its deadline an operation still runs, where that is so long that it will never end.
    pub fn overdue(&self) -> Option<Duration> {
        let late = self.held().values().flatten().map(|held| held.deadline.answer_by.elapsed()).max();
        late.filter(|late| *late > OVERDUE_AFTER)
    }

    /// The map is whole after any panic: each change of it is one insertion or removal.
    fn held(&self) -> MutexGuard<'_, HashMap<String, Vec<Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lock {
    /// Where the operation that holds the lock reports.
    pub fn last_report(&self) -> LastReport {
        self.last_report.clone()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut held = self.in_flight.held();
        if let Some(of_volume) = held.get_mut(&self.volume) {
            of_volume.retain(|held| held.scope != self.scope);
            if of_volume.is_empty() {
                held.remove(&self.volume);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_mins(2);

    fn deadline() -> Deadline {
        Deadline { answer_by: Instant::now() + TIMEOUT }
    }

    #[test]
    fn a_volume_has_one_call_per_node_and_one_for_all() {
        let in_flight = InFlight::default();
        let lock = |volume, scope| in_flight.lock("ControllerPublishVolume", volume, scope, deadline());
        let node = |name: &str| Scope::Node(name.to_owned());
        let first = lock("v", node("a")).unwrap();
        assert!(lock("v", node("a")).is_err());
        assert!(lock("v", Scope::Volume).is_err());
        let second = lock("v", node("b")).unwrap();
        drop((first, second));
        let whole = lock("v", Scope::Volume).unwrap();
        assert!(lock("v", node("a")).is_err());
        assert!(lock("w", node("a")).is_ok());
        assert!(lock("v", Scope::Size).is_err());
        drop(whole);
        let sizing = lock("v", Scope::Size).unwrap();
        assert!(lock("v", Scope::Size).is_err());
        assert!(lock("v", Scope::Volume).is_err());
        drop((lock("v", node("a")).unwrap(), sizing));
        assert!(in_flight.held().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_call_learns_what_the_first_is_and_what_it_reported_last() {
        let in_flight = InFlight::default();
        let lock = in_flight.lock("NodeStageVolume", "v", Scope::Volume, deadline()).unwrap();
        let second = || in_flight.lock("NodeUnstageVolume", "v", Scope::Volume, deadline());
        assert!(second().unwrap_err().to_string().contains("(nothing reported yet)"));
        lock.last_report().set("formatting sda");
        lock.last_report().set_first("waiting for its turn");
        tokio::time::advance(Duration::from_secs(7)).await;
        let busy = second().unwrap_err().to_string();
        assert_eq!(
            busy,
            "NodeStageVolume of volume v has been under way for 7 s (formatting sda); retry when it has ended"
        );
        assert_eq!(in_flight.oldest(), Some(Duration::from_secs(7)));
        drop(lock);
        assert_eq!(in_flight.oldest(), None);
        drop(second().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_never_ends_is_seen_long_after_its_deadline() {
        let in_flight = InFlight::default();
        let lock = in_flight.lock("CreateVolume", "v", Scope::Volume, deadline()).unwrap();
        tokio::time::advance(TIMEOUT + OVERDUE_AFTER).await;
        assert_eq!(in_flight.overdue(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(in_flight.overdue(), Some(OVERDUE_AFTER + Duration::from_secs(1)));
        drop(lock);
        assert_eq!((in_flight.overdue(), in_flight.oldest()), (None, None));
    }
}
