//! What is counted of calls. The metrics themselves are in each program, because their names differ.

use std::{borrow::Cow, time::Duration};

use crate::{bounds::TooLong, call::Call};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer of this HTTP code.
    Answered(u16),
    /// Without an answer in time.
    Timeout,
    /// Without an answer, because the connection failed.
    Transport,
    /// With an answer that is longer than [`crate::MAX_ANSWER`].
    TooLong,
}

impl Outcome {
    pub(crate) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        if error.is::<TooLong>() { Self::TooLong } else { Self::Transport }
    }

    /// The HTTP code, `timeout`, `transport` or `too_long`.
    pub fn label(self) -> Cow<'static, str> {
        match self {
            Self::Answered(code) => Cow::Owned(code.to_string()),
            Self::Timeout => Cow::Borrowed("timeout"),
            Self::Transport => Cow::Borrowed("transport"),
            Self::TooLong => Cow::Borrowed("too_long"),
        }
    }
}

/// Counts calls. A repeated call counts each time; a call that was not sent does not count.
pub trait Meter: Send + Sync + 'static {
    /// A call to `host` ended after `time`; a watch is counted when it is open.
    fn called(&self, call: &Call, host: &str, outcome: Outcome, time: Duration);
    /// A call waited because the API server had asked for a pause.
    fn paused(&self, _time: Duration) {}
    /// A change to `host` waited for `time` until the rate of changes allowed it; mostly zero.
    fn waited(&self, _call: &Call, _host: &str, _time: Duration) {}
}

/// Counts nothing.
pub struct Unmetered;

impl Meter for Unmetered {
    fn called(&self, _call: &Call, _host: &str, _outcome: Outcome, _time: Duration) {}
}
