//! One session of the endpoint controller, which lasts as long as its rights: what is known, and what each reconcile
//! uses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kube::runtime::reflector::ObjectRef;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use crate::{
    access::chain,
    backoff::Backoff,
    change_pace::{ChangePace, PaceLimits},
    changes::Subscription,
    endpoints::{
        backend::{Backend, Member, backends},
        calls::SliceCalls,
        context::Context,
        observe::State,
        rights::{self, ASK_AGAIN},
    },
    guest::{
        nodes::{GuestNode, WireNode},
        services::GuestService,
    },
    guest_names::infra_name,
    repairs::Repairs,
};

/// First and longest pause after a failure.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often the session drops what it keeps of Services that are gone.
const FORGET_INTERVAL: Duration = Duration::from_mins(1);

/// How fast the slices of one Service may change: backends come and go while pods are replaced, one after the other, and
/// traffic follows them. The guest's own controller collects changes for half a second
/// (kube-controller-manager, `--endpoint-updates-batch-period`).
const PACE: PaceLimits = PaceLimits {
    free: 20,
    first_pause: Duration::from_millis(100),
    longest_pause: Duration::from_secs(1),
    forgotten_after: Duration::from_secs(5),
};

/// A Node as backends depend on it.
pub(crate) fn member(node: &Arc<WireNode>) -> Member {
    Member::from(&GuestNode::from(&**node))
}

/// What a session works with.
pub(crate) struct Session {
    pub(crate) context: Context,
    /// Whether the CCM may delete what a selector's controllers leave behind, by the last answer.
    may_convert: AtomicBool,
    /// That right was found to be missing.
    conversion_refused: Notify,
    pub(crate) calls: SliceCalls,
    pub(crate) state: State,
    pub(crate) backoff: Backoff,
    pub(crate) repairs: Repairs,
    pub(crate) pace: ChangePace,
    /// The Services to reconcile.
    pub(crate) due: Subscription<ObjectRef<GuestService>>,
    /// A watch has delivered its first list.
    pub(crate) completed: Notify,
    /// Why the session has to end.
    pub(crate) refused: watch::Sender<Option<String>>,
}

impl Session {
    pub(crate) fn new(context: Context, may_convert: bool) -> Self {
        Self {
            calls: SliceCalls::new(&context.infra),
            due: context.services.subscribe(),
            repairs: Repairs::new(context.contested.clone()),
            pace: ChangePace::new(PACE),
            context,
            may_convert: AtomicBool::new(may_convert),
            conversion_refused: Notify::new(),
            state: State::default(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            completed: Notify::new(),
            refused: watch::Sender::new(None),
        }
    }

    /// Ends the session because a cluster refused a call.
    pub(crate) fn is_refused(&self, why: String) {
        self.refused.send_replace(Some(why));
    }

    /// Whether the CCM may delete what a selector's controllers leave behind, by the last answer.
    pub(crate) fn may_convert(&self) -> bool {
        self.may_convert.load(Ordering::Relaxed)
    }

    /// Infra refused to delete what a selector's controllers left. Everything else goes on, and infra is asked again.
    pub(crate) fn conversion_is_refused(&self, why: &str) {
        if self.may_convert.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                why,
                "infra refuses to delete endpoints: infra Services that have a selector keep it, and what selectors left \
                 stays; the right is asked for again every {ASK_AGAIN:?}"
            );
        }
        self.conversion_refused.notify_one();
    }

    /// Asks for the right to take Services over from the selector while it is missing, without end.
    pub(crate) async fn keep_asking_to_convert(&self) {
        loop {
            while self.may_convert() {
                self.conversion_refused.notified().await;
            }
            sleep(ASK_AGAIN).await;
            match rights::may_convert(&self.context.infra).await {
                Ok(true) => {
                    tracing::info!("kubevirt_eps_controller: the right to delete endpoints is there now");
                    self.may_convert.store(true, Ordering::Relaxed);
                    self.due.add(self.context.services.load_balancers());
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(error = chain(&error), "whether endpoints may be deleted is not known");
                }
            }
        }
    }

    /// Drops what is kept of Services that are gone, without end: one can go without a last reconcile, if somebody removes
    /// its finalizer by hand.
    pub(crate) async fn keep_forgetting(&self) {
        loop {
            sleep(FORGET_INTERVAL).await;
            self.forget_vanished();
        }
    }

    fn forget_vanished(&self) {
        let Context { services, gate, metrics, .. } = &self.context;
        let is_there = |uid: &str| services.guest_of(&infra_name(uid)).is_some();
        self.backoff.keep(is_there);
        self.pace.keep(is_there);
        gate.keep(is_there);
        metrics.keep(is_there);
        // Repairs are of slices, by their UIDs.
        let slices = self.state.lock().infra_slices.uids();
        self.repairs.keep(|uid| slices.contains(uid));
    }

    /// The VMs that can take traffic. `None` = they can't be read now.
    pub(crate) fn backends(&self) -> Option<Arc<Vec<Backend>>> {
        let mut seen = self.state.lock();
        if seen.backends.is_none() {
            let (cluster, policy) = (&self.context.identity.cluster, &self.context.addresses);
            let members: Vec<_> = seen.nodes.values().map(member).collect();
            let found =
                backends(&members, &self.context.index.snapshot(), cluster, self.context.unlabelled, policy);
            seen.backends = found.map(Arc::new);
        }
        seen.backends.clone()
    }
}
