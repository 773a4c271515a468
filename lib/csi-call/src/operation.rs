//! One operation under way, and the task that owns it.
//!
//! The work of an operation is a task of its own, which holds the volume's lock. If the caller hangs up, what the work
//! only waits for ends, but never a change that is being made; the next operation on the volume finds the result. The
//! answer comes in time even if the work does not end.

use std::{fmt::Display, time::Duration};

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Status};
use tracing::Instrument;

use crate::{
    deadline::Deadline,
    in_flight::{InFlight, LastReport, Lock},
};

/// Why an operation has no answer of its own, with what it reported last.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Its time is over.
    #[error("not finished in time: {0}")]
    Late(String),
    /// Its caller hung up.
    #[error("the caller gave up; last: {0}")]
    CallerGone(String),
    /// The process ends first; another one goes on with the work.
    #[error("the driver is being stopped, try again; last: {0}")]
    Stopping(String),
    /// A task that works for it panicked.
    #[error("internal error: the operation ended without an answer; last: {0}")]
    Panicked(String),
}

impl Unanswered {
    /// The gRPC code. None is one of the codes that sidecars and kubelet take as final: what the operation changed is
    /// not known.
    pub fn code(&self) -> Code {
        match self {
            Self::Late(_) => Code::DeadlineExceeded,
            Self::CallerGone(_) => Code::Cancelled,
            Self::Stopping(_) | Self::Panicked(_) => Code::Unavailable,
        }
    }
}

/// An operation under way. Clones are the same operation.
#[derive(Clone, Debug)]
pub struct Operation {
    deadline: Deadline,
    caller_gone: CancellationToken,
    last_report: LastReport,
}

impl Operation {
    /// An operation that holds `lock`, if it has one: a second caller then learns what this operation reports.
    pub fn new(deadline: Deadline, lock: Option<&Lock>) -> Self {
        let last_report = lock.map(Lock::last_report).unwrap_or_default();
        Self { deadline, caller_gone: CancellationToken::new(), last_report }
    }

    /// When the caller must have its answer.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Where the operation reports.
    pub fn last_report(&self) -> &LastReport {
        &self.last_report
    }

    /// Reports what another system answered, or what is being done.
    pub fn report(&self, report: impl Display) {
        self.last_report.set(report);
    }

    /// Fails once the time is over or the caller is gone. To be called before every change.
    pub fn check(&self) -> Result<(), Unanswered> {
        if self.caller_gone.is_cancelled() {
            Err(Unanswered::CallerGone(self.last_report.to_string()))
        } else if Instant::now() >= self.deadline.answer_by {
            Err(self.late())
        } else {
            Ok(())
        }
    }

    /// Waits, at most as long as the caller does. Not to be used around a change: it drops `future` half-way.
    pub async fn wait<F: Future>(&self, future: F) -> Result<F::Output, Unanswered> {
        tokio::select! {
            waited = timeout_at(self.deadline.answer_by, future) => waited.map_err(|_| self.late()),
            () = self.caller_gone.cancelled() => Err(Unanswered::CallerGone(self.last_report.to_string())),
        }
    }

    /// The answer when the time is over.
    pub fn late(&self) -> Unanswered {
        Unanswered::Late(self.last_report.to_string())
    }

    /// The answer when a task that works for it panicked.
    pub fn panicked(&self) -> Unanswered {
        Unanswered::Panicked(self.last_report.to_string())
    }
}

/// The operations of one service: their locks and their tasks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    in_flight: InFlight,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Operations {
    /// The locks.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// The tasks, for work that [`Self::shutdown`] has to wait for as well.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Runs the work of an operation in a task that owns `lock`.
    pub async fn run<T, E>(
        &self,
        operation: &Operation,
        lock: Option<Lock>,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Unanswered> + Into<Status> + Send + 'static,
    {
        let _hang_up = operation.caller_gone.clone().drop_guard();
        let caller_gone = operation.caller_gone.clone();
        let task = async move {
            let _log = LogPanic;
            let ended = work.await;
            drop(lock);
            if caller_gone.is_cancelled() {
                log_unheard(ended);
                return None;
            }
            Some(ended)
        };
        // Not supervised: if the task panics, its caller gets an error, and the volume's lock is released for the next call.
        let task = self.tasks.spawn(task.in_current_span());
        let unanswered = tokio::select! {
            // A finished answer counts, also at the last moment.
            biased;
            ended = task => match ended {
                Ok(Some(answer)) => return answer,
                Ok(None) | Err(_) => operation.panicked(),
            },
            () = sleep_until(operation.deadline.answer_by) => operation.late(),
            () = self.closing.cancelled() => Unanswered::Stopping(operation.last_report.to_string()),
        };
        Err(unanswered.into())
    }

    /// Ends the operations that only wait: each caller is asked to try again. Changes that are being made go on to
    /// their end.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Waits for operations that outlived their callers, but not longer than `grace`. True: all have ended.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.tasks.close();
        timeout(grace, self.tasks.wait()).await.is_ok()
    }
}

/// Logs the panic of an operation with its volume and node, also when nobody waits for the answer.
struct LogPanic;

impl Drop for LogPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("internal error: the operation panicked");
        }
    }
}

/// Logs how an operation ended whose caller has already had another answer. There is no other trace of it.
fn log_unheard<T>(ended: Result<T, impl Into<Status>>) {
    let Err(error) = ended.map_err(Into::<Status>::into) else {
        return tracing::info!("done after its caller was gone");
    };
    let message = error.message();
    if error.code() == Code::Cancelled {
        tracing::debug!(error = message, "ended with its caller");
    } else {
        tracing::warn!(error = message, "ended after its caller was gone");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test]
    async fn an_expired_call_ends_with_its_last_report() {
        let deadline = Deadline { answer_by: Instant::now() + Duration::from_millis(5) };
        let operation = Operation::new(deadline, None);
        operation.last_report().set_first("waiting for its turn");
        assert!(operation.late().to_string().ends_with("waiting for its turn"));
        operation.report("phase Pending");
        operation.last_report().set_first("waiting for its turn");
        let error = operation.wait(pending::<()>()).await.unwrap_err();
        assert_eq!(error.to_string(), "not finished in time: phase Pending");
        assert!(operation.check().is_err());
    }

    #[test]
    fn no_code_is_final() {
        let last = || "phase Pending".to_owned();
        for unanswered in [
            Unanswered::Late(last()),
            Unanswered::CallerGone(last()),
            Unanswered::Stopping(last()),
            Unanswered::Panicked(last()),
        ] {
            assert!(unanswered.to_string().ends_with("phase Pending"));
            let passing = [Code::DeadlineExceeded, Code::Cancelled, Code::Unavailable];
            assert!(passing.contains(&unanswered.code()), "{unanswered:?}");
        }
    }
}
