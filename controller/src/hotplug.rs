//! One hotplug change: through the queue of its VM, and what its outcome means for the operation that needs it.

use infra::{Class, ObjectName};

use crate::{
    controller_operation::ControllerOperation,
    error::Error,
    metrics::WaitCause,
    view::View,
    vm_queue::{Change, Outcome, VmQueues, What},
};

/// Makes one change through the VM's queue. Returns true if KubeVirt accepted it, and false if the planner has to plan
/// again.
pub(crate) async fn change(
    queues: &VmQueues,
    vm: &ObjectName,
    volume: &ObjectName,
    what: What,
    view: &mut View,
    operation: &ControllerOperation,
) -> Result<bool, Error> {
    let taken = view.take();
    let change = Change { volume: volume.clone(), what, view: taken, operation: operation.clone() };
    operation.report_first(format_args!("waiting in the queue of hotplug changes of VM {vm}"));
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
        Outcome::QueueFailed => Err(operation.panicked().into()),
        Outcome::Expired => Err(operation.check().err().unwrap_or_else(|| operation.late()).into()),
        Outcome::Unobserved(error) => Err(error.into()),
        Outcome::Failed(_, error) if error.is_content_refusal() => Err(Error::RefusedChange(error)),
        Outcome::Failed(back, error) => match error.class() {
            Class::BadRequest => Err(Error::RefusedChange(error)),
            Class::Forbidden | Class::Unauthorized => Err(error.into()),
            // Only the VM shows whether the call took effect: it may be a lost race of concurrent calls, a lost reply,
            // or a pause that the API asked for.
            Class::NotFound
            | Class::Conflict
            | Class::Invalid
            | Class::Throttled
            | Class::Server
            | Class::Timeout
            | Class::Transport => {
                operation.report(&error);
                *view = back;
                view.outcome_unknown(error.retry_after());
                Ok(false)
            }
        },
    }
}
