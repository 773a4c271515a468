//! One session of the endpoint controller, which lasts as long as its rights: what is known, and what each reconcile
//! uses.

use std::{sync::Arc, time::Duration};

use kube::runtime::reflector::ObjectRef;
use tokio::sync::{Notify, watch};

use crate::{
    backoff::Backoff,
    change_pace::{ChangePace, PaceLimits},
    changes::Subscription,
    endpoints::{
        backend::{Backend, Member, backends},
        calls::SliceCalls,
        context::Context,
        observe::State,
    },
    guest::{
        nodes::{GuestNode, WireNode},
        services::GuestService,
    },
    repairs::Repairs,
};

/// First and longest pause after a failure.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
    /// Whether the CCM may delete what a selector's controllers leave behind.
    pub(crate) may_convert: bool,
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
            may_convert,
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
