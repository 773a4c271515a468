//! Which Services changed, each once however often, until somebody looks. Telling never waits.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

use crate::load_balancer::service::GuestService;

/// The guest's Services that changed.
#[derive(Debug, Default)]
pub struct Changed {
    services: Mutex<HashSet<ObjectRef<GuestService>>>,
    told: Notify,
}

impl Changed {
    /// These changed.
    pub(crate) fn mark(&self, services: impl IntoIterator<Item = ObjectRef<GuestService>>) {
        self.services.lock().unwrap_or_else(PoisonError::into_inner).extend(services);
        self.told.notify_one();
    }

    /// Waits until some changed, and takes them.
    pub(crate) async fn take(&self) -> HashSet<ObjectRef<GuestService>> {
        loop {
            let changed = std::mem::take(&mut *self.services.lock().unwrap_or_else(PoisonError::into_inner));
            if !changed.is_empty() {
                return changed;
            }
            self.told.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_changed_often_is_taken_once() {
        let (changed, service) = (Changed::default(), ObjectRef::new("web").within("shop"));
        changed.mark([service.clone(), service.clone()]);
        changed.mark([service.clone()]);
        assert_eq!(changed.take().await, HashSet::from([service.clone()]));
        let (taken, ()) = tokio::join!(changed.take(), async { changed.mark([service.clone()]) });
        assert_eq!(taken.len(), 1);
    }
}
