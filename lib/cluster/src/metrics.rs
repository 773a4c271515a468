//! What is counted of calls. The metrics themselves are in each program, because their names differ.

use std::{borrow::Cow, time::Duration};

use crate::call::Call;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer of this HTTP code.
    Answered(u16),
    /// Without an answer in time.
    Timeout,
    /// Without an answer, because the connection failed.
    Transport,
}

impl Outcome {
    /// The HTTP code, `timeout` or `transport`.
    pub fn label(self) -> Cow<'static, str> {
        match self {
            Self::Answered(code) => Cow::Owned(code.to_string()),
            Self::Timeout => Cow::Borrowed("timeout"),
            Self::Transport => Cow::Borrowed("transport"),
        }
    }
}

/// Counts calls. A repeated call counts each time; a call that was not sent does not count.
pub trait Meter: Send + Sync + 'static {
    /// A call to `host` ended after `time`; a watch is counted when it is open.
    fn called(&self, call: &Call, host: &str, outcome: Outcome, time: Duration);
    /// A call waited because the API server had asked for a pause.
    fn paused(&self, _time: Duration) {}
}

/// Counts nothing.
pub struct Unmetered;

impl Meter for Unmetered {
    fn called(&self, _call: &Call, _host: &str, _outcome: Outcome, _time: Duration) {}
}
