//! One operation per volume: which one runs, since when, and what it is doing.
//!
//! Kept in memory only: after a restart nothing is running.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::error::{Error, Result};

/// What an operation is doing right now; later calls for the same volume report it.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Mutex<String>>);

impl Progress {
    /// Sets what is being done.
    pub fn set(&self, text: impl Into<String>) {
        *lock(&self.0) = text.into();
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = lock(&self.0);
        f.write_str(if text.is_empty() { "starting" } else { &text })
    }
}

/// These values are valid after any panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Running {
    operation: &'static str,
    since: Instant,
    progress: Progress,
}

/// The operations that run.
#[derive(Debug, Clone, Default)]
pub struct Inflight(Arc<Mutex<HashMap<String, Running>>>);

/// The right to work on one key; ends when dropped.
#[derive(Debug)]
pub struct Claim {
    key: String,
    progress: Progress,
    inflight: Inflight,
}

impl Inflight {
    /// Takes the key.
    ///
    /// # Errors
    /// `OperationRunning` while another operation has it.
    pub fn claim(&self, key: &str, operation: &'static str) -> Result<Claim> {
        match lock(&self.0).entry(key.to_owned()) {
            Entry::Occupied(running) => Err(Error::OperationRunning {
                volume: key.to_owned(),
                operation: running.get().operation,
                age: running.get().since.elapsed(),
                progress: running.get().progress.to_string(),
            }),
            Entry::Vacant(free) => {
                let progress = Progress::default();
                free.insert(Running { operation, since: Instant::now(), progress: progress.clone() });
                Ok(Claim { key: key.to_owned(), progress, inflight: self.clone() })
            }
        }
    }
}

impl Inflight {
    /// Age of the oldest operation that runs.
    pub fn oldest(&self) -> Option<Duration> {
        lock(&self.0).values().map(|running| running.since.elapsed()).max()
    }
}

impl Claim {
    /// Where the holder reports what it does.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        drop(lock(&self.inflight.0).remove(&self.key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_claim_is_told_who_is_at_it_until_the_first_ends() {
        let inflight = Inflight::default();
        let claim = inflight.claim("v", "NodeStageVolume").unwrap();
        claim.progress().set("formatting sda");
        assert!(inflight.oldest().is_some());
        let error = inflight.claim("v", "NodeUnstageVolume").unwrap_err();
        assert!(error.to_string().contains("NodeStageVolume of volume v"), "{error}");
        assert!(error.to_string().contains("formatting sda"), "{error}");
        drop(inflight.claim("w", "NodeStageVolume").unwrap());
        drop(claim);
        assert_eq!(inflight.oldest(), None);
        drop(inflight.claim("v", "NodeUnstageVolume").unwrap());
    }
}
