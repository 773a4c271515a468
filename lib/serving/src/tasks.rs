//! The owner of a program's long-lived tasks: each has a name, and none can end or panic unnoticed.
//!
//! A task that panics, or that ends although it should live as long as the program, stops the program: the other parts
//! drain, and the process exits with an error that names the task. Otherwise the process would go on, pass its probes
//! and leave the task's work undone.
//!
//! Any crate that needs a long-lived task takes a `&Tasks`. A task that needs no orderly end (a watch, a timer, a
//! queue's worker) ignores the stop: it goes on while the program drains and is dropped afterwards. A task that must
//! finish something first is a part of the program, see [`crate::Shutdown::spawn`].

use std::{
    any::Any,
    borrow::Cow,
    collections::BTreeMap,
    error::Error,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use tokio::time::timeout;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Why a task stopped the program.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task returned an error.
    #[error("{task} failed")]
    Failed {
        /// The task's name.
        task: Cow<'static, str>,
        /// Its error.
        #[source]
        source: BoxError,
    },
    /// A task that should live as long as the program returned before the stop.
    #[error("{task} ended although the program was not told to stop")]
    Ended {
        /// The task's name.
        task: Cow<'static, str>,
    },
    /// A task panicked.
    #[error("{task} panicked: {message}")]
    Panicked {
        /// The task's name.
        task: Cow<'static, str>,
        /// The panic's message.
        message: String,
    },
}

/// Spawns and supervises the long-lived tasks of a program. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    owner: Arc<Owner>,
    /// Cancelled when the tasks that are spawned here should be dropped.
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct Owner {
    /// Cancelled when the program should stop.
    stop: CancellationToken,
    tracker: TaskTracker,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The first failure.
    failure: Option<TaskError>,
    running: BTreeMap<u64, Cow<'static, str>>,
    next_id: u64,
}

/// Whether a task may end before the stop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    Program,
    UntilDone,
}

impl Tasks {
    /// Spawns a task that lives as long as the program: if it returns before the stop, the program stops with an error.
    pub fn spawn(&self, name: impl Into<Cow<'static, str>>, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_cancelled(name.into(), Lifetime::Program, task);
    }

    /// Spawns a task that may end whenever its work is done. If it panics, the program stops with an error.
    pub fn spawn_until_done(
        &self,
        name: impl Into<Cow<'static, str>>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_cancelled(name.into(), Lifetime::UntilDone, task);
    }

    fn spawn_cancelled(
        &self,
        name: Cow<'static, str>,
        lifetime: Lifetime,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let cancel = self.cancel.clone();
        let supervised = self.supervise(name, lifetime, async move {
            task.await;
            Ok(())
        });
        self.owner.tracker.spawn(async move { cancel.run_until_cancelled(supervised).await });
    }

    /// Spawns a part that ends by itself after the stop; `tracker` counts it.
    pub(crate) fn spawn_part(
        &self,
        tracker: &TaskTracker,
        name: &'static str,
        work: impl Future<Output = Result<(), BoxError>> + Send + 'static,
    ) {
        tracker.spawn(self.supervise(name.into(), Lifetime::Program, work));
    }

    /// Runs `work`; if it ends in a way that it must not, records why and stops the program.
    fn supervise(
        &self,
        name: Cow<'static, str>,
        lifetime: Lifetime,
        work: impl Future<Output = Result<(), BoxError>> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let running = Running::new(self.clone(), name);
        async move {
            // What a panic leaves half-done is not used again: the process ends.
            let ended = AssertUnwindSafe(work).catch_unwind().await;
            let owner = &running.tasks.owner;
            let task = running.name.clone();
            let error = match ended {
                Ok(Ok(())) if lifetime == Lifetime::UntilDone || owner.stop.is_cancelled() => return,
                Ok(Ok(())) => TaskError::Ended { task },
                Ok(Err(source)) => TaskError::Failed { task, source },
                Err(panic) => TaskError::Panicked { task, message: panic_message(&*panic) },
            };
            tracing::error!(source = error.source(), "stopping: {error}");
            owner.state().failure.get_or_insert(error);
            owner.stop.cancel();
        }
    }

    /// Tasks that are supervised as the others are, but dropped with the guard: for work that may end before the program
    /// and begin again.
    pub fn scope(&self) -> (Self, DropGuard) {
        let cancel = self.cancel.child_token();
        (Self { owner: Arc::clone(&self.owner), cancel: cancel.clone() }, cancel.drop_guard())
    }

    /// Cancelled when the program should stop.
    pub fn stopping(&self) -> CancellationToken {
        self.owner.stop.clone()
    }

    /// The first failure; returned only once.
    pub(crate) fn take_failure(&self) -> Option<TaskError> {
        self.owner.state().failure.take()
    }

    /// The names of the tasks that have not ended, each once.
    pub(crate) fn running(&self) -> Vec<Cow<'static, str>> {
        let mut names: Vec<_> = self.owner.state().running.values().cloned().collect();
        names.sort();
        names.dedup();
        names
    }

    /// Drops every task that is not a part and waits until they have ended, but not longer than `bound`. True: all
    /// have.
    pub(crate) async fn cancel(&self, bound: Duration) -> bool {
        self.cancel.cancel();
        self.owner.tracker.close();
        timeout(bound, self.owner.tracker.wait()).await.is_ok()
    }
}

impl Owner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the name of a task in the list as long as the task exists.
struct Running {
    tasks: Tasks,
    name: Cow<'static, str>,
    id: u64,
}

impl Running {
    fn new(tasks: Tasks, name: Cow<'static, str>) -> Self {
        let id = {
            let mut state = tasks.owner.state();
            let id = state.next_id;
            state.next_id += 1;
            state.running.insert(id, name.clone());
            id
        };
        Self { tasks, name, id }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.owner.state().running.remove(&self.id);
    }
}

/// `panic!` carries a `&str` or a `String`.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    const BOUND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_panic_stops_the_program_with_its_message() {
        let tasks = Tasks::default();
        tasks.spawn("the watch of Nodes", pending());
        tasks.spawn_until_done("the poller", async { panic!("index {} is out of bounds", 7) });
        tasks.stopping().cancelled().await;
        let error = tasks.take_failure().expect("is recorded");
        assert_eq!(error.to_string(), "the poller panicked: index 7 is out of bounds");
        assert_eq!(tasks.running(), ["the watch of Nodes"]);
    }

    #[tokio::test]
    async fn the_end_of_a_task_that_should_not_end_stops_the_program() {
        let tasks = Tasks::default();
        tasks.spawn("the watch of Nodes", async {});
        tasks.stopping().cancelled().await;
        let error = tasks.take_failure().expect("is recorded").to_string();
        assert_eq!(error, "the watch of Nodes ended although the program was not told to stop");
    }

    #[tokio::test]
    async fn a_task_with_an_end_may_end() {
        let tasks = Tasks::default();
        tasks.spawn_until_done("the report of missing rights", async {});
        assert!(tasks.cancel(BOUND).await);
        assert!(tasks.take_failure().is_none() && !tasks.stopping().is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_never_ends_is_dropped() {
        let tasks = Tasks::default();
        let (held, dropped) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn("the watch of Nodes", async move {
            let _held = held;
            pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert!(tasks.cancel(BOUND).await);
        assert!(dropped.await.is_err() && tasks.running().is_empty());
        assert!(tasks.take_failure().is_none(), "a task that was cancelled did not fail");
    }

    #[tokio::test]
    async fn a_scope_drops_its_tasks_and_the_program_goes_on() {
        let tasks = Tasks::default();
        tasks.spawn("the signal handler", pending());
        for _ in 0..2 {
            let (scope, guard) = tasks.scope();
            let (held, dropped) = tokio::sync::oneshot::channel::<()>();
            scope.spawn("the watch of Nodes", async move {
                let _held = held;
                pending::<()>().await;
            });
            tokio::task::yield_now().await;
            drop(guard);
            assert!(dropped.await.is_err(), "the task was dropped");
        }
        assert_eq!(tasks.running(), ["the signal handler"]);
        assert!(tasks.take_failure().is_none() && !tasks.stopping().is_cancelled());
    }

    #[tokio::test]
    async fn the_stop_of_the_program_drops_the_tasks_of_a_scope_too() {
        let tasks = Tasks::default();
        let (scope, _guard) = tasks.scope();
        scope.spawn("the watch of Nodes", pending());
        assert!(tasks.cancel(BOUND).await && tasks.running().is_empty());
    }

    #[tokio::test]
    async fn a_panic_in_a_scope_stops_the_program() {
        let tasks = Tasks::default();
        let (scope, _guard) = tasks.scope();
        scope.spawn("the watch of Nodes", async { panic!("odd") });
        tasks.stopping().cancelled().await;
        assert_eq!(
            tasks.take_failure().expect("is recorded").to_string(),
            "the watch of Nodes panicked: odd"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_that_blocks_its_thread_is_named_and_not_waited_for() {
        let tasks = Tasks::default();
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        tasks.spawn("the blocked task", async move {
            began.send(()).expect("the test waits");
            may_go_on.recv().unwrap_or_default();
        });
        has_begun.await.expect("begins");
        assert!(!tasks.cancel(Duration::from_millis(20)).await);
        assert_eq!(tasks.running(), ["the blocked task"]);
        drop(go_on);
    }
}
