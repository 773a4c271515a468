//! `ControllerUnpublishVolume`: done when neither VM nor VMI shows the volume.

use std::time::Duration;

use infra::{Infra, ObjectName};
use kubevirt::Seen;
use tokio::time::Instant;

use crate::{
    attach::{self, Step, Wanted},
    controller_operation::ControllerOperation,
    error::{Error, RefusalReason},
    holder::Holder,
    hotplug::change,
    moved,
    node_id::{node_id, node_ids},
    request::{NodeId, Unpublish},
    usable,
    view::View,
    vm_queue::{VmQueues, What},
};

/// A volume that its VMI has and its VM does not is unplugged from the VMI after this time. virt-controller takes a volume
/// out of the VMI well within a second after it left the VM.
const ONLY_IN_VMI_LIMIT: Duration = Duration::from_secs(5);

/// Detaches the volume from its node, or from all.
pub(crate) async fn unpublish(
    infra: &Infra,
    queues: &VmQueues,
    operation: &ControllerOperation,
    request: &Unpublish,
) -> Result<(), Error> {
    let Some(volume) = ObjectName::parse(&request.volume) else {
        // No object can have this name, so no VM has the volume.
        return Ok(());
    };
    match &request.node {
        Some(NodeId::Vm(name)) => {
            let holder = Holder::new(infra, &volume, name);
            // A successful release proves that the claim carries our labels; the patch changes nothing on a foreign
            // claim.
            let released = infra.guard().admits_name(volume.as_str()) && release(&holder, operation).await?;
            if released || is_ours_or_gone(infra, operation, &volume).await? {
                detach(infra, queues, operation, &volume, name).await
            } else {
                refuse_unless_absent(infra, operation, &volume, name).await
            }
        }
        // The node id is not of this driver: change nothing, and succeed only if no VM has the volume.
        Some(NodeId::Unknown(_)) => in_use(infra, operation, &volume).await,
        None => {
            if !is_ours_or_gone(infra, operation, &volume).await? {
                return in_use(infra, operation, &volume).await;
            }
            let census = operation.wait(infra.census()).await??;
            for vm in census.holders(&volume) {
                release(&Holder::new(infra, &volume, &vm), operation).await?;
                detach(infra, queues, operation, &volume, &vm).await?;
            }
            Ok(())
        }
    }
}

async fn release(holder: &Holder<'_>, operation: &ControllerOperation) -> Result<bool, Error> {
    Ok(holder.release(operation).await?.is_some())
}

/// Whether the volume is ours, by its `DataVolume` or, where that is gone, by its claim. Where both are gone, only the
/// name is left to check; then no volume exists that could be another guest's.
async fn is_ours_or_gone(
    infra: &Infra,
    operation: &ControllerOperation,
    volume: &ObjectName,
) -> Result<bool, Error> {
    let guard = infra.guard();
    if let Some(found) = operation.wait(infra.data_volume(volume)).await?? {
        return Ok(guard.admit(found).is_ok());
    }
    match operation.wait(infra.claim(volume)).await?? {
        Some(claim) => Ok(guard.admit(claim).is_ok()),
        None => Ok(guard.admits_name(volume.as_str())),
    }
}

/// Observes, plans and acts until the volume is detached.
async fn detach(
    infra: &Infra,
    queues: &VmQueues,
    operation: &ControllerOperation,
    volume: &ObjectName,
    vm: &ObjectName,
) -> Result<(), Error> {
    let mut view = View::new(infra, vm, volume);
    let mut alone = OnlyInVmi::No;
    loop {
        operation.check()?;
        match attach::next(view.observed(), Wanted::Detached) {
            Step::Done => return Ok(()),
            Step::Refuse(refusal) => {
                return Err(Error::Refused { vm: node_id(infra, vm), refusal: RefusalReason(refusal) });
            }
            Step::Wait(cause) => {
                alone = alone.next(view.observed().is_only_in_vmi());
                if cause.is_observed() && !matches!(alone, OnlyInVmi::Called) {
                    let hint = view.observed().hint(&cause);
                    let vm = node_id(infra, vm);
                    operation.report(format_args!("VM {vm}: {cause}{}{hint}", view.complaint()));
                }
                if alone.is_due() {
                    alone = OnlyInVmi::Called;
                    unplug_from_vmi(infra, operation, volume, vm, view.observed().hint(&cause)).await?;
                }
                view.wait(operation, &cause).await?;
            }
            Step::RecordMove(claim) => {
                if !moved::record(infra, operation, volume, &claim).await? {
                    let refusal = RefusalReason(attach::Refusal::Moved { claim });
                    return Err(Error::Refused { vm: node_id(infra, vm), refusal });
                }
                view.move_is_recorded(claim);
            }
            Step::Call(_) => {
                change(queues, vm, volume, What::Remove, &mut view, operation).await?;
            }
        }
    }
}

/// How long a volume has been in the VMI alone.
#[derive(Clone, Copy)]
enum OnlyInVmi {
    No,
    Since(Instant),
    /// KubeVirt was asked to unplug it there.
    Called,
}

impl OnlyInVmi {
    fn next(self, observed: bool) -> Self {
        match self {
            Self::Called => Self::Called,
            Self::Since(_) if !observed => Self::No,
            Self::No if observed => Self::Since(Instant::now()),
            same => same,
        }
    }

    fn is_due(self) -> bool {
        matches!(self, Self::Since(since) if since.elapsed() >= ONLY_IN_VMI_LIMIT)
    }
}

/// Unplugs a volume that was plugged into the VMI and not into the VM (gate `HotplugVolumes`). If KubeVirt refuses it, its
/// text is the reason that the detach ends with: the volume may still leave the VMI by itself.
async fn unplug_from_vmi(
    infra: &Infra,
    operation: &ControllerOperation,
    volume: &ObjectName,
    vm: &ObjectName,
    hint: &str,
) -> Result<(), Error> {
    tracing::info!(%vm, "the VMI has the volume and its VM does not; unplugging it from the VMI");
    let vmi = node_id(infra, vm);
    match operation.change(|| infra.remove_volume_from_vmi(vm, volume)).await? {
        Ok(()) => operation.report(format_args!("VMI {vmi}: the volume, which its VM does not have, is being unplugged")),
        Err(error) => operation.report(format_args!(
            "VMI {vmi}: the volume is in the VMI and not in its VM, and it could not be unplugged from the VMI: {error}{hint}"
        )),
    }
    Ok(())
}

/// A foreign volume is never changed. If it is not on the node there is nothing to do: its publish was refused. What the VM of
/// another guest has is not this guest's business, and no publish of this guest's has put it there.
async fn refuse_unless_absent(
    infra: &Infra,
    operation: &ControllerOperation,
    volume: &ObjectName,
    vm: &ObjectName,
) -> Result<(), Error> {
    let mut view = View::new(infra, vm, volume);
    operation.wait(view.read()).await??;
    if view.check_guest().is_err() {
        return Ok(());
    }
    let seen = view.observed();
    let in_vm =
        matches!(&seen.vm, Seen::Present(vm) if vm.spec != attach::SpecEntry::Absent || vm.request.is_some());
    let in_vmi = matches!(&seen.vmi, Seen::Present(vmi) if vmi.holds_volume());
    if in_vm || in_vmi {
        usable::audit(volume, "detach");
        return Err(Error::NotOurs);
    }
    Ok(())
}

/// Succeeds only if no VM has the volume. VMs are named only to the guest whose volume it is, and VMs of other guests count
/// only for it: otherwise the answer would tell this guest what they have.
async fn in_use(infra: &Infra, operation: &ControllerOperation, volume: &ObjectName) -> Result<(), Error> {
    let ours = is_ours_or_gone(infra, operation, volume).await?;
    let census = operation.wait(infra.census()).await??;
    let mut holders = census.holders(volume);
    holders.retain(|vm| ours || !census.is_of_another(vm, infra.vm_guest()));
    if holders.is_empty() {
        return Ok(());
    }
    if !ours {
        usable::audit(volume, "detach");
        return Err(Error::NotOurs);
    }
    Err(Error::InUse { holders: node_ids(infra, &holders) })
}
