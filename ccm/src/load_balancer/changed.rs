//! Which Services changed, each once however often, until somebody looks. Telling never waits. Nothing is kept while nobody
//! follows: where others write the endpoints, nobody does, for as long as the process lives.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

use crate::guest::services::GuestService;

/// The guest's Services that changed.
#[derive(Debug, Default)]
pub struct Changed {
    /// `None` = nobody follows.
    services: Mutex<Option<HashSet<ObjectRef<GuestService>>>>,
    told: Notify,
}

/// Somebody follows. Dropping it ends that.
#[derive(Debug)]
#[must_use = "dropping it ends it"]
pub struct Followed<'a>(&'a Changed);

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl Changed {
    /// From now on what changes is kept; what changed before is not known.
    pub(crate) fn follow(&self) -> Followed<'_> {
        self.lock().get_or_insert_default();
        Followed(self)
    }

    /// These changed.
    pub(crate) fn mark(&self, services: impl IntoIterator<Item = ObjectRef<GuestService>>) {
        if let Some(changed) = self.lock().as_mut() {
            changed.extend(services);
            self.told.notify_one();
        }
    }

    /// Waits until some changed, and takes them.
    pub(crate) async fn take(&self) -> HashSet<ObjectRef<GuestService>> {
        loop {
            let changed = self.lock().as_mut().map(std::mem::take).unwrap_or_default();
            if !changed.is_empty() {
                return changed;
            }
            self.told.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashSet<ObjectRef<GuestService>>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_changed_often_is_taken_once() {
        let (changed, service) = (Changed::default(), ObjectRef::new("web").within("shop"));
        let _followed = changed.follow();
        changed.mark([service.clone(), service.clone()]);
        changed.mark([service.clone()]);
        assert_eq!(changed.take().await, HashSet::from([service.clone()]));
        let (taken, ()) = tokio::join!(changed.take(), async { changed.mark([service.clone()]) });
        assert_eq!(taken.len(), 1);
    }

    #[test]
    fn nothing_is_kept_while_nobody_follows() {
        let (changed, service) = (Changed::default(), ObjectRef::new("web").within("shop"));
        changed.mark([service.clone()]);
        assert_eq!(*changed.lock(), None);
        let followed = changed.follow();
        changed.mark([service.clone()]);
        assert_eq!(*changed.lock(), Some(HashSet::from([service])));
        drop(followed);
        assert_eq!(*changed.lock(), None);
    }
}
