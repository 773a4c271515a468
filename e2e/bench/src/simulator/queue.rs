//! One work queue per kind: runs a [`Controller`] for ever, tries again what failed, and logs why.
//!
//! The watch backs off by itself (`kube::runtime` default backoff); what is decided about an object is the caller's.

use std::{fmt, hash::Hash, sync::Arc, time::Duration};

use anyhow::Result;
use futures::StreamExt;
use kube::{
    Resource,
    runtime::{Controller, controller::Action, watcher},
};
use serde::de::DeserializeOwned;
use tokio_util::task::AbortOnDropHandle;

/// After a conflict the newer object is on its way; this is for the case that its event came before our write.
const AFTER_CONFLICT: Duration = Duration::from_millis(50);
/// After any other error; the parts that are simulated start at one second too (`workqueue` retries of virt-handler).
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// HTTP status of a write with an old resourceVersion.
const CONFLICT: u16 = 409;
/// HTTP status of an object that is gone.
const NOT_FOUND: u16 = 404;

/// Runs `controller` with `reconcile` in a task of its own until the handle is dropped.
pub(super) fn run<K, C, Fut>(
    name: &'static str,
    controller: Controller<K>,
    context: Arc<C>,
    reconcile: impl Fn(Arc<K>, Arc<C>) -> Fut + Send + Sync + 'static,
) -> AbortOnDropHandle<()>
where
    K: Clone + Resource + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
    K::DynamicType: fmt::Debug + Clone + Eq + Hash + Unpin + Send + Sync + 'static,
    C: Send + Sync + 'static,
    Fut: Future<Output = Result<Action>> + Send + 'static,
{
    let reconcile = move |object, context| {
        let outcome = reconcile(object, context);
        async move { outcome.await.map_err(ReconcileError) }
    };
    let stream = controller.run(reconcile, |_, failure, _| failure.action(), context);
    AbortOnDropHandle::new(tokio::spawn(stream.for_each(move |outcome| async move {
        if let Err(error) = outcome {
            tell(name, &error);
        }
    })))
}

/// Whether `error` is an API server's answer with this HTTP status.
pub(super) fn answered(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Whether `error` means that the object is gone.
pub(super) fn not_found(error: &kube::Error) -> bool {
    answered(error, NOT_FOUND)
}

/// Whether `error` means that the object exists, or is newer than the one read.
pub(super) fn conflict(error: &kube::Error) -> bool {
    answered(error, CONFLICT)
}

/// [`Controller`] wants a `std::error::Error`, which `anyhow::Error` is not.
#[derive(Debug)]
struct ReconcileError(anyhow::Error);

impl ReconcileError {
    fn is_conflict(&self) -> bool {
        self.0.downcast_ref::<kube::Error>().is_some_and(conflict)
    }

    fn action(&self) -> Action {
        Action::requeue(if self.is_conflict() { AFTER_CONFLICT } else { AFTER_ERROR })
    }
}

impl fmt::Display for ReconcileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.downcast_ref::<kube::Error>() {
            // Its own text has the whole answer in it, twice.
            Some(kube::Error::Api(status)) => f.write_str(&status.message),
            _ => write!(f, "{:#}", self.0),
        }
    }
}

impl std::error::Error for ReconcileError {}

fn tell(name: &str, error: &kube::runtime::controller::Error<ReconcileError, watcher::Error>) {
    use kube::runtime::controller::Error;
    match error {
        Error::ReconcilerFailed(failure, _) if failure.is_conflict() => {}
        Error::ReconcilerFailed(failure, object) => {
            tracing::warn!(simulator = name, %object, "{failure}; trying again");
        }
        // The object went away between its event and its turn.
        Error::ObjectNotFound(_) => {}
        other => tracing::warn!(simulator = name, "{other}"),
    }
}
