//! How a program ends: the first signal stops accepting work and drains for a bounded time, a second signal aborts; a
//! task that fails stops the program with that task's error.

use std::{borrow::Cow, error::Error, future::Future, io, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::tasks::{TaskError, Tasks};

/// How long RPCs in flight may take after the first signal. Kubernetes kills 30 s after it
/// (`terminationGracePeriodSeconds`, default); the difference is for the last log lines.
pub const DRAIN_BOUND: Duration = Duration::from_secs(25);
/// How long cancelled tasks may take to end. A task ends at its next wait, so only one that blocks its thread needs
/// longer.
const CANCEL_BOUND: Duration = Duration::from_secs(1);

/// Why a program did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// A task failed, panicked, or ended too early.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Work was left when the time was over.
    #[error("{} did not end within {} s of the stop; the next start finds that work and finishes it", names(.running), .bound.as_secs())]
    StillRunning {
        /// The names of the tasks that did not end.
        running: Vec<Cow<'static, str>>,
        /// How long they were waited for.
        bound: Duration,
    },
    /// A second signal came.
    #[error("a second signal ended the program before it had drained")]
    Aborted,
}

fn names(running: &[Cow<'static, str>]) -> String {
    running.join(", ")
}

/// The stop of a program and the owner of its tasks. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    tasks: Tasks,
    parts: TaskTracker,
    abort: CancellationToken,
}

impl Shutdown {
    /// Listens for SIGTERM and SIGINT from here on. Needs a runtime.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::default();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let signalled = shutdown.clone();
        shutdown.tasks.spawn("the signal handler", async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                signalled.signal();
            }
        });
        Ok(shutdown)
    }

    /// Handles one signal: the first stops, each later one aborts.
    fn signal(&self) {
        if self.stopping().is_cancelled() {
            tracing::warn!("second signal: aborting");
            self.abort.cancel();
        } else {
            tracing::info!("signal: draining");
            self.stopping().cancel();
        }
    }

    /// Cancelled when the program should stop accepting work.
    pub fn stopping(&self) -> CancellationToken {
        self.tasks.stopping()
    }

    /// Spawns long-lived tasks that need no orderly end.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Spawns a part of the program: a task that ends by itself after the stop, once it has finished what it has begun.
    /// If it ends before the stop, or with an error at any time, the program stops with an error.
    pub fn spawn<F, E>(&self, part: &'static str, work: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.tasks.spawn_part(&self.parts, part, async move { work.await.map_err(Into::into) });
    }

    /// Waits for the stop, then at most `bound` for the parts to end, then drops all other tasks. The first thing that
    /// went wrong is the error.
    pub async fn drained(self, bound: Duration) -> Result<(), ShutdownError> {
        self.stopping().cancelled().await;
        self.parts.close();
        tokio::select! {
            () = self.parts.wait() => {}
            () = tokio::time::sleep(bound) => {}
            () = self.abort.cancelled() => return Err(self.failure().unwrap_or(ShutdownError::Aborted)),
        }
        self.tasks.cancel(CANCEL_BOUND).await;
        let running = self.tasks.running();
        let late = (!running.is_empty()).then_some(ShutdownError::StillRunning { running, bound });
        self.failure().or(late).map_or(Ok(()), Err)
    }

    fn failure(&self) -> Option<ShutdownError> {
        self.tasks.take_failure().map(ShutdownError::Task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    const BOUND: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_lets_work_in_flight_finish() {
        let shutdown = Shutdown::default();
        let stop = shutdown.stopping();
        shutdown.spawn("worker", async move {
            stop.cancelled().await;
            tokio::time::sleep(BOUND / 2).await;
            Ok::<(), io::Error>(())
        });
        shutdown.signal();
        let started = tokio::time::Instant::now();
        shutdown.drained(BOUND).await.expect("drains");
        assert_eq!(started.elapsed(), BOUND / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_is_bounded() {
        let shutdown = Shutdown::default();
        shutdown.spawn("worker", pending::<Result<(), io::Error>>());
        shutdown.signal();
        shutdown.tasks().spawn("watch", pending());
        let error = shutdown.drained(BOUND).await.expect_err("is late");
        assert!(
            matches!(&error, ShutdownError::StillRunning { running, bound: BOUND } if running == &["worker"]),
            "{error:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_signal_aborts_at_once() {
        let shutdown = Shutdown::default();
        shutdown.spawn("worker", pending::<Result<(), io::Error>>());
        shutdown.signal();
        shutdown.signal();
        let started = tokio::time::Instant::now();
        assert!(matches!(shutdown.drained(BOUND).await, Err(ShutdownError::Aborted)));
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_part_that_fails_ends_the_program_with_its_error() {
        let shutdown = Shutdown::default();
        shutdown.spawn("socket", async { Err(io::Error::other("no more files")) });
        shutdown.spawn("other", {
            let stop = shutdown.stopping();
            async move {
                stop.cancelled().await;
                Ok::<(), io::Error>(())
            }
        });
        let error = shutdown.drained(BOUND).await.expect_err("fails");
        assert!(
            matches!(&error, ShutdownError::Task(TaskError::Failed { task, .. }) if task == "socket"),
            "{error:?}"
        );
        assert_eq!(error.source().expect("has a source").to_string(), "no more files");
    }

    #[tokio::test]
    async fn a_part_that_ends_unasked_ends_the_program() {
        let shutdown = Shutdown::default();
        shutdown.spawn("socket", async { Ok::<(), io::Error>(()) });
        let error = shutdown.drained(BOUND).await.expect_err("fails");
        assert!(
            matches!(&error, ShutdownError::Task(TaskError::Ended { task }) if task == "socket"),
            "{error:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_panics_ends_the_program_once_the_others_have_drained() {
        let shutdown = Shutdown::default();
        shutdown.tasks().spawn("watch", pending());
        shutdown.spawn("worker", {
            let stop = shutdown.stopping();
            async move {
                stop.cancelled().await;
                tokio::time::sleep(BOUND / 2).await;
                Ok::<(), io::Error>(())
            }
        });
        shutdown.spawn::<_, io::Error>("socket", async { panic!("no slot {}", 3) });
        let started = tokio::time::Instant::now();
        let error = shutdown.drained(BOUND).await.expect_err("fails");
        assert_eq!(
            (error.to_string().as_str(), started.elapsed()),
            ("socket panicked: no slot 3", BOUND / 2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_are_no_parts_hold_up_nothing() {
        let shutdown = Shutdown::default();
        shutdown.tasks().spawn("watch", pending());
        shutdown.signal();
        let started = tokio::time::Instant::now();
        shutdown.drained(BOUND).await.expect("drains");
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
