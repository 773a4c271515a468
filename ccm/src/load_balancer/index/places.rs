//! The places of the quota: which Services have one, which were given one, and which are next. The watches show all of
//! it again after a restart.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::reflector::{Lookup, ObjectRef};
use tokio::sync::Notify;

use crate::{
    guest::services::GuestService,
    guest_names::infra_name,
    load_balancer::{
        plan::{Plan, Refusal, Step},
        quota::{Waiting, admitted},
    },
};

/// What the watches show.
pub(super) struct Shown {
    /// The guest's Services.
    pub(super) guests: Vec<Arc<GuestService>>,
    /// The names of this guest's mirrors.
    pub(super) mirrors: HashSet<String>,
}

/// The places of one guest.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// How many places there are; `None` = no limit.
    max: Option<u32>,
    given: Mutex<Given>,
    /// A place may have become free.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Given {
    /// Names of mirrors that are being created and that the watch does not show yet.
    promised: HashSet<String>,
    /// UIDs of Services whose last try failed: they keep no place from others.
    aside: HashSet<String>,
    /// The Services that have to wait, by UID.
    waiting: HashMap<String, ObjectRef<GuestService>>,
}

impl Places {
    /// `max` places; `None` = no limit.
    pub(super) fn new(max: Option<u32>) -> Self {
        Self { max, ..Self::default() }
    }

    /// Gives the Service a place if `plan` needs one, and returns the plan. If no place is free, returns the part of
    /// the plan that needs none. `shown` is called while no other place is given, so that none is given twice.
    pub(super) fn limit(&self, guest: &GuestService, mut plan: Plan, shown: impl Fn() -> Shown) -> Plan {
        let Some(max) = self.max else { return plan };
        if !plan.steps.iter().any(|step| matches!(step, Step::Create(_))) {
            return plan;
        }
        let (name, uid) = (infra_name(guest.uid()), guest.uid());
        let mut given = self.lock();
        if !given.promised.contains(&name) && !given.next(max, Some(guest), shown()).contains(uid) {
            given.waiting.insert(uid.to_owned(), guest.to_object_ref(()));
            plan.steps.retain(|step| !matches!(step, Step::AddFinalizer | Step::Create(_)));
            plan.waits_for = None;
            plan.refusal = Some(Refusal::Quota(max));
            return plan;
        }
        given.promised.insert(name);
        given.aside.remove(uid);
        given.waiting.remove(uid);
        plan
    }

    /// The try of this Service failed: another Service may have its place until it tries again.
    pub(super) fn set_aside(&self, uid: &str) {
        if self.max.is_none() {
            return;
        }
        let mut given = self.lock();
        given.promised.remove(&infra_name(uid));
        given.aside.insert(uid.to_owned());
        self.freed.notify_one();
    }

    /// This Service does not need a place any more.
    pub(super) fn forget(&self, uid: &str) {
        if self.max.is_none() {
            return;
        }
        let mut given = self.lock();
        given.promised.remove(&infra_name(uid));
        given.aside.remove(uid);
        given.waiting.remove(uid);
        self.freed.notify_one();
    }

    /// Keeps only the Services that still exist.
    pub(super) fn keep(&self, is_there: impl Fn(&str) -> bool) {
        let mut given = self.lock();
        given.aside.retain(|uid| is_there(uid));
        given.waiting.retain(|uid, _| is_there(uid));
    }

    /// A place may have become free: a Service is gone that had one, or was before others in the order.
    pub(super) fn free(&self) {
        self.freed.notify_one();
    }

    /// Waits until a place may have become free; without a limit it never returns.
    pub(super) async fn freed(&self) {
        if self.max.is_none() {
            return std::future::pending().await;
        }
        self.freed.notified().await;
    }

    /// The waiting Services that may have a place now.
    pub(super) fn next(&self, shown: impl Fn() -> Shown) -> Vec<ObjectRef<GuestService>> {
        let Some(max) = self.max else { return Vec::new() };
        let mut given = self.lock();
        if given.waiting.is_empty() {
            return Vec::new();
        }
        let next = given.next(max, None, shown());
        next.iter().filter_map(|uid| given.waiting.get(uid).cloned()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Given {
    /// The UIDs of those that may have a place. `asking` is one of the candidates, even if its last try failed.
    fn next(
        &mut self,
        max: u32,
        asking: Option<&GuestService>,
        Shown { guests, mirrors: mut taken }: Shown,
    ) -> HashSet<String> {
        // No place is kept for a Service that is gone, or that needs none before it has got anything.
        let needs = |guest: &GuestService| {
            guest.has_finalizer() || (guest.wants_load_balancer() && !guest.is_deleting())
        };
        let wanted: HashSet<_> =
            guests.iter().filter(|guest| needs(guest)).map(|guest| infra_name(guest.uid())).collect();
        self.promised.retain(|name| !taken.contains(name) && wanted.contains(name));
        taken.extend(self.promised.iter().cloned());
        let waits = |guest: &GuestService| {
            let asks = asking.is_some_and(|asking| asking.uid() == guest.uid());
            (asks || !self.aside.contains(guest.uid()))
                && guest.wants_load_balancer()
                && !guest.is_deleting()
                && guest.spec.ports.iter().all(|port| port.node_port != 0)
                && !taken.contains(&infra_name(guest.uid()))
        };
        let seen = guests.iter().map(AsRef::as_ref).filter(|guest| waits(guest));
        let unseen = asking.filter(|asking| !guests.iter().any(|guest| guest.uid() == asking.uid()));
        let waiting = seen.chain(unseen).map(|guest| Waiting {
            created: guest.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            uid: guest.uid().to_owned(),
        });
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        admitted(max, taken.len(), waiting.collect()).into_iter().collect()
    }
}
