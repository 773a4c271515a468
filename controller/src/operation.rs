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

use crate::error::Error;

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

/// An RPC under way.
#[derive(Debug)]
pub(crate) struct Operation {
    deadline: Instant,
    cancelled: CancellationToken,
    last: Mutex<String>,
}

impl Operation {
    pub(crate) fn new(deadline: Instant) -> Self {
        Self {
            deadline,
            cancelled: CancellationToken::new(),
            last: Mutex::new("nothing was answered yet".into()),
        }
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
        *self.lock_last() = said.to_string();
    }

    /// Ends the operation when its time is over or its caller gone. Asked before every change.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancelled.is_cancelled() {
            Err(Error::Cancelled(self.lock_last().clone()))
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
            () = self.cancelled.cancelled() => Err(Error::Cancelled(self.lock_last().clone())),
        }
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
                    self.wait(tokio::time::sleep(error.retry_after().unwrap_or(DEFAULT_PAUSE))).await?;
                }
                answer => return Ok(answer),
            }
        }
    }

    /// The answer when the time is over.
    pub(crate) fn expired(&self) -> Error {
        Error::Deadline(self.lock_last().clone())
    }

    fn lock_last(&self) -> MutexGuard<'_, String> {
        self.last.lock().expect("no holder of this lock panics")
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
pub(crate) struct Locks(Arc<Mutex<HashMap<String, Vec<Scope>>>>);

/// Holds a lock until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    locks: Locks,
    volume: String,
    scope: Scope,
}

impl Locks {
    /// Locks, or tells that an operation is under way.
    pub(crate) fn lock(&self, volume: &str, scope: Scope) -> Result<Lock, Error> {
        let mut held = self.held();
        let scopes = held.entry(volume.to_owned()).or_default();
        let busy = if scope == Scope::Volume {
            !scopes.is_empty()
        } else {
            scopes.contains(&Scope::Volume) || scopes.contains(&scope)
        };
        if busy {
            return Err(Error::Busy(volume.to_owned()));
        }
        scopes.push(scope.clone());
        Ok(Lock { locks: self.clone(), volume: volume.to_owned(), scope })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Vec<Scope>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        if let Some(scopes) = held.get_mut(&self.volume) {
            scopes.retain(|scope| *scope != self.scope);
            if scopes.is_empty() {
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
        let node = |name: &str| Scope::Node(name.to_owned());
        let first = locks.lock("v", node("a")).unwrap();
        assert!(locks.lock("v", node("a")).is_err());
        assert!(locks.lock("v", Scope::Volume).is_err());
        let second = locks.lock("v", node("b")).unwrap();
        drop((first, second));
        let whole = locks.lock("v", Scope::Volume).unwrap();
        assert!(locks.lock("v", node("a")).is_err());
        assert!(locks.lock("w", node("a")).is_ok());
        drop(whole);
        assert!(locks.held().is_empty());
    }

    #[tokio::test]
    async fn an_expired_operation_ends_with_the_last_thing_said() {
        let operation = Operation::new(Instant::now() + Duration::from_millis(5));
        operation.note("phase Pending");
        let error = operation.wait(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(error.to_string(), "not finished in time: phase Pending");
        assert!(operation.check().is_err());
    }
}
