//! The Services that changed, each listed once however often it changed, until the follower takes them. Marking never
//! waits. Nothing is kept while there is no follower: if other programs write the endpoints, there is none for the life
//! of the process.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

use crate::guest::services::GuestService;

/// The guest's Services that changed.
#[derive(Debug, Default)]
pub struct Changed {
    /// `None` = there is no follower.
    services: Mutex<Option<HashSet<ObjectRef<GuestService>>>>,
    told: Notify,
}

/// The follower. Dropping it ends the following.
#[derive(Debug)]
#[must_use = "dropping it ends it"]
pub struct Followed<'a>(&'a Changed);

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl Changed {
    /// Keeps changes from now on; earlier changes are not known.
    pub(crate) fn follow(&self) -> Followed<'_> {
        self.lock().get_or_insert_default();
        Followed(self)
    }

    /// Marks these as changed.
    pub(crate) fn mark(&self, services: impl IntoIterator<Item = ObjectRef<GuestService>>) {
        if let Some(changed) = self.lock().as_mut() {
            changed.extend(services);
            self.told.notify_one();
        }
    }

    /// Waits for changes and takes them.
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
