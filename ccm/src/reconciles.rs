//! The loop of a controller: it reconciles every object that a queue names, several at the same time, each never twice
//! at a time, and counts that in the metrics of the queue.

use std::{convert::Infallible, error::Error as StdError, fmt::Debug, hash::Hash, sync::Arc};

use futures::{Stream, StreamExt};
use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::{Action, Config, Error, applier},
        reflector::{ObjectRef, Store},
    },
};
use tokio::time::Instant;

use crate::{
    access::chain,
    queue_metrics::{Item, Queue},
};

/// Reconciles the `objects` that `due` names, at most `concurrency` at the same time (0 counts as 1). After an error,
/// `after_failure` says when the object is reconciled again. Ends when `due` has ended and the reconciles that run then
/// are done.
pub(crate) async fn run<K, C, F, E>(
    due: impl Stream<Item = ObjectRef<K>> + Send,
    objects: Store<K>,
    (queue, concurrency): (Queue, u16),
    context: Arc<C>,
    reconcile: impl Fn(Arc<K>, Arc<C>) -> F,
    after_failure: impl Fn(Arc<K>, &E, Arc<C>) -> Action,
) where
    K: Resource<DynamicType: Clone + Debug + Eq + Hash + Unpin> + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Action, E>>,
    E: StdError + 'static,
{
    let due = due.inspect(|object| queue.added(item(object))).map(Ok::<_, Infallible>);
    let counted = |object: Arc<K>, context: Arc<C>| {
        let (queue, item) = (queue.clone(), (object.namespace().unwrap_or_default(), object.name_any()));
        let reconciled = reconcile(object, context);
        Box::pin(async move {
            let began = Instant::now();
            queue.taken(&item);
            let done = reconciled.await;
            queue.done(began.elapsed().as_secs_f64(), done.is_err());
            done
        })
    };
    // kube takes 0 as no limit.
    let config = Config::default().concurrency(concurrency.max(1));
    applier(counted, after_failure, context, objects, Box::pin(due), config)
        .for_each(async |done| match done {
            Ok(_) => {}
            Err(Error::ObjectNotFound(gone)) => {
                queue.dropped(&(gone.namespace.unwrap_or_default(), gone.name));
            }
            Err(error) => tracing::debug!(error = chain(&error), "a reconcile failed"),
        })
        .await;
}

/// An object in the queue.
fn item<K: Resource>(object: &ObjectRef<K>) -> Item {
    (object.namespace.clone().unwrap_or_default(), object.name.clone())
}
