//! How long a scenario waits, and what counts as "not yet".

use std::time::Duration;

use anyhow::Result;
use kube::Api;
use serde::de::DeserializeOwned;

use crate::cluster::wait::{self, Poll};

/// How long something may take before the scenario fails. Software emulation is two to four times slower on a busy machine
/// than on a quiet one, and compilers and other tests run beside each test, so these limits are far above the usual time; no test
/// asserts a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// One controller reacts to one object.
    Reaction,
    /// A volume is provisioned, hotplugged, mounted; a pod starts.
    PodStart,
    /// A virtual machine boots and joins.
    MachineStart,
    /// A worker reads so many bytes of its disks, and reacts.
    Reading(u64),
}

/// Seconds of [`Deadline::Reaction`].
const REACTION: u64 = 120;

/// How many bytes a worker reads in a second, at least: an emulated processor reads 100 MiB on a quiet machine.
const READ_IN_A_SECOND: u64 = 25 << 20;

impl Deadline {
    /// The longest wait.
    pub fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Reaction => REACTION,
            Self::PodStart => 300,
            Self::MachineStart => 600,
            Self::Reading(bytes) => REACTION + bytes.div_ceil(READ_IN_A_SECOND),
        })
    }
}

/// Repeats `check`: `Ok(Ok(found))` ends the wait, `Ok(Err(state))` continues it. An error of `check` continues it too,
/// because an API server may be restarting. `what` completes the sentence "expected …".
///
/// # Errors
/// When the deadline passes, with what was expected and what was seen last.
pub async fn until<T, F>(what: &str, deadline: Deadline, mut check: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Result<T, String>>>,
{
    wait::until(what, deadline.duration(), || {
        let checked = check();
        async move {
            Ok(match checked.await {
                Ok(Ok(found)) => Poll::Ready(found),
                Ok(Err(state)) => Poll::NotYet(state),
                Err(error) => Poll::NotYet(format!("{error:#}")),
            })
        }
    })
    .await
}

/// Waits until `api` has no object `name` any more.
///
/// # Errors
/// As [`until`]; `what` is the kind of the object.
pub async fn until_gone<K>(api: &Api<K>, name: &str, what: &str, deadline: Deadline) -> Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    until(&format!("{what} {name} to be gone"), deadline, async || {
        Ok(if api.get_opt(name).await?.is_none() { Ok(()) } else { Err("it still exists".to_owned()) })
    })
    .await
}
