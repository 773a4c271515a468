//! `ControllerPublishVolume`: from a volume and a node to a disk that the VM's status shows as ready.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use infra::{Class, DataVolume, HotplugDisk, Infra, ObjectName, Owned};
use tokio::time::Instant;

use crate::{
    attach::{self, Cause, Step, Wanted},
    error::{Error, RefusalReason},
    holder::{Hold, Holder, display},
    operation::Operation,
    request::{NodeId, Publish, Sharing},
    view::View,
    vm_queue::{Change, Outcome, VmQueues, What},
    volume,
    waits::WaitCause,
};

/// While a volume is pending in the infra cluster, CDI's words on it are read this often: seldom beside the looks at the VM.
const VOLUME_LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Attaches the volume, or says why not.
pub(crate) async fn publish(
    infra: &Infra,
    queues: &VmQueues,
    operation: &Arc<Operation>,
    request: &Publish,
) -> Result<(), Error> {
    let name = infra.guard().volume_name(&request.volume)?;
    let vm = vm_of(infra, &request.node)?;
    let volume = operation.wait(infra.data_volume(&name)).await??.ok_or(infra::Foreign)?;
    let volume = Arc::new(infra.guard().admit(volume).inspect_err(|_| audit(&name, "attach"))?);
    if request.sharing == Sharing::ManyNodes && !volume::is_shared(&volume) {
        return Err(Error::NotShared(name));
    }
    let serial = request.serial.clone().unwrap_or_else(|| volume.metadata.uid.clone());
    let disk = HotplugDisk { serial, bus: request.bus.as_str() };
    let progress = Mutex::new((volume.progress(), Instant::now()));
    let publication = Publication { infra, queues, operation, name: &name, vm: &vm, volume, progress, disk };
    match request.sharing {
        Sharing::ManyNodes => publication.attach_shared().await,
        Sharing::OneNode => publication.attach_alone().await,
    }
}

/// The VM of a node id.
pub(crate) fn vm_of(infra: &Infra, node: &NodeId) -> Result<ObjectName, Error> {
    match node {
        NodeId::Unknown(id) => Err(Error::NoSuchNode(id.clone())),
        NodeId::Vm { namespace, name } if namespace == infra.namespace() => Ok(name.clone()),
        NodeId::Vm { namespace, name } => Err(Error::ForeignNode {
            node: name.clone(),
            namespace: namespace.clone(),
            ours: infra.namespace().to_owned(),
        }),
    }
}

/// For the infra operator: a guest asked for what is not its own.
pub(crate) fn audit(volume: &ObjectName, what: &str) {
    tracing::warn!(%volume, "refused to {what} a volume that lacks the infra labels of this guest");
}

/// Whether a volume may be plugged in. That it is not populated yet is no obstacle: with `WaitForFirstConsumer` the VM is the
/// consumer.
pub(crate) fn check_usable(volume: &DataVolume, name: &ObjectName) -> Result<(), Error> {
    if volume.deleting() {
        Err(Error::Deleting(name.clone()))
    } else if volume::has_failed(volume) {
        Err(Error::Failed { volume: name.clone(), progress: volume.progress() })
    } else {
        Ok(())
    }
}

struct Publication<'a> {
    infra: &'a Infra,
    queues: &'a VmQueues,
    operation: &'a Arc<Operation>,
    name: &'a ObjectName,
    vm: &'a ObjectName,
    volume: Arc<Owned<DataVolume>>,
    /// CDI's words on the volume, and when they were read.
    progress: Mutex<(String, Instant)>,
    disk: HotplugDisk,
}

impl Publication<'_> {
    async fn attach_shared(&self) -> Result<(), Error> {
        let mut view = View::new(self.infra, self.vm, self.name);
        self.operation.wait(view.look()).await??;
        self.attach(view, None).await.map_err(|failure| failure.error)
    }

    /// Holds, looks, plugs, confirms (see [`crate::holder`] for why in this order).
    async fn attach_alone(&self) -> Result<(), Error> {
        let holder = Holder::new(self.infra, self.name, self.vm);
        let hold = holder.acquire(self.operation).await?;
        let attached = self.attach_held(&holder, hold).await;
        let Err(failure) = attached else { return Ok(()) };
        if failure.plugged && failure.lost_to_other() {
            self.withdraw().await;
        }
        // What can't be here must not keep the volume from other nodes. What may still come keeps the hold.
        if hold == Hold::Held
            && failure.is_refusal()
            && let Err(error) = holder.release(self.operation).await
        {
            tracing::warn!(%error, "the holder annotation stays until another node wants the volume");
        }
        Err(failure.error)
    }

    async fn attach_held(&self, holder: &Holder<'_>, hold: Hold) -> Result<(), Failure> {
        let since = Instant::now();
        let census = self.operation.wait(self.infra.census()).await??;
        holder.nobody_else(&census.holders(self.name))?;
        let mut view = View::new(self.infra, self.vm, self.name);
        view.take_census(&census, since);
        drop(census);
        self.attach(view, Some((holder, hold))).await
    }

    /// The loop around the planner.
    async fn attach(&self, mut view: View, alone: Option<(&Holder<'_>, Hold)>) -> Result<(), Failure> {
        let mut plugged = false;
        loop {
            let step =
                self.step(&mut view, &mut plugged).await.map_err(|error| Failure { error, plugged })?;
            let confirm = match (step, alone) {
                (Progress::Attached, alone) => alone,
                (Progress::Plugged, Some((_, Hold::Unarbitrated))) => alone,
                (Progress::Plugged | Progress::Waiting, _) => None,
            };
            if let Some((holder, hold)) = confirm {
                holder.confirm(hold, self.operation).await.map_err(|error| Failure { error, plugged })?;
            }
            if step == Progress::Attached {
                return Ok(());
            }
        }
    }

    async fn step(&self, view: &mut View, plugged: &mut bool) -> Result<Progress, Error> {
        self.operation.check()?;
        match attach::next(view.observed(), Wanted::Attached) {
            Step::Done => Ok(Progress::Attached),
            Step::Refuse(refusal) => {
                Err(Error::Refused { vm: display(self.infra, self.vm), refusal: RefusalReason(refusal) })
            }
            Step::Wait(cause) => {
                // A look to come must not hide the words of the change that failed before it.
                if is_observed(&cause) {
                    let progress = self.progress(&cause).await;
                    self.operation
                        .note(format_args!("VM {}: {cause} ({progress})", display(self.infra, self.vm)));
                }
                view.wait(self.operation, &cause).await?;
                Ok(Progress::Waiting)
            }
            Step::Call(_) => {
                check_usable(&self.volume, self.name)?;
                let what = What::Add { volume: Arc::clone(&self.volume), disk: self.disk.clone() };
                if !change(self.queues, self.vm, self.name, what, view, self.operation).await? {
                    return Ok(Progress::Waiting);
                }
                *plugged = true;
                Ok(Progress::Plugged)
            }
        }
    }

    /// How far the volume itself is. Read again now and then: while it is pending, CDI knows why and the VM does not.
    async fn progress(&self, cause: &Cause) -> String {
        let (known, read) = self.progress.lock().expect("no holder of this lock panics").clone();
        if WaitCause::from(cause) != WaitCause::VolumePending || read.elapsed() < VOLUME_LOOK_INTERVAL {
            return known;
        }
        let looked = self.operation.wait(self.infra.data_volume(self.name)).await;
        // What can't be read now is read at the next look; the last known words stay.
        let newest = if let Ok(Ok(Some(volume))) = looked { volume.progress() } else { known };
        *self.progress.lock().expect("no holder of this lock panics") = (newest.clone(), Instant::now());
        newest
    }

    /// Takes back the own fresh call: another VM has the volume.
    async fn withdraw(&self) {
        let mut view = View::new(self.infra, self.vm, self.name);
        let looked = self.operation.wait(view.look()).await;
        let withdrawn = match looked {
            Ok(Ok(())) => {
                change(self.queues, self.vm, self.name, What::Remove, &mut view, self.operation).await
            }
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(error),
        };
        match withdrawn {
            Ok(_) => {
                tracing::warn!(vm = %self.vm, "another VM has the volume, took it back");
            }
            Err(error) => {
                tracing::warn!(vm = %self.vm, %error, "another VM has the volume; it stays here until it is unpublished");
            }
        }
    }
}

/// Makes one change through the VM's queue. True when KubeVirt accepted it; false when the view has to be asked again.
pub(crate) async fn change(
    queues: &VmQueues,
    vm: &ObjectName,
    volume: &ObjectName,
    what: What,
    view: &mut View,
    operation: &Arc<Operation>,
) -> Result<bool, Error> {
    let taken = view.take();
    let change = Change { volume: volume.clone(), what, view: taken, operation: Arc::clone(operation) };
    operation.note_own(format_args!("waiting for the turn of this volume among the changes of VM {vm}"));
    match operation.wait_for(WaitCause::VmQueue, queues.change(vm, change)).await? {
        Outcome::Accepted(back) => {
            *view = back;
            view.changed();
            Ok(true)
        }
        Outcome::Overtaken(back) => {
            *view = back;
            Ok(false)
        }
        Outcome::Expired => Err(operation.check().err().unwrap_or_else(|| operation.expired())),
        Outcome::Unobserved(error) => Err(error.into()),
        Outcome::Failed(_, error) if error.is_content_refusal() => Err(Error::RefusedChange(error)),
        Outcome::Failed(back, error) => match error.class() {
            Class::BadRequest => Err(Error::RefusedChange(error)),
            Class::Forbidden | Class::Unauthorized => Err(error.into()),
            // Won or lost, only the VM tells: the race of concurrent calls, a lost reply, a pause that the API asked for.
            Class::NotFound
            | Class::Conflict
            | Class::Invalid
            | Class::Throttled
            | Class::Server
            | Class::Timeout
            | Class::Transport => {
                operation.note(&error);
                *view = back;
                view.doubted(error.retry_after());
                Ok(false)
            }
        },
    }
}

/// Whether a cause tells what the infra cluster shows, as opposed to a look to come.
pub(crate) fn is_observed(cause: &Cause) -> bool {
    !matches!(cause, Cause::VmUnseen | Cause::VmiUnseen)
}

/// How far one turn of the loop came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Plugged,
    Attached,
}

/// A publication that failed, and whether this very RPC plugged the volume in.
struct Failure {
    error: Error,
    plugged: bool,
}

impl Failure {
    fn lost_to_other(&self) -> bool {
        matches!(self.error, Error::HeldElsewhere { .. } | Error::Changed(_))
    }

    fn is_refusal(&self) -> bool {
        matches!(
            self.error,
            Error::HeldElsewhere { .. }
                | Error::Refused { .. }
                | Error::RefusedChange(_)
                | Error::Deleting(_)
                | Error::Failed { .. }
        )
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), plugged: false }
    }
}
