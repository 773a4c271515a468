//! One RPC under way: its deadline, its caller, the last thing the infra said, and the lock on its volume.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;

use crate::{
    error::Error,
    waits::{WaitCause, Waits},
};

/// Time for an RPC whose caller gave none; the reference waits as long.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(2);
/// The answer leaves this share of the timeout before tonic would drop the handler and answer without words.
const MARGIN_SHARE: u32 = 20;
/// Bounds of that margin.
const MIN_MARGIN: Duration = Duration::from_millis(20);
const MAX_MARGIN: Duration = Duration::from_secs(1);
/// Pause where the infra API asks for one without saying how long (as client-go).
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);
/// Header of the caller's timeout (gRPC over HTTP/2 specification).
const TIMEOUT_HEADER: &str = "grpc-timeout";
/// Longest number in it (same specification).
const TIMEOUT_DIGITS: usize = 8;
/// After its deadline an operation makes no new call, and each call ends within [`infra::CALL_DEADLINE`]. One that is not over
/// by now, many times that later, hangs in this process and keeps its volume from every other.
const OVERDUE_AFTER: Duration = Duration::from_mins(2);
/// What the infra said before it said anything.
const NOTHING_SAID: &str = "nothing was answered yet";

/// The last thing that the infra said. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said(Arc<Mutex<Option<String>>>);

impl Said {
    fn set(&self, said: String) {
        *self.0.lock().expect("no holder of this lock panics") = Some(said);
    }

    fn or_nothing(&self) -> String {
        let said = self.0.lock().expect("no holder of this lock panics").clone();
        said.unwrap_or_else(|| NOTHING_SAID.to_owned())
    }
}

/// An RPC under way.
#[derive(Debug)]
pub(crate) struct Operation {
    deadline: Instant,
    cancelled: CancellationToken,
    last: Said,
    waits: Waits,
}

impl Operation {
    /// `lock` is of its volume, if it has one: who meets it is told what was said to this operation.
    pub(crate) fn new(deadline: Instant, lock: Option<&Lock>, waits: Waits) -> Self {
        let last = lock.map(|lock| lock.said.clone()).unwrap_or_default();
        Self { deadline, cancelled: CancellationToken::new(), last, waits }
    }

    /// When the caller must have its answer.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Cancelled once the caller hung up.
    pub(crate) fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Remembers what the infra said last.
    pub(crate) fn note(&self, said: impl Display) {
        self.last.set(said.to_string());
    }

    /// Remembers what is being waited for, unless the infra said something: its words say more.
    pub(crate) fn note_own(&self, doing: impl Display) {
        let mut last = self.last.0.lock().expect("no holder of this lock panics");
        last.get_or_insert_with(|| doing.to_string());
    }

    /// Ends the operation when its time is over or its caller gone. Asked before every change.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancelled.is_cancelled() {
            Err(Error::Cancelled(self.last.or_nothing()))
        } else if Instant::now() >= self.deadline {
            Err(self.expired())
        } else {
            Ok(())
        }
    }

    /// Waits, at most as long as the caller does. Never around a change that is being made.
    pub(crate) async fn wait<F: Future>(&self, future: F) -> Result<F::Output, Error> {
        tokio::select! {
            waited = timeout_at(self.deadline, future) => waited.map_err(|_| self.expired()),
            () = self.cancelled.cancelled() => Err(Error::Cancelled(self.last.or_nothing())),
        }
    }

    /// As [`Self::wait`], and counts the time.
    pub(crate) async fn wait_for<F: Future>(&self, cause: WaitCause, future: F) -> Result<F::Output, Error> {
        let began = Instant::now();
        let waited = self.wait(future).await;
        self.waits.add(cause, began.elapsed());
        waited
    }

    /// Where time is counted that was not spent in [`Self::wait_for`].
    pub(crate) fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Makes a conditional change; where the infra API asks for a pause it is made again after it, while there is time.
    pub(crate) async fn change<T, F>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Result<Result<T, infra::Error>, Error>
    where
        F: Future<Output = Result<T, infra::Error>>,
    {
        loop {
            self.check()?;
            match call().await {
                Err(error) if error.class() == infra::Class::Throttled => {
                    self.note(&error);
                    let pause = error.retry_after().unwrap_or(DEFAULT_PAUSE);
                    self.wait_for(WaitCause::InfraPause, tokio::time::sleep(pause)).await?;
                }
                answer => return Ok(answer),
            }
        }
    }

    /// The answer when the time is over.
    pub(crate) fn expired(&self) -> Error {
        Error::Deadline(self.last.or_nothing())
    }

    /// The answer when the process ends first.
    pub(crate) fn stopping(&self) -> Error {
        Error::Stopping(self.last.or_nothing())
    }
}

/// When an RPC that has just come in must be answered: its caller's timeout less a margin.
pub(crate) fn deadline(metadata: &MetadataMap) -> Instant {
    let timeout = metadata.get(TIMEOUT_HEADER).and_then(|value| parse_timeout(value.to_str().ok()?));
    let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
    let margin = (timeout / MARGIN_SHARE).clamp(MIN_MARGIN, MAX_MARGIN);
    Instant::now() + timeout.saturating_sub(margin)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(number * 3600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// What an operation locks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// The volume: creating, deleting, detaching everywhere.
    Volume,
    /// The volume on one node. A shared volume may be attached to several at once; for any other the infra cluster decides.
    Node(String),
}

/// At most one operation per volume and scope. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks(Arc<Mutex<HashMap<String, Vec<Held>>>>);

/// A lock that is held.
#[derive(Debug)]
struct Held {
    scope: Scope,
    since: Instant,
    deadline: Instant,
    said: Said,
}

/// Holds a lock until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    locks: Locks,
    volume: String,
    scope: Scope,
    said: Said,
}

impl Locks {
    /// Locks for an operation that is to end by `deadline`, or tells which one is under way.
    pub(crate) fn lock(&self, volume: &str, scope: Scope, deadline: Instant) -> Result<Lock, Error> {
        let mut held = self.held();
        let holders = held.entry(volume.to_owned()).or_default();
        let meets =
            |other: &&Held| scope == Scope::Volume || other.scope == Scope::Volume || other.scope == scope;
        if let Some(busy) = holders.iter().find(meets) {
            let (age, last) = (busy.since.elapsed(), busy.said.or_nothing());
            return Err(Error::Busy { volume: volume.to_owned(), age, last });
        }
        let said = Said::default();
        holders.push(Held { scope: scope.clone(), since: Instant::now(), deadline, said: said.clone() });
        Ok(Lock { locks: self.clone(), volume: volume.to_owned(), scope, said })
    }

    /// Age of the oldest operation that runs.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.held().values().flatten().map(|held| held.since.elapsed()).max()
    }

    /// How long after its deadline an operation still runs, where that is so long that it will never end.
    pub(crate) fn overdue(&self) -> Option<Duration> {
        let late = self.held().values().flatten().map(|held| held.deadline.elapsed()).max();
        late.filter(|late| *late > OVERDUE_AFTER)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Vec<Held>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        if let Some(holders) = held.get_mut(&self.volume) {
            holders.retain(|held| held.scope != self.scope);
            if holders.is_empty() {
                held.remove(&self.volume);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("3M", Some(Duration::from_mins(3)))]
    #[case("15S", Some(Duration::from_secs(15)))]
    #[case("1500m", Some(Duration::from_millis(1500)))]
    #[case("1H", Some(Duration::from_hours(1)))]
    #[case("99999999n", Some(Duration::from_nanos(99_999_999)))]
    #[case("123456789S", None)]
    #[case("S", None)]
    #[case("", None)]
    #[case("+1S", None)]
    #[case("5s", None)]
    fn timeouts(#[case] text: &str, #[case] timeout: Option<Duration>) {
        assert_eq!(parse_timeout(text), timeout);
    }

    #[test]
    fn a_volume_has_one_operation_per_node_and_one_for_all() {
        let locks = Locks::default();
        let lock = |volume, scope| locks.lock(volume, scope, Instant::now() + DEFAULT_TIMEOUT);
        let node = |name: &str| Scope::Node(name.to_owned());
        let first = lock("v", node("a")).unwrap();
        assert!(lock("v", node("a")).is_err());
        assert!(lock("v", Scope::Volume).is_err());
        let second = lock("v", node("b")).unwrap();
        drop((first, second));
        let whole = lock("v", Scope::Volume).unwrap();
        assert!(lock("v", node("a")).is_err());
        assert!(lock("w", node("a")).is_ok());
        drop(whole);
        assert!(locks.held().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_meets_a_lock_is_told_what_its_operation_was_told() {
        let locks = Locks::default();
        let deadline = Instant::now() + DEFAULT_TIMEOUT;
        let lock = locks.lock("v", Scope::Volume, deadline).unwrap();
        Operation::new(deadline, Some(&lock), Waits::default()).note("phase Pending");
        tokio::time::advance(Duration::from_secs(7)).await;
        let error = locks.lock("v", Scope::Volume, deadline).unwrap_err().to_string();
        assert_eq!(error, "an operation on volume v has been under way for 7 s; last: phase Pending");
        assert_eq!(locks.oldest(), Some(Duration::from_secs(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_that_never_ends_is_seen_long_after_its_deadline() {
        let locks = Locks::default();
        let lock = locks.lock("v", Scope::Volume, Instant::now() + DEFAULT_TIMEOUT).unwrap();
        tokio::time::advance(DEFAULT_TIMEOUT + OVERDUE_AFTER).await;
        assert_eq!(locks.overdue(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(locks.overdue(), Some(OVERDUE_AFTER + Duration::from_secs(1)));
        drop(lock);
        assert_eq!((locks.overdue(), locks.oldest()), (None, None));
    }

    #[tokio::test]
    async fn an_expired_operation_ends_with_the_last_thing_said() {
        let deadline = Instant::now() + Duration::from_millis(5);
        let operation = Operation::new(deadline, None, Waits::default());
        operation.note_own("waiting for its turn");
        assert!(operation.expired().to_string().ends_with("waiting for its turn"));
        operation.note("phase Pending");
        operation.note_own("waiting for its turn");
        let error = operation.wait(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(error.to_string(), "not finished in time: phase Pending");
        assert!(operation.check().is_err());
    }
}
