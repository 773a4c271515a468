//! How a scenario reports its steps.

use std::time::Duration;

/// Is called with each step of a flow when it is seen: the step, what was seen, and the time since the flow began.
pub type Narrator<'a, Step> = dyn Fn(Step, &str, Duration) + Sync + 'a;
