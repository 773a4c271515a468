//! Who has the bench now, and who is next.
//!
//! Two things are shared: the workers with their volumes, and the guest's Services and Nodes, on all of which every running cloud
//! controller manager acts. A test that breaks one of them has it alone, and runs beside the tests of the other.
//!
//! A third thing is scarce: processors. A worker that reads a disk or starts a pod without KVM keeps one of them busy, and what the API
//! servers do for the test keeps the next: two such tests on two processors take longer than one after the other, and miss their
//! callers' deadlines. So at most one test for each two processors uses a worker, and one that uses none runs beside it.
//!
//! Whoever may start and comes first in the order of the suite starts. A test that wants something alone therefore waits until nobody
//! wants to share it any more: no time is spent on waiting for others to end.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// How a test uses the bench.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Lock {
    /// Uses a worker; beside a test of Services or one that only calls.
    Shared,
    /// Calls programs of its own and the API servers, and no worker computes for it; beside a test that uses a worker.
    Calls,
    /// Has the workers alone, because it breaks a node plugin or a simulator; beside tests of Services.
    Workers,
    /// Has the guest's Services and Nodes alone, because it runs a cloud controller manager; beside tests of volumes.
    Services,
    /// Has all of the bench alone, because it breaks a cluster, or measures.
    Exclusive,
}

/// Who has the bench and who waits for it.
#[derive(Clone, Debug)]
pub struct Turns {
    /// How many tests use the workers at a time.
    at_once: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Lock>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    lock: Lock,
    place: u32,
    start: oneshot::Sender<Turn>,
}

/// A turn with the bench; dropping it gives the turn to the next.
#[derive(Debug)]
pub struct Turn {
    lock: Lock,
    turns: Turns,
}

impl Turns {
    /// Nobody has the bench; later at most so many tests use the workers.
    pub fn new(at_once: usize) -> Self {
        Self { at_once, state: Arc::default() }
    }

    /// Waits for a turn. Of those that wait the one with the lowest `place` is preferred.
    pub async fn take(&self, lock: Lock, place: u32) -> Turn {
        loop {
            let (start, started) = oneshot::channel();
            self.change(|state| state.waiting.push(Waiting { lock, place, start }));
            // A sender is dropped unused only with the state itself.
            if let Ok(turn) = started.await {
                return turn;
            }
        }
    }

    /// Changes the state, then starts everybody who may start.
    fn change(&self, change: impl FnOnce(&mut State)) {
        // Turns whose waiter has gone: they end outside of the lock, which their end takes again.
        let mut refused = Vec::new();
        {
            // Valid after a panic: each change is one push or one removal.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            while let Some(index) = next(&state, self.at_once) {
                let Waiting { lock, start, .. } = state.waiting.swap_remove(index);
                state.running.push(lock);
                if let Err(turn) = start.send(Turn { lock, turns: self.clone() }) {
                    refused.push(turn);
                }
            }
        }
        drop(refused);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let lock = self.lock;
        self.turns.change(|state| {
            if let Some(index) = state.running.iter().position(|running| *running == lock) {
                state.running.swap_remove(index);
            }
        });
    }
}

/// Of those that may start, the first.
fn next(state: &State, at_once: usize) -> Option<usize> {
    let may_start = |(_, waiting): &(usize, &Waiting)| may_start(waiting.lock, &state.running, at_once);
    let able = state.waiting.iter().enumerate().filter(may_start);
    able.min_by_key(|(_, waiting)| waiting.place).map(|(index, _)| index)
}

/// Whether a test may run beside those that run.
fn may_start(lock: Lock, running: &[Lock], at_once: usize) -> bool {
    let none = |others: &[Lock]| !running.iter().any(|lock| others.contains(lock));
    match lock {
        Lock::Shared => {
            let sharing = running.iter().filter(|lock| **lock == Lock::Shared).count();
            sharing < at_once && none(&[Lock::Workers, Lock::Exclusive])
        }
        Lock::Calls => none(&[Lock::Calls, Lock::Services, Lock::Workers, Lock::Exclusive]),
        Lock::Workers => none(&[Lock::Shared, Lock::Calls, Lock::Workers, Lock::Exclusive]),
        Lock::Services => none(&[Lock::Calls, Lock::Services, Lock::Exclusive]),
        Lock::Exclusive => running.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Lock::{Calls, Exclusive, Services, Shared, Workers},
        *,
    };

    #[test]
    fn each_lock_has_alone_what_it_says() {
        let beside = |lock, running: &[Lock]| may_start(lock, running, 2);
        assert!(beside(Shared, &[Shared, Services]) && !beside(Shared, &[Shared, Shared]));
        assert!(!beside(Shared, &[Workers]) && !beside(Workers, &[Shared]) && !beside(Workers, &[Workers]));
        assert!(beside(Services, &[Shared, Shared]) && beside(Services, &[Workers]));
        assert!(beside(Calls, &[Shared]) && beside(Shared, &[Calls]) && !beside(Calls, &[Calls]));
        assert!(!beside(Calls, &[Services]) && !beside(Services, &[Calls]));
        assert!(
            !beside(Calls, &[Workers]) && !beside(Workers, &[Calls]),
            "the installed controller is gone for a while"
        );
        assert!(beside(Workers, &[Services]) && !beside(Services, &[Services]));
        for lock in [Shared, Calls, Workers, Services, Exclusive] {
            assert!(beside(lock, &[]) && !beside(lock, &[Exclusive]) && !beside(Exclusive, &[lock]));
        }
    }

    #[tokio::test]
    async fn the_first_in_order_is_next() {
        let turns = Turns::new(1);
        let now = turns.take(Shared, 9).await;
        let late = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(Shared, 2).await }
        });
        let early = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(Shared, 1).await }
        });
        while turns.state.lock().unwrap().waiting.len() < 2 {
            tokio::task::yield_now().await;
        }
        let beside = turns.take(Services, 3).await;
        drop(now);
        let early = early.await.unwrap();
        assert!(!late.is_finished());
        drop((early, beside));
        late.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_gave_up_waiting_holds_up_nobody() {
        let turns = Turns::new(1);
        let now = turns.take(Exclusive, 0).await;
        let gone = tokio::time::timeout(std::time::Duration::ZERO, turns.take(Exclusive, 1)).await;
        assert!(gone.is_err());
        drop(now);
        turns.take(Exclusive, 2).await;
    }
}
