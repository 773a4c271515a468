//! The end of a program, and when it comes: the first signal stops accepting and drains for a bounded time, the
//! second one aborts; a part that ends early ends the program with that part's error.

use std::error::Error;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long RPCs in flight may take after the first signal. Kubernetes kills 30 s after it
/// (`terminationGracePeriodSeconds`, default); the difference is for the last log lines.
pub const DRAIN_BOUND: Duration = Duration::from_secs(25);

/// Why a program did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// A part failed.
    #[error("{part} failed")]
    Failed {
        /// The part's name.
        part: &'static str,
        /// Its error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A part ended although nobody asked for it.
    #[error("{part} ended although the program was not told to stop")]
    Ended {
        /// The part's name.
        part: &'static str,
    },
    /// Work was left when the time was over.
    #[error("work was still going on {} s after the stop; it will be found and finished at the next start", .0.as_secs())]
    DrainTimedOut(Duration),
    /// A second signal came.
    #[error("a second signal ended the program before it had drained")]
    Aborted,
}

/// The one token and the one task tracker of a program. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    stop: CancellationToken,
    abort: CancellationToken,
    tasks: TaskTracker,
    failure: Arc<Mutex<Option<ShutdownError>>>,
}

impl Shutdown {
    /// Listens for SIGTERM and SIGINT from here on. Needs a runtime.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::default();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let signalled = shutdown.clone();
        // Not tracked: it waits for ever by design and ends with the runtime.
        tokio::spawn(async move {
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

    /// What one signal does: the first stops, each later one aborts.
    fn signal(&self) {
        if self.stop.is_cancelled() {
            tracing::warn!("second signal: aborting");
            self.abort.cancel();
        } else {
            tracing::info!("signal: draining");
            self.stop.cancel();
        }
    }

    /// Cancelled when the program is to stop accepting work.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a part that should live as long as the program. Its end before the stop, or its error at any time,
    /// ends the program.
    pub fn spawn<F, E>(&self, part: &'static str, work: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let shutdown = self.clone();
        self.tasks.spawn(async move {
            let failure = match work.await {
                Ok(()) if shutdown.stop.is_cancelled() => return,
                Ok(()) => ShutdownError::Ended { part },
                Err(error) => ShutdownError::Failed { part, source: error.into() },
            };
            shutdown.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
            shutdown.stop.cancel();
        });
    }

    /// Waits for the stop, then at most `bound` for the parts to end. The first thing that went wrong is the error.
    pub async fn drained(self, bound: Duration) -> Result<(), ShutdownError> {
        self.stop.cancelled().await;
        self.tasks.close();
        let late = tokio::select! {
            () = self.tasks.wait() => None,
            () = tokio::time::sleep(bound) => Some(ShutdownError::DrainTimedOut(bound)),
            () = self.abort.cancelled() => Some(ShutdownError::Aborted),
        };
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.or(late).map_or(Ok(()), Err)
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
        assert!(matches!(shutdown.drained(BOUND).await, Err(ShutdownError::DrainTimedOut(BOUND))));
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
        assert!(matches!(&error, ShutdownError::Failed { part: "socket", .. }), "{error:?}");
        assert_eq!(error.source().expect("has a source").to_string(), "no more files");
    }

    #[tokio::test]
    async fn a_part_that_ends_unasked_ends_the_program() {
        let shutdown = Shutdown::default();
        shutdown.spawn("socket", async { Ok::<(), io::Error>(()) });
        assert!(matches!(shutdown.drained(BOUND).await, Err(ShutdownError::Ended { part: "socket" })));
    }
}
