//! Waiting for a condition, with a deadline. The error says what was expected and what was seen last.

use std::{fmt::Debug, future::Future, time::Duration};

use anyhow::{Context, Result, bail};
use kube::Api;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::supervise::Process;

/// How long one part may take to come up: an API server that needs 3 s alone took 20 s beside two compilers.
pub(super) const BOOT_DEADLINE: Duration = Duration::from_mins(2);

/// First pause between two checks; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(25);

/// Longest pause between two checks.
const MAX_PAUSE: Duration = Duration::from_millis(400);

/// Lines of a dead process's log that go into the error.
const TAIL_LINES: usize = 15;

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Poll<T> {
    /// The condition holds.
    Ready(T),
    /// The condition does not hold yet; the text says what the check saw instead.
    NotYet(String),
}

/// Repeats `check` until the condition holds. `what` completes the sentence "expected …".
///
/// # Errors
/// When `within` has passed, with what was seen last. An error of `check` ends the wait at once.
pub async fn until<T, F, Fut>(what: &str, within: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Poll<T>>>,
{
    let deadline = Instant::now() + within;
    let mut pause = MIN_PAUSE;
    let mut last = "nothing yet".to_owned();
    loop {
        match tokio::time::timeout_at(deadline, check()).await {
            Ok(seen) => match seen.with_context(|| format!("expected {what}"))? {
                Poll::Ready(value) => return Ok(value),
                Poll::NotYet(state) => last = state,
            },
            Err(_) => {
                bail!("expected {what} within {within:?}, saw: {last}; the last check did not return")
            }
        }
        if Instant::now() + pause > deadline {
            bail!("expected {what} within {within:?}, saw: {last}");
        }
        sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Reads one object until `judge` accepts it; `None` stands for an absent object. A failed read counts as "not yet": the
/// server may be starting.
pub async fn object<K, T>(
    api: &Api<K>,
    name: &str,
    what: &str,
    within: Duration,
    judge: impl Fn(Option<K>) -> Poll<T>,
) -> Result<T>
where
    K: Clone + DeserializeOwned + Debug,
{
    until(what, within, || async {
        Ok(match api.get_opt(name).await {
            Ok(object) => judge(object),
            Err(error) => Poll::NotYet(format!("the read failed: {error}")),
        })
    })
    .await
}

/// Awaits `work`. If `process`, on which the work depends, ends first, the error has its exit status and its log.
pub async fn alive<T>(process: &Process, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done.with_context(|| format!("the log of {} is {}", process.name(), process.log().display())),
        status = process.exited() => {
            bail!("{} ended ({status}); the end of its log:\n{}", process.name(), process.log_tail(TAIL_LINES))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_wait_ends_with_the_condition() {
        let checks = AtomicU32::new(0);
        let got = until("three checks", Duration::from_secs(10), || async {
            let n = checks.fetch_add(1, Ordering::Relaxed);
            Ok(if n == 2 { Poll::Ready(n) } else { Poll::NotYet(format!("check {n}")) })
        })
        .await;
        assert_eq!(got.unwrap(), 2);
    }

    #[tokio::test]
    async fn an_expired_wait_says_what_was_expected_and_seen() {
        let got: Result<()> =
            until("Godot", Duration::from_millis(60), || async { Ok(Poll::NotYet("a tree".to_owned())) })
                .await;
        assert_eq!(got.unwrap_err().to_string(), "expected Godot within 60ms, saw: a tree");
    }

    #[tokio::test]
    async fn a_check_that_hangs_is_cut_off() {
        let got: Result<()> = until("the sea", Duration::from_millis(60), std::future::pending).await;
        assert!(got.unwrap_err().to_string().contains("the last check did not return"));
    }

    #[tokio::test]
    async fn an_error_of_the_check_ends_the_wait() {
        let got: Result<()> = until("x", Duration::from_secs(9), || async { bail!("broken") }).await;
        assert_eq!(format!("{:#}", got.unwrap_err()), "expected x: broken");
    }
}
