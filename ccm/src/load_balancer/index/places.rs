//! The places of the quota: what the Services have of it, what they were given, and which are next. The watches show all of
//! it again after a restart.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::reflector::{Lookup, ObjectRef};
use tokio::sync::Notify;

use crate::{
    config::{limits::Limits, policy::GuestPolicy},
    guest::services::GuestService,
    guest_names::infra_name,
    infra::mirrors::InfraService,
    load_balancer::{
        plan::{Plan, Refusal, Step},
        quota::{Cost, Quota, Shortage, Waiting, assess},
        size,
    },
};

/// What the watches show.
pub(super) struct Shown {
    /// The guest's Services.
    pub(super) guests: Vec<Arc<GuestService>>,
    /// This guest's mirrors, by name.
    pub(super) mirrors: HashMap<String, Arc<InfraService>>,
}

/// The places of one guest.
#[derive(Debug)]
pub(super) struct Places {
    quota: Quota,
    /// A Service above these needs no place, because it is refused.
    limits: Limits,
    policy: Arc<GuestPolicy>,
    given: Mutex<Given>,
    /// A place may have become free.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Given {
    /// What mirrors will have, by name, that are being created or changed and that the watch does not show yet.
    promised: HashMap<String, Cost>,
    /// UIDs of Services whose last try failed: they keep no place from others.
    aside: HashSet<String>,
    /// The Services that have to wait, by UID.
    waiting: HashMap<String, ObjectRef<GuestService>>,
}

impl Places {
    pub(super) fn new(policy: Arc<GuestPolicy>, limits: Limits) -> Self {
        let quota = Quota::of(&policy);
        Self { quota, limits, policy, given: Mutex::default(), freed: Notify::new() }
    }

    /// Gives the Service what `plan` needs of the quota, and returns the plan. If too little is left, returns the part of the
    /// plan that needs nothing. `shown` is called while nothing else is given, so that nothing is given twice.
    pub(super) fn limit(&self, guest: &GuestService, mut plan: Plan, shown: impl Fn() -> Shown) -> Plan {
        if self.quota.is_unlimited() {
            return plan;
        }
        let cost = plan.steps.iter().find_map(|step| match step {
            Step::Create(mirror) | Step::Replace(mirror, _) => Some(Cost::of(&mirror.spec)),
            _ => None,
        });
        let (name, uid) = (infra_name(guest.uid()), guest.uid());
        let mut given = self.lock();
        let Some(cost) = cost else {
            // What was promised and is no longer asked for is free again.
            if let Some(promised) = given.promised.get_mut(&name) {
                *promised = promised.at_most(Cost::of(&guest.spec));
            }
            return plan;
        };
        // It tries again: if it has to wait now, it is among those that are next when a place is free.
        given.aside.remove(uid);
        let short = self.short_for(&mut given, guest, cost, &shown());
        if !short.is_empty() {
            given.waiting.insert(uid.to_owned(), guest.to_object_ref(()));
            let creates = plan.steps.iter().any(|step| matches!(step, Step::Create(_)));
            plan.steps.retain(|step| match step {
                Step::Create(_) | Step::Replace(..) => false,
                Step::AddFinalizer => !creates,
                _ => true,
            });
            if creates {
                plan.waits_for = None;
            }
            plan.refusal = Some(Refusal::Quota(short));
            return plan;
        }
        given.promised.insert(name, cost);
        given.waiting.remove(uid);
        plan
    }

    /// What is short for this Service, which asks for a mirror that takes `cost`.
    fn short_for(
        &self,
        given: &mut Given,
        asking: &GuestService,
        cost: Cost,
        shown: &Shown,
    ) -> Vec<Shortage> {
        self.forget_kept_promises(given, shown);
        let needs = self.quota.counted(cost.beyond(given.held(&infra_name(asking.uid()), shown)));
        if needs == Cost::default() {
            return Vec::new();
        }
        let mut waiting = self.waiting(given, shown, Some(asking.uid()));
        waiting.push(ask(asking, needs));
        let assessed = assess(&self.quota, given.taken(shown), waiting);
        let found = assessed.into_iter().find(|(uid, _)| uid == asking.uid());
        found.map(|(_, short)| short).unwrap_or_default()
    }

    /// Drops the promises that the watch shows by now, or that nobody needs any more.
    fn forget_kept_promises(&self, given: &mut Given, shown: &Shown) {
        // No place is kept for a Service that is gone, or that needs none before it has got anything.
        let needing = shown.guests.iter().filter(|guest| guest.has_finalizer() || self.asks(guest, shown));
        let wanted: HashSet<_> = needing.map(|guest| infra_name(guest.uid())).collect();
        let covers = |has: Option<Cost>, promised: Cost| {
            has.is_some_and(|has| promised.beyond(has) == Cost::default())
        };
        given.promised.retain(|name, promised| {
            let shown = shown.mirrors.get(name).map(|mirror| Cost::of(&mirror.spec));
            !covers(shown, *promised) && wanted.contains(name)
        });
    }

    /// Whether the Service asks for a load balancer and may have it, as far as it alone is concerned.
    fn asks(&self, guest: &GuestService, shown: &Shown) -> bool {
        guest.wants_load_balancer()
            && !guest.is_deleting()
            && guest.spec.ports.iter().all(|port| port.node_port != 0)
            && {
                let present = shown.mirrors.get(&infra_name(guest.uid())).map(AsRef::as_ref);
                size::excesses(guest, present, self.limits, &self.policy).refused.is_empty()
            }
    }

    /// The Services that need more than they have, except those that are set aside and the one with the UID `without`.
    fn waiting(&self, given: &Given, shown: &Shown, without: Option<&str>) -> Vec<Waiting> {
        let others = shown
            .guests
            .iter()
            .filter(|guest| Some(guest.uid()) != without && !given.aside.contains(guest.uid()));
        let needs = |guest: &GuestService| {
            let held = given.held(&infra_name(guest.uid()), shown);
            self.quota.counted(Cost::of(&guest.spec).beyond(held))
        };
        let needing = others.map(|guest| (guest, needs(guest))).filter(|(guest, needs)| {
            // Most have what they need, and their annotations need not be counted.
            *needs != Cost::default() && self.asks(guest, shown)
        });
        needing.map(|(guest, needs)| ask(guest, needs)).collect()
    }

    /// The try of this Service failed, or it is refused: another Service may have its place until it tries again.
    pub(super) fn set_aside(&self, uid: &str) {
        if self.quota.is_unlimited() {
            return;
        }
        let mut given = self.lock();
        given.promised.remove(&infra_name(uid));
        given.aside.insert(uid.to_owned());
        self.freed.notify_one();
    }

    /// This Service does not need a place any more.
    pub(super) fn forget(&self, uid: &str) {
        if self.quota.is_unlimited() {
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

    /// A place may have become free: a Service is gone or smaller that had one, or was before others in the order.
    pub(super) fn free(&self) {
        self.freed.notify_one();
    }

    /// Waits until a place may have become free; without a quota it never returns.
    pub(super) async fn freed(&self) {
        if self.quota.is_unlimited() {
            return std::future::pending().await;
        }
        self.freed.notified().await;
    }

    /// The waiting Services that may have what they need now.
    pub(super) fn next(&self, shown: impl Fn() -> Shown) -> Vec<ObjectRef<GuestService>> {
        let mut given = self.lock();
        if given.waiting.is_empty() {
            return Vec::new();
        }
        let shown = shown();
        self.forget_kept_promises(&mut given, &shown);
        let assessed = assess(&self.quota, given.taken(&shown), self.waiting(&given, &shown, None));
        let next = assessed.into_iter().filter(|(_, short)| short.is_empty());
        next.filter_map(|(uid, _)| given.waiting.get(&uid).cloned()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Given {
    /// What the mirror of this name has or will have.
    fn held(&self, name: &str, shown: &Shown) -> Cost {
        let has = shown.mirrors.get(name).map(|mirror| Cost::of(&mirror.spec)).unwrap_or_default();
        has.or(self.promised.get(name).copied().unwrap_or_default())
    }

    /// What all mirrors have or will have.
    fn taken(&self, shown: &Shown) -> Cost {
        let names: HashSet<&String> = shown.mirrors.keys().chain(self.promised.keys()).collect();
        names.into_iter().map(|name| self.held(name, shown)).fold(Cost::default(), Cost::plus)
    }
}

fn ask(guest: &GuestService, needs: Cost) -> Waiting {
    Waiting {
        created: guest.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        uid: guest.uid().to_owned(),
        needs,
    }
}
