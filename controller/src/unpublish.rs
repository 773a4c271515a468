//! `ControllerUnpublishVolume`: until neither VM nor VMI shows the volume.

use std::sync::Arc;

use infra::{Infra, ObjectName};

use crate::{
    attach::{self, Seen, Step, Wanted},
    error::{Error, RefusalReason},
    holder::{Holder, display},
    operation::Operation,
    publish::{audit, change, is_observed},
    request::{NodeId, Unpublish},
    view::View,
    vm_queue::{VmQueues, What},
};

/// Detaches the volume from its node, or from all.
pub(crate) async fn unpublish(
    infra: &Infra,
    queues: &VmQueues,
    operation: &Arc<Operation>,
    request: &Unpublish,
) -> Result<(), Error> {
    let Some(volume) = ObjectName::parse(&request.volume) else {
        // No object has such a name, so no VM has the volume.
        return Ok(());
    };
    match &request.node {
        Some(NodeId::Vm { namespace, name }) if namespace == infra.namespace() => {
            let holder = Holder::new(infra, &volume, name);
            // A successful release proves the labels; it changes nothing on a foreign claim.
            let released = infra.guard().admits_name(volume.as_str()) && release(&holder, operation).await?;
            if released || is_ours_or_gone(infra, operation, &volume).await? {
                detach(infra, queues, operation, &volume, name).await
            } else {
                refuse_unless_absent(infra, operation, &volume, name).await
            }
        }
        // Not a node of this driver, or of another namespace: nothing is touched, and it is done only if nobody has the volume.
        Some(_) => in_use(infra, operation, &volume).await,
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

async fn release(holder: &Holder<'_>, operation: &Operation) -> Result<bool, Error> {
    Ok(holder.release(operation).await?.is_some())
}

/// Whether the volume is ours, by its `DataVolume` or, where that is gone, by its claim. Where both are gone, only the name is
/// left to judge by: there is no volume any more that could be another's.
async fn is_ours_or_gone(infra: &Infra, operation: &Operation, volume: &ObjectName) -> Result<bool, Error> {
    let guard = infra.guard();
    if let Some(found) = operation.wait(infra.data_volume(volume)).await?? {
        return Ok(guard.admit(found).is_ok());
    }
    match operation.wait(infra.claim(volume)).await?? {
        Some(claim) => Ok(guard.admit(claim).is_ok()),
        None => Ok(guard.admits_name(volume.as_str())),
    }
}

/// The loop around the planner.
async fn detach(
    infra: &Infra,
    queues: &VmQueues,
    operation: &Arc<Operation>,
    volume: &ObjectName,
    vm: &ObjectName,
) -> Result<(), Error> {
    let mut view = View::new(infra, vm, volume);
    loop {
        operation.check()?;
        match attach::next(view.observed(), Wanted::Detached) {
            Step::Done => return Ok(()),
            Step::Refuse(refusal) => {
                return Err(Error::Refused { vm: display(infra, vm), refusal: RefusalReason(refusal) });
            }
            Step::Wait(cause) => {
                if is_observed(&cause) {
                    operation.note(format_args!("VM {}: {cause}", display(infra, vm)));
                }
                view.wait(operation, &cause).await?;
            }
            Step::Call(_) => {
                change(queues, vm, volume, What::Remove, &mut view, operation).await?;
            }
        }
    }
}

/// A foreign volume is never touched. Where it is not on the node there is nothing to do; a publish of it was refused.
async fn refuse_unless_absent(
    infra: &Infra,
    operation: &Operation,
    volume: &ObjectName,
    vm: &ObjectName,
) -> Result<(), Error> {
    let mut view = View::new(infra, vm, volume);
    operation.wait(view.look()).await??;
    let seen = view.observed();
    let in_vm =
        matches!(&seen.vm, Seen::Present(vm) if vm.spec != attach::SpecEntry::Absent || vm.request.is_some());
    let in_vmi = matches!(&seen.vmi, Seen::Present(vmi) if vmi.in_spec || vmi.status.is_some());
    if in_vm || in_vmi {
        audit(volume, "detach");
        return Err(Error::NotOurs);
    }
    Ok(())
}

async fn in_use(infra: &Infra, operation: &Operation, volume: &ObjectName) -> Result<(), Error> {
    let census = operation.wait(infra.census()).await??;
    let holders = census.holders(volume);
    if holders.is_empty() { Ok(()) } else { Err(Error::InUse { holders: list(infra, &holders) }) }
}

/// VMs for an error text.
pub(crate) fn list(infra: &Infra, vms: &[ObjectName]) -> String {
    vms.iter().map(|vm| display(infra, vm)).collect::<Vec<_>>().join(", ")
}
