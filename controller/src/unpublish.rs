//! `ControllerUnpublishVolume`: done when neither VM nor VMI shows the volume.

use infra::{Infra, ObjectName};
use kubevirt::Seen;

use crate::{
    attach::{self, Step, Wanted},
    controller_operation::ControllerOperation,
    error::{Error, RefusalReason},
    holder::Holder,
    hotplug::change,
    node_id::{node_id, node_ids},
    request::{NodeId, Unpublish},
    usable,
    view::View,
    vm_queue::{VmQueues, What},
};

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
    loop {
        operation.check()?;
        match attach::next(view.observed(), Wanted::Detached) {
            Step::Done => return Ok(()),
            Step::Refuse(refusal) => {
                return Err(Error::Refused { vm: node_id(infra, vm), refusal: RefusalReason(refusal) });
            }
            Step::Wait(cause) => {
                if cause.is_observed() {
                    operation.report(format_args!("VM {}: {cause}", node_id(infra, vm)));
                }
                view.wait(operation, &cause).await?;
            }
            Step::Call(_) => {
                change(queues, vm, volume, What::Remove, &mut view, operation).await?;
            }
        }
    }
}

/// A foreign volume is never changed. If it is not on the node there is nothing to do: its publish was refused.
async fn refuse_unless_absent(
    infra: &Infra,
    operation: &ControllerOperation,
    volume: &ObjectName,
    vm: &ObjectName,
) -> Result<(), Error> {
    let mut view = View::new(infra, vm, volume);
    operation.wait(view.read()).await??;
    let seen = view.observed();
    let in_vm =
        matches!(&seen.vm, Seen::Present(vm) if vm.spec != attach::SpecEntry::Absent || vm.request.is_some());
    let in_vmi = matches!(&seen.vmi, Seen::Present(vmi) if vmi.in_spec || vmi.status.is_some());
    if in_vm || in_vmi {
        usable::audit(volume, "detach");
        return Err(Error::NotOurs);
    }
    Ok(())
}

/// Succeeds only if no VM has the volume. VMs are named only to the guest whose volume it is.
async fn in_use(infra: &Infra, operation: &ControllerOperation, volume: &ObjectName) -> Result<(), Error> {
    let ours = is_ours_or_gone(infra, operation, volume).await?;
    let census = operation.wait(infra.census()).await??;
    let holders = census.holders(volume);
    if holders.is_empty() {
        return Ok(());
    }
    if !ours {
        usable::audit(volume, "detach");
        return Err(Error::NotOurs);
    }
    Err(Error::InUse { holders: node_ids(infra, &holders) })
}
