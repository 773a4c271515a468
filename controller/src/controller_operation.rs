//! One call of the controller under way: its deadline, its caller and its reports (see [`csi_call::Operation`]), and
//! the metrics of what it waits for.

use std::{fmt::Display, time::Duration};

use csi_call::{Operation, Unanswered};
use tokio::time::Instant;

use crate::{
    error::Error,
    metrics::{WaitCause, Waits},
};

/// Pause if the infra API asks for one without a length (client-go does the same).
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);

/// A call under way. Clones are the same call.
#[derive(Clone, Debug)]
pub(crate) struct ControllerOperation {
    operation: Operation,
    waits: Waits,
}

impl ControllerOperation {
    pub(crate) fn new(operation: Operation, waits: Waits) -> Self {
        Self { operation, waits }
    }

    /// Reports what the infra cluster answered last.
    pub(crate) fn report(&self, answered: impl Display) {
        self.operation.report(answered);
    }

    /// Reports what the call waits for, unless the infra cluster has answered something, which explains more.
    pub(crate) fn report_first(&self, waiting: impl Display) {
        self.operation.last_report().set_first(waiting);
    }

    /// Fails once the time is over or the caller is gone. Called before every change.
    pub(crate) fn check(&self) -> Result<(), Unanswered> {
        self.operation.check()
    }

    /// When the caller must have its answer.
    pub(crate) fn answer_by(&self) -> Instant {
        self.operation.deadline().answer_by
    }

    /// The answer when the time is over.
    pub(crate) fn late(&self) -> Unanswered {
        self.operation.late()
    }

    /// The answer when a task that this call needs has panicked.
    pub(crate) fn panicked(&self) -> Unanswered {
        self.operation.panicked()
    }

    /// Waits, at most as long as the caller does. Never used around a change that is being made.
    pub(crate) async fn wait<F: Future>(&self, future: F) -> Result<F::Output, Unanswered> {
        self.operation.wait(future).await
    }

    /// As [`Self::wait`]; also counts the time.
    pub(crate) async fn wait_for<F: Future>(
        &self,
        cause: WaitCause,
        future: F,
    ) -> Result<F::Output, Unanswered> {
        let began = Instant::now();
        let waited = self.wait(future).await;
        self.waits.add(cause, began.elapsed());
        waited
    }

    /// The counters of waits, for time that was not spent in [`Self::wait_for`].
    pub(crate) fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Makes a conditional change. If the infra API asks for a pause, the change is repeated after it while there is
    /// time.
    pub(crate) async fn change<T, F>(
        &self,
        mut change: impl FnMut() -> F,
    ) -> Result<Result<T, infra::Error>, Error>
    where
        F: Future<Output = Result<T, infra::Error>>,
    {
        loop {
            self.check()?;
            match change().await {
                Err(error) if error.class() == infra::Class::Throttled => {
                    self.report(&error);
                    let pause = error.retry_after().unwrap_or(DEFAULT_PAUSE);
                    self.wait_for(WaitCause::InfraPause, tokio::time::sleep(pause)).await?;
                }
                answer => return Ok(answer),
            }
        }
    }
}
