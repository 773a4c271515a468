//! How long a scenario waits, and what it counts as "not yet".

use std::time::Duration;

use anyhow::Result;
use kube::Api;
use serde::de::DeserializeOwned;

use crate::cluster::wait::{self, Seen};

/// How long a thing may take before the scenario calls it failed. Software emulation on a busy machine is two to four
/// times slower than on a quiet one, so these are far above what is usual; no test asserts a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// One controller reacts to one object.
    Reaction,
    /// A volume is provisioned, hotplugged, mounted; a pod starts.
    PodStart,
    /// A virtual machine boots and joins.
    MachineStart,
}

impl Deadline {
    /// The longest wait.
    pub fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Reaction => 60,
            Self::PodStart => 120,
            Self::MachineStart => 300,
        })
    }
}

/// Looks until `look` finds what it wants: `Ok(Ok(found))` ends the wait, `Ok(Err(state))` goes on; an error of the look
/// itself goes on too, because an API server may be restarting. What was seen last is told when time is up.
///
/// # Errors
/// When the deadline passes, with what was waited for and what was seen last.
pub async fn until<T, F>(what: &str, deadline: Deadline, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Result<T, String>>>,
{
    wait::until(what, deadline.duration(), || {
        let looking = look();
        async move {
            Ok(match looking.await {
                Ok(Ok(found)) => Seen::Done(found),
                Ok(Err(state)) => Seen::NotYet(state),
                Err(error) => Seen::NotYet(format!("{error:#}")),
            })
        }
    })
    .await
}

/// Waits until `api` has no object `name` any more.
///
/// # Errors
/// As [`until`]; `what` says whose end did not come.
pub async fn until_gone<K>(api: &Api<K>, name: &str, what: &str, deadline: Deadline) -> Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    until(&format!("the end of {what} {name}"), deadline, async || {
        Ok(if api.get_opt(name).await?.is_none() { Ok(()) } else { Err("it is there".to_owned()) })
    })
    .await
}
