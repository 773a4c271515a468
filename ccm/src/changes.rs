//! Notices of changes: which objects of a kind changed. A subscriber gets each object once, however often it changed
//! since it last took the notices. Giving notice never waits, and nothing is kept where there is no subscriber.

use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures::{Stream, stream};
use tokio::sync::Notify;

/// Gives notice to all subscribers. `T` names an object.
#[derive(Debug)]
pub struct Changes<T> {
    subscribers: Mutex<Vec<Weak<Pending<T>>>>,
}

/// Receives notices. Dropping it ends the subscription.
#[derive(Debug)]
#[must_use = "dropping it ends the subscription"]
pub struct Subscription<T>(Arc<Pending<T>>);

#[derive(Debug)]
struct Pending<T> {
    objects: Mutex<HashSet<T>>,
    added: Notify,
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self { subscribers: Mutex::default() }
    }
}

impl<T: Clone + Eq + Hash> Changes<T> {
    /// Receives notices from now on; earlier changes are not known.
    pub fn subscribe(&self) -> Subscription<T> {
        let pending = Arc::default();
        self.lock().push(Arc::downgrade(&pending));
        Subscription(pending)
    }

    /// Gives notice that these changed.
    pub fn notify(&self, changed: &[T]) {
        self.lock().retain(|subscriber| {
            let Some(pending) = subscriber.upgrade() else { return false };
            pending.add(changed.iter().cloned());
            true
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Pending<T>>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { objects: Mutex::default(), added: Notify::new() }
    }
}

impl<T: Eq + Hash> Pending<T> {
    fn add(&self, objects: impl IntoIterator<Item = T>) {
        self.lock().extend(objects);
        self.added.notify_one();
    }
}

impl<T> Pending<T> {
    fn lock(&self) -> MutexGuard<'_, HashSet<T>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Eq + Hash> Subscription<T> {
    /// Gives notice of these to this subscriber only, such as of all objects that are there at its start.
    pub fn add(&self, objects: impl IntoIterator<Item = T>) {
        self.0.add(objects);
    }

    /// Takes the notices that wait.
    pub fn take(&self) -> HashSet<T> {
        std::mem::take(&mut *self.0.lock())
    }

    /// Waits for notices and takes them.
    pub async fn next(&self) -> HashSet<T> {
        loop {
            let changed = self.take();
            if !changed.is_empty() {
                return changed;
            }
            self.0.added.notified().await;
        }
    }

    /// The notices, one after the other, without end.
    pub fn stream(self) -> impl Stream<Item = HashSet<T>> {
        stream::unfold(self, async |subscription| Some((subscription.next().await, subscription)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_changed_often_is_taken_once() {
        let changes = Changes::default();
        let subscription = changes.subscribe();
        subscription.add(["there"]);
        assert_eq!(subscription.next().await, HashSet::from(["there"]));
        changes.notify(&["web", "web"]);
        changes.notify(&["web"]);
        assert_eq!(subscription.next().await, HashSet::from(["web"]));
        let (taken, ()) = tokio::join!(subscription.next(), async { changes.notify(&["web"]) });
        assert_eq!(taken.len(), 1);
    }

    #[tokio::test]
    async fn each_subscriber_gets_every_change() {
        let changes = Changes::default();
        let (first, second) = (changes.subscribe(), changes.subscribe());
        changes.notify(&[1, 2]);
        assert_eq!(first.next().await.len(), 2);
        changes.notify(&[3]);
        assert_eq!(first.next().await, HashSet::from([3]));
        assert_eq!(second.next().await, HashSet::from([1, 2, 3]));
    }

    #[test]
    fn nothing_is_kept_without_a_subscriber() {
        let changes = Changes::default();
        let subscription = changes.subscribe();
        changes.notify(&[1]);
        assert_eq!(*subscription.0.lock(), HashSet::from([1]));
        drop(subscription);
        changes.notify(&[1]);
        assert!(changes.lock().is_empty());
    }
}
