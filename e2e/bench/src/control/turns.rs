//! Who has the bench now, and who is next.
//!
//! Two things are shared: the workers with their volumes, and the guest's Services and Nodes, on all of which every running cloud
//! controller manager acts. A test that breaks one of them has it alone, and runs beside the tests of the other.
//!
//! A third thing is scarce: a worker's one processor, without KVM. A test that uses one worker has it alone, and is told which. One
//! keeps 0.6 of a processor busy, because it waits for kubelet and the controllers too, so that as many run at a time as there are
//! workers and processors. A test that uses several workers keeps more, and runs with no other test of workers on two processors.
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
    /// Has one worker alone, the one that its turn names, and may break its node plugin; beside such a test of another worker.
    OneWorker,
    /// Uses several workers; beside a test of Services or one that only calls.
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
    limits: Limits,
    state: Arc<Mutex<State>>,
}

/// How much runs at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Workers of which each is one test's.
    pub workers: usize,
    /// Tests that share all workers.
    pub sharing: usize,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Running>,
    waiting: Vec<Waiting>,
}

/// A test that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Running {
    lock: Lock,
    /// Which worker is its own, for [`Lock::OneWorker`].
    worker: Option<usize>,
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
    running: Running,
    turns: Turns,
}

impl Turn {
    /// The worker that is this test's, counted from zero; for [`Lock::OneWorker`].
    pub const fn worker(&self) -> Option<usize> {
        self.running.worker
    }
}

impl Turns {
    /// Nobody has the bench.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: Arc::default() }
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
            while let Some((index, running)) = next(&state, self.limits) {
                let Waiting { start, .. } = state.waiting.swap_remove(index);
                state.running.push(running);
                if let Err(turn) = start.send(Turn { running, turns: self.clone() }) {
                    refused.push(turn);
                }
            }
        }
        drop(refused);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let own = self.running;
        self.turns.change(|state| {
            if let Some(index) = state.running.iter().position(|running| *running == own) {
                state.running.swap_remove(index);
            }
        });
    }
}

/// Of those that may start, the first, and what it has then.
fn next(state: &State, limits: Limits) -> Option<(usize, Running)> {
    let able = state.waiting.iter().enumerate().filter_map(|(index, waiting)| {
        start(waiting.lock, &state.running, limits).map(|running| (waiting.place, index, running))
    });
    able.min_by_key(|(place, ..)| *place).map(|(_, index, running)| (index, running))
}

/// What a test has if it may run beside those that run.
fn start(lock: Lock, running: &[Running], limits: Limits) -> Option<Running> {
    let none = |others: &[Lock]| !running.iter().any(|test| others.contains(&test.lock));
    let mut worker = None;
    let may_start = match lock {
        Lock::OneWorker => {
            worker =
                (0..limits.workers).find(|worker| !running.iter().any(|test| test.worker == Some(*worker)));
            worker.is_some() && none(&[Lock::Shared, Lock::Workers, Lock::Exclusive])
        }
        Lock::Shared => {
            let sharing = running.iter().filter(|test| test.lock == Lock::Shared).count();
            sharing < limits.sharing && none(&[Lock::OneWorker, Lock::Workers, Lock::Exclusive])
        }
        Lock::Calls => none(&[Lock::Calls, Lock::Services, Lock::Workers, Lock::Exclusive]),
        Lock::Workers => none(&[Lock::OneWorker, Lock::Shared, Lock::Calls, Lock::Workers, Lock::Exclusive]),
        Lock::Services => none(&[Lock::Calls, Lock::Services, Lock::Exclusive]),
        Lock::Exclusive => running.is_empty(),
    };
    may_start.then_some(Running { lock, worker })
}

#[cfg(test)]
mod tests {
    use super::{
        Lock::{Calls, Exclusive, OneWorker, Services, Shared, Workers},
        *,
    };

    const LIMITS: Limits = Limits { workers: 2, sharing: 2 };
    const ONE: Limits = Limits { workers: 1, sharing: 1 };

    /// Whether a test may start beside others, of which each that has a worker alone has the next.
    fn beside(lock: Lock, others: &[Lock]) -> bool {
        let mut running = Vec::new();
        for other in others {
            running.push(start(*other, &running, LIMITS).expect("the others run beside each other"));
        }
        start(lock, &running, LIMITS).is_some()
    }

    #[test]
    fn each_lock_has_alone_what_it_says() {
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
        assert!(beside(OneWorker, &[OneWorker, Calls]) && !beside(OneWorker, &[OneWorker, OneWorker]));
        assert!(!beside(OneWorker, &[Shared]) && !beside(Shared, &[OneWorker]));
        assert!(!beside(OneWorker, &[Workers]) && !beside(Workers, &[OneWorker]));
        assert!(beside(Services, &[OneWorker, OneWorker]) && beside(Calls, &[OneWorker, OneWorker]));
        for lock in [OneWorker, Shared, Calls, Workers, Services, Exclusive] {
            assert!(beside(lock, &[]) && !beside(lock, &[Exclusive]) && !beside(Exclusive, &[lock]));
        }
    }

    #[tokio::test]
    async fn each_worker_is_one_tests() {
        let turns = Turns::new(LIMITS);
        let (first, second) = (turns.take(OneWorker, 0).await, turns.take(OneWorker, 1).await);
        assert_eq!((first.worker(), second.worker()), (Some(0), Some(1)));
        drop(first);
        assert_eq!(turns.take(OneWorker, 2).await.worker(), Some(0));
        assert_eq!(turns.take(Services, 3).await.worker(), None);
    }

    #[tokio::test]
    async fn the_first_in_order_is_next() {
        let turns = Turns::new(ONE);
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
        let turns = Turns::new(ONE);
        let now = turns.take(Exclusive, 0).await;
        let gone = tokio::time::timeout(std::time::Duration::ZERO, turns.take(Exclusive, 1)).await;
        assert!(gone.is_err());
        drop(now);
        turns.take(Exclusive, 2).await;
    }
}
