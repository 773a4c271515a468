//! The pause that an API server asks for with `Retry-After`.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::Error;

/// Longest pause that is honoured: a broken proxy must not stop the program for an hour.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The pause under way, shared by all calls of one client.
#[derive(Default)]
pub(crate) struct Pace(Mutex<Option<Pause>>);

struct Pause {
    until: Instant,
    /// The answer that last asked for it.
    asked: Error,
}

impl Pace {
    /// The end of the pause; it may be over.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.lock().as_ref().map(|pause| pause.until)
    }

    /// Begins a pause, because the answer `asked` asks for it.
    pub(crate) fn pause(&self, pause: Duration, asked: &Error) {
        let until = Instant::now() + pause.min(MAX_RETRY_AFTER);
        let mut paused = self.lock();
        let until = paused.as_ref().map_or(until, |known| known.until.max(until));
        *paused = Some(Pause { until, asked: asked.clone() });
    }

    /// A call succeeded: a pause that is over is forgotten.
    pub(crate) fn succeeded(&self) {
        self.lock().take_if(|pause| pause.until <= Instant::now());
    }

    /// The answer that asked for a pause, as long as no call has succeeded after it.
    pub(crate) fn asked(&self) -> Option<Error> {
        self.lock().as_ref().map(|pause| pause.asked.clone())
    }

    /// One assignment is made under the lock, so its content is valid after a panic too.
    fn lock(&self) -> MutexGuard<'_, Option<Pause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
