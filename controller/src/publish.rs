//! `ControllerPublishVolume`: from a volume and a node to a disk that the VM's status shows as ready.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use infra::{DataVolume, HotplugDisk, Infra, ObjectName, Owned};
use tokio::time::Instant;

use crate::{
    attach::{self, Cause, Step, Wanted},
    clone, clone_method,
    controller_operation::ControllerOperation,
    error::{Error, RefusalReason},
    holder::{Hold, Holder},
    hotplug::change,
    infra_reasons,
    metrics::WaitCause,
    moved,
    node_id::{node_id, vm_of_node},
    request::{Publish, Sharing},
    serial, usable,
    view::View,
    vm_queue::{VmQueues, What},
    volume,
};

/// While a volume is pending in the infra cluster, its `DataVolume` is read this often: seldom beside the reads of the
/// VM.
const VOLUME_READ_INTERVAL: Duration = Duration::from_secs(10);

/// libvirt's words where a machine has no place for a further disk (`src/conf/domain_addr.c`); virt-handler repeats them in
/// the VMI's condition `Synchronized`.
const NO_FREE_SLOT: [&str; 2] = ["No more available PCI slots", "no more available PCI slots"];

/// Attaches the volume.
pub(crate) async fn publish(
    infra: &Infra,
    queues: &VmQueues,
    operation: &ControllerOperation,
    request: &Publish,
) -> Result<(), Error> {
    let name = infra.guard().volume_name(&request.volume)?;
    let vm = vm_of_node(&request.node)?;
    let volume = operation.wait(infra.data_volume(&name)).await??.ok_or(infra::Foreign)?;
    let volume = Arc::new(infra.guard().admit(volume).inspect_err(|_| usable::audit(&name, "attach"))?);
    if request.sharing == Sharing::ManyNodes && !volume::is_shared(&volume) {
        return Err(Error::NotShared(name));
    }
    let serial = serial::of(request.serial.as_deref(), &volume.metadata)?.to_owned();
    let disk = HotplugDisk { serial, bus: request.bus.as_str() };
    let progress = Mutex::new((volume.progress(), Instant::now()));
    let publication = Publication { infra, queues, operation, name: &name, vm, volume, progress, disk };
    match request.sharing {
        Sharing::ManyNodes => publication.attach_shared().await?,
        Sharing::OneNode => publication.attach_alone().await?,
    }
    if clone_method::has_temporary_snapshot(&publication.volume) {
        // The disk is there, so CDI has filled it.
        clone::try_clean_up(infra, operation, &name).await;
    }
    Ok(())
}

struct Publication<'a> {
    infra: &'a Infra,
    queues: &'a VmQueues,
    operation: &'a ControllerOperation,
    name: &'a ObjectName,
    vm: &'a ObjectName,
    volume: Arc<Owned<DataVolume>>,
    /// What CDI reports on the volume, and when it was read.
    progress: Mutex<(String, Instant)>,
    disk: HotplugDisk,
}

impl Publication<'_> {
    async fn attach_shared(&self) -> Result<(), Error> {
        let mut view = View::new(self.infra, self.vm, self.name);
        self.operation.wait(view.read()).await??;
        view.check_guest()?;
        moved::check_claim(self.infra, self.operation, self.name).await?;
        self.attach(view, None).await.map_err(|failure| failure.error)
    }

    /// Becomes the holder, reads, hotplugs, confirms (see [`crate::holder`] for why in this order).
    async fn attach_alone(&self) -> Result<(), Error> {
        let holder = Holder::new(self.infra, self.name, self.vm);
        let hold = holder.acquire(self.operation).await?;
        let attached = self.attach_held(&holder, hold).await;
        let Err(failure) = attached else { return Ok(()) };
        if failure.plugged && failure.is_to_be_withdrawn() {
            self.withdraw().await;
        }
        // A refused VM must not keep the volume from other nodes. An attach that may still succeed keeps the holder
        // annotation.
        if hold == Hold::Held
            && failure.is_refusal()
            && let Err(error) = holder.release(self.operation).await
        {
            tracing::warn!(%error, "the holder annotation stays until another node asks for the volume");
        }
        Err(failure.error)
    }

    async fn attach_held(&self, holder: &Holder<'_>, hold: Hold) -> Result<(), AttachError> {
        let since = Instant::now();
        let census = self.operation.wait(self.infra.census()).await??;
        let mut view = View::new(self.infra, self.vm, self.name);
        view.take_census(&census, since);
        view.check_guest()?;
        holder.nobody_else(&census.holders(self.name))?;
        drop(census);
        self.attach(view, Some((holder, hold))).await
    }

    /// Observes, plans and acts until the volume is attached.
    async fn attach(&self, mut view: View, alone: Option<(&Holder<'_>, Hold)>) -> Result<(), AttachError> {
        let mut plugged = false;
        loop {
            let step =
                self.step(&mut view, &mut plugged).await.map_err(|error| AttachError { error, plugged })?;
            let confirm = match (step, alone) {
                (Reached::Attached, alone) => alone,
                (Reached::Plugged, Some((_, Hold::Unarbitrated))) => alone,
                (Reached::Plugged | Reached::Waiting, _) => None,
            };
            if let Some((holder, hold)) = confirm {
                holder.confirm(hold, self.operation).await.map_err(|error| AttachError { error, plugged })?;
            }
            if step == Reached::Attached {
                return Ok(());
            }
        }
    }

    async fn step(&self, view: &mut View, plugged: &mut bool) -> Result<Reached, Error> {
        self.operation.check()?;
        match attach::next(view.observed(), Wanted::Attached) {
            Step::Done => Ok(Reached::Attached),
            Step::Refuse(refusal) => {
                Err(Error::Refused { vm: node_id(self.infra, self.vm), refusal: RefusalReason(refusal) })
            }
            Step::Wait(cause) => {
                // A read that is still to come must not hide the error of the call before it.
                if cause.is_observed() {
                    let progress = self.progress(&cause, view.vmi_uid()).await;
                    let (vm, complaint) = (node_id(self.infra, self.vm), view.complaint());
                    let hint = view.observed().hint(&cause);
                    if is_disk_limit(&cause, &complaint) {
                        return Err(Error::NoFreeSlot { vm, complaint });
                    }
                    self.operation.report(format_args!("VM {vm}: {cause} ({progress}){complaint}{hint}"));
                }
                view.wait(self.operation, &cause).await?;
                Ok(Reached::Waiting)
            }
            // Only a detach records a move.
            Step::RecordMove(claim) => Err(Error::Refused {
                vm: node_id(self.infra, self.vm),
                refusal: RefusalReason(attach::Refusal::Moved { claim }),
            }),
            Step::Call(_) => {
                usable::check(&self.volume, self.name)?;
                let what = What::Add { volume: Arc::clone(&self.volume), disk: self.disk.clone() };
                if !change(self.queues, self.vm, self.name, what, view, self.operation).await? {
                    return Ok(Reached::Waiting);
                }
                *plugged = true;
                Ok(Reached::Plugged)
            }
        }
    }

    /// What CDI reports on the volume, or virt-controller on the attachment pod. It is read again at an interval: while the
    /// volume is pending, CDI knows why and the VM does not; while the pod is missing, only the VMI's events say why.
    async fn progress(&self, cause: &Cause, vmi_uid: Option<&str>) -> String {
        let (known, read) = self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if read.elapsed() < VOLUME_READ_INTERVAL {
            return known;
        }
        let newest = match (WaitCause::from(cause), vmi_uid) {
            (WaitCause::VolumePending, _) => self.of_volume(known).await,
            (WaitCause::AttachmentPod, Some(uid)) => self.of_vmi(uid).await.unwrap_or(known),
            _ => return known,
        };
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = (newest.clone(), Instant::now());
        newest
    }

    /// The warnings about the VMI; `None` if there are none.
    async fn of_vmi(&self, uid: &str) -> Option<String> {
        let warnings = infra_reasons::warnings_about(self.infra, self.operation, uid).await;
        (!warnings.is_empty())
            .then(|| format!("warnings of the VMI in the last hour: {}", warnings.join("; ")))
    }

    /// What CDI reports on the volume.
    async fn of_volume(&self, known: String) -> String {
        let read = self.operation.wait(self.infra.data_volume(self.name)).await;
        // A failed read changes nothing: the last report stays until the next.
        if let Ok(Ok(Some(volume))) = read {
            let waits = volume::waits_for_consumer(&volume);
            let reason = infra_reasons::unbound(self.infra, self.operation, self.name, waits).await;
            [volume.progress(), reason]
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect::<Vec<_>>()
                .join("; ")
        } else {
            known
        }
    }

    /// Unplugs what this RPC has just plugged in, because another VM has the volume, or KubeVirt has moved it.
    async fn withdraw(&self) {
        let mut view = View::new(self.infra, self.vm, self.name);
        let read = self.operation.wait(view.read()).await;
        let withdrawn = match read {
            Ok(Ok(())) => {
                change(self.queues, self.vm, self.name, What::Remove, &mut view, self.operation).await
            }
            Ok(Err(error)) => Err(error.into()),
            Err(unanswered) => Err(unanswered.into()),
        };
        match withdrawn {
            Ok(_) => {
                tracing::warn!(vm = %self.vm, "the VM must not have the volume; unplugged it here again");
            }
            Err(error) => {
                tracing::warn!(vm = %self.vm, %error, "the VM must not have the volume; it stays plugged in here until it is unpublished");
            }
        }
    }
}

/// Whether KubeVirt reports that the VM cannot have one more disk, while it is to get this one.
fn is_disk_limit(cause: &Cause, complaint: &str) -> bool {
    matches!(cause, Cause::Attaching(_)) && NO_FREE_SLOT.iter().any(|words| complaint.contains(words))
}

/// What one run of the loop reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    Waiting,
    Plugged,
    Attached,
}

/// A failed attach, and whether this RPC plugged the volume in.
struct AttachError {
    error: Error,
    plugged: bool,
}

impl AttachError {
    /// Whether the VM must not have the volume after all.
    fn is_to_be_withdrawn(&self) -> bool {
        matches!(self.error, Error::HeldElsewhere { .. } | Error::Changed(_) | Error::Moved { .. })
    }

    fn is_refusal(&self) -> bool {
        matches!(
            self.error,
            Error::HeldElsewhere { .. }
                | Error::OtherGuestsVm { .. }
                | Error::Moved { .. }
                | Error::Refused { .. }
                | Error::RefusedChange(_)
                | Error::Deleting(_)
                | Error::Failed { .. }
        )
    }
}

impl<E: Into<Error>> From<E> for AttachError {
    fn from(error: E) -> Self {
        Self { error: error.into(), plugged: false }
    }
}
