//! One set of hotplug changes at a time per VM.
//!
//! Concurrent hotplug calls on one VM lose a race against each other (422), and every change replaces the VM's
//! attachment pod. So the calls of one VM are made one after another, without a wait in between; changes that arrive
//! meanwhile join the set. Then the set settles before the next begins. Settling is bounded: a volume that stays
//! pending must not block the others for ever.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use infra::{DataVolume, HotplugDisk, Infra, ObjectName, Owned};
use serving::Tasks;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use crate::{
    attach::{self, HotplugCall, Settling, Step, VmiView, Wanted},
    controller_operation::ControllerOperation,
    metrics::{Queued, WaitCause, Waits},
    view::View,
};

/// VM and VMI are read again before a call unless the last read is younger than this. All changes of a set share one
/// read.
const FRESH: Duration = Duration::from_secs(2);
/// Most calls of one set: half of the disks that KubeVirt allows a VM (256), so that a busy VM settles now and then.
const SET_LIMIT: usize = 128;
/// Longest time for a set to settle. Below some 8 s between changes an attachment pod may never get ready
/// (kubevirt/kubevirt#16937).
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// Time for a set of which only pending volumes are left: they may wait for a claim, that is for ever.
const PENDING_LIMIT: Duration = Duration::from_secs(3);

/// A change of one volume on one VM.
pub(crate) struct Change {
    pub volume: ObjectName,
    pub what: What,
    pub view: View,
    pub operation: ControllerOperation,
}

/// What to change.
pub(crate) enum What {
    Add { volume: Arc<Owned<DataVolume>>, disk: HotplugDisk },
    Remove,
}

/// How a change ended. The view comes back with what was read last.
pub(crate) enum Outcome {
    /// KubeVirt accepted the call.
    Accepted(View),
    /// The call is no longer due; the view shows why.
    Overtaken(View),
    /// The call failed.
    Failed(View, infra::Error),
    /// VM or VMI could not be read; no call was made.
    Unobserved(infra::Error),
    /// The operation ended before its turn came; no call was made.
    Expired,
    /// The queue's worker panicked; whether a call was made is not known.
    QueueFailed,
}

/// The queues of all VMs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct VmQueues {
    infra: Infra,
    tasks: Tasks,
    calls: TaskTracker,
    waits: Waits,
    queues: Arc<Mutex<HashMap<ObjectName, mpsc::UnboundedSender<Entry>>>>,
}

/// A change in a queue, and where its outcome goes.
struct Entry {
    change: Change,
    reply: oneshot::Sender<Outcome>,
    /// Span of the RPC that asked for the change.
    span: Span,
    _counted: Queued,
}

impl VmQueues {
    /// `tasks` owns the workers; `calls` counts one task for each VM while calls are made, and none while they settle.
    pub(crate) fn new(infra: &Infra, tasks: &Tasks, calls: &TaskTracker, waits: &Waits) -> Self {
        Self {
            infra: infra.clone(),
            tasks: tasks.clone(),
            calls: calls.clone(),
            waits: waits.clone(),
            queues: Arc::default(),
        }
    }

    /// Makes a change in its turn. The caller may stop waiting; a call that is being made is still finished.
    pub(crate) async fn change(&self, vm: &ObjectName, change: Change) -> Outcome {
        let (reply, answer) = oneshot::channel();
        {
            let mut queues = self.lock();
            // The volumes bound the queue's length: each has one operation at a time.
            let sender = queues.entry(vm.clone()).or_insert_with(|| {
                let (sender, receiver) = mpsc::unbounded_channel();
                let name = format!("the queue of hotplug changes of VM {vm}");
                self.tasks.spawn_until_done(name, self.clone().run(vm.clone(), receiver));
                sender
            });
            let entry = Entry { change, reply, span: Span::current(), _counted: self.waits.queued() };
            // The queue of a worker that panicked stays in the map: while the process ends, no worker takes its place.
            if sender.send(entry).is_err() {
                return Outcome::QueueFailed;
            }
        }
        answer.await.unwrap_or(Outcome::QueueFailed)
    }

    async fn run(self, vm: ObjectName, mut incoming: mpsc::UnboundedReceiver<Entry>) {
        let mut waiting = Vec::new();
        // Keeps what was read of this VM from one change to the next.
        let _reads = self.infra.machine(&vm);
        loop {
            incoming.recv_many(&mut waiting, SET_LIMIT).await;
            let set = self.carry_out_set(&vm, waiting.drain(..).collect(), &mut incoming).await;
            self.settle(&vm, set).await;
            let mut queues = self.lock();
            if incoming.is_empty() {
                queues.remove(&vm);
                return;
            }
        }
    }

    /// Makes the calls of one set and of the changes that join it in that time. Returns the changes that KubeVirt
    /// accepted.
    async fn carry_out_set(
        &self,
        vm: &ObjectName,
        mut waiting: VecDeque<Entry>,
        incoming: &mut mpsc::UnboundedReceiver<Entry>,
    ) -> Vec<(ObjectName, Wanted)> {
        let _call = self.calls.token();
        let mut accepted = Vec::new();
        while let Some(Entry { change, reply, span, _counted }) = waiting.pop_front() {
            if !reply.is_closed() {
                let (volume, wanted) = (change.volume.clone(), change.what.wanted());
                let outcome = self.carry_out(vm, change).instrument(span).await;
                if matches!(outcome, Outcome::Accepted(_)) {
                    accepted.push((volume, wanted));
                }
                // A caller that stopped waiting needs no answer; the infra cluster holds the truth.
                drop(reply.send(outcome));
            }
            if accepted.len() + waiting.len() < SET_LIMIT
                && let Ok(joined) = incoming.try_recv()
            {
                waiting.push_back(joined);
            }
        }
        accepted
    }

    async fn carry_out(&self, vm: &ObjectName, change: Change) -> Outcome {
        let Change { volume, what, mut view, operation } = change;
        match operation.wait(view.read_within(FRESH)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Outcome::Unobserved(error),
            Err(_) => return Outcome::Expired,
        }
        let due = matches!(
            (attach::next(view.observed(), what.wanted()), &what),
            (Step::Call(HotplugCall::Add), What::Add { .. })
                | (Step::Call(HotplugCall::Remove), What::Remove)
        );
        if !due {
            return Outcome::Overtaken(view);
        }
        if operation.check().is_err() {
            return Outcome::Expired;
        }
        let called = match &what {
            What::Add { volume, disk } => self.infra.add_volume(vm, volume, disk).await,
            What::Remove => self.infra.remove_volume(vm, &volume).await,
        };
        match called {
            Ok(()) => Outcome::Accepted(view),
            Err(error) => Outcome::Failed(view, error),
        }
    }

    async fn settle(&self, vm: &ObjectName, mut set: Vec<(ObjectName, Wanted)>) {
        if set.is_empty() {
            return;
        }
        let began = Instant::now();
        let mut limit = SETTLE_LIMIT;
        let mut reads = self.infra.wait_for_vmi(vm);
        while let Ok(read) = tokio::time::timeout_at(began + limit, reads.next()).await {
            let vmi = match read {
                Ok(Some(vmi)) => vmi,
                // Without a VMI there is nothing to settle.
                Ok(None) => {
                    set.clear();
                    break;
                }
                Err(_) => continue,
            };
            let mut moving = false;
            set.retain(|(volume, wanted)| {
                let settling = attach::settling(&VmiView::of(&vmi, volume.as_str()), *wanted);
                moving |= settling == Settling::Moving;
                settling != Settling::Settled
            });
            if set.is_empty() {
                break;
            }
            limit = if moving { SETTLE_LIMIT } else { PENDING_LIMIT };
        }
        if !set.is_empty() {
            tracing::info!(%vm, unsettled = set.len(), "hotplug changes are still pending; the next ones go on");
        }
        self.waits.add(WaitCause::Settling, began.elapsed());
    }

    /// The map is whole after any panic: each change of it is one insertion or removal.
    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectName, mpsc::UnboundedSender<Entry>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl What {
    fn wanted(&self) -> Wanted {
        match self {
            Self::Add { .. } => Wanted::Attached,
            Self::Remove => Wanted::Detached,
        }
    }
}
