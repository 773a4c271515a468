//! Waiting for a condition, with a deadline, and an error that tells what was seen last.

use std::{fmt::Debug, future::Future, time::Duration};

use anyhow::{Context, Result, bail};
use kube::Api;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::supervise::Process;

/// First pause between two looks; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(25);

/// Longest pause between two looks.
const MAX_PAUSE: Duration = Duration::from_millis(400);

/// Lines of a dead process's log that go into the error.
const TAIL_LINES: usize = 15;

/// What one look at the world showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// The condition holds.
    Done(T),
    /// It does not hold yet; the text says what is the case instead.
    NotYet(String),
}

/// Looks until the condition holds. `what` completes the sentence "waiting for …".
///
/// # Errors
/// When `within` has passed, with what was seen last; or with the look's own error, which ends the wait at once.
pub async fn until<T, F, Fut>(what: &str, within: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Seen<T>>>,
{
    let deadline = Instant::now() + within;
    let mut pause = MIN_PAUSE;
    let mut last = "nothing yet".to_owned();
    loop {
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(seen) => match seen.with_context(|| format!("waiting for {what}"))? {
                Seen::Done(value) => return Ok(value),
                Seen::NotYet(state) => last = state,
            },
            Err(_) => {
                bail!("waited {within:?} for {what}, and the last look did not end; seen before it: {last}")
            }
        }
        if Instant::now() + pause > deadline {
            bail!("waited {within:?} for {what}; last seen: {last}");
        }
        sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Reads one object until `judge` is content; `None` stands for an absent object. Failed reads count as "not yet": the
/// server may be starting.
pub async fn object<K, T>(
    api: &Api<K>,
    name: &str,
    what: &str,
    within: Duration,
    judge: impl Fn(Option<K>) -> Seen<T>,
) -> Result<T>
where
    K: Clone + DeserializeOwned + Debug,
{
    until(what, within, || async {
        Ok(match api.get_opt(name).await {
            Ok(object) => judge(object),
            Err(error) => Seen::NotYet(format!("the read failed: {error}")),
        })
    })
    .await
}

/// Awaits `work`, unless `process`, which the work depends on, ends first: then the error has its exit and log.
pub async fn alive<T>(process: &Process, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done.with_context(|| format!("the log of {} is {}", process.name(), process.log().display())),
        status = process.exited() => {
            bail!("{} ended ({status}); its log ends so:\n{}", process.name(), process.log_tail(TAIL_LINES))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_wait_ends_with_the_condition() {
        let looks = AtomicU32::new(0);
        let got = until("three looks", Duration::from_secs(10), || async {
            let n = looks.fetch_add(1, Ordering::Relaxed);
            Ok(if n == 2 { Seen::Done(n) } else { Seen::NotYet(format!("look {n}")) })
        })
        .await;
        assert_eq!(got.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_wait_that_ends_too_late_tells_what_it_saw() {
        let got: Result<()> =
            until("Godot", Duration::from_millis(60), || async { Ok(Seen::NotYet("a tree".to_owned())) })
                .await;
        assert_eq!(got.unwrap_err().to_string(), "waited 60ms for Godot; last seen: a tree");
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_cut_off() {
        let got: Result<()> = until("the sea", Duration::from_millis(60), std::future::pending).await;
        assert!(got.unwrap_err().to_string().contains("the last look did not end"));
    }

    #[tokio::test]
    async fn an_error_of_the_look_ends_the_wait() {
        let got: Result<()> = until("x", Duration::from_secs(9), || async { bail!("broken") }).await;
        assert_eq!(format!("{:#}", got.unwrap_err()), "waiting for x: broken");
    }
}
