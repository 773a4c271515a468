//! What the planner's waits and refusals say.

use std::fmt;

use infra::VolumeStatus;

use super::{Cause, Refusal, Request};

/// The end of a wait's text where the VM has `updateVolumesStrategy: Migration`.
pub(super) const MOVES_VOLUMES: &str = "; the VM has updateVolumesStrategy: Migration, and while it is set KubeVirt plugs no other volume in or out: the administrator of the infra cluster must remove it once the move is done";

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "an accepted addition",
            Self::Remove => "an accepted removal",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VmUnseen => f.write_str("the VM is being read"),
            Self::VmiUnseen => f.write_str("the VMI is being read"),
            Self::Requested(request) => write!(f, "KubeVirt has not carried out {request} of the volume"),
            Self::NotInVmi => f.write_str("the volume is in the VM and not yet in its VMI"),
            Self::Attaching(status) => write!(f, "the volume is being attached: {}", Status(status)),
            Self::Detaching(Some(status)) => {
                write!(f, "the volume is being detached, and the VMI's status still has it: {}", Status(status))
            },
            Self::Detaching(None) => f.write_str("the volume is being detached: still in the VMI's spec"),
            Self::Ended => f.write_str(
                "the volume is being detached, but its VMI has ended and still has it, and KubeVirt has not recorded that the VMI's pods are gone (status.activePods, finalizer foregroundDeleteVirtualMachine). With runStrategy Once or Manual KubeVirt deletes neither: the administrator of the infra cluster must delete the completed virt-launcher pod (kubectl delete pod -l vm.kubevirt.io/name=<VM>), or delete the VMI; of a lost infra Node only after that Node is off",
            ),
            Self::Moving(claim) => write!(
                f,
                "KubeVirt is moving the volume to PVC {claim}, and it is detached once that has ended; see volumeUpdateState of the VM and migratedVolumes of its VMI"
            ),
            Self::Starting(status) => write!(f, "the VM is not running yet: {}", known(status)),
            Self::Stopping => f.write_str("the VMI is being stopped"),
            Self::UnknownVmiPhase(phase) => {
                write!(f, "the VMI is in phase {phase}, which this driver does not know")
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchVm => f.write_str("there is no such VM"),
            Self::VmDeleting => f.write_str("the VM is being deleted"),
            Self::Halted(status) => write!(f, "the VM is not running ({}); start it first", known(status)),
            Self::Fixed(name) => write!(
                f,
                "the volume is disk {name:?} of the VM and was not plugged in by this driver; detach it in the VM"
            ),
            Self::Moved { claim } => write!(
                f,
                "KubeVirt has moved the volume to PVC {claim}, which has its data now; the volume is neither attached nor detached, because the next attach would plug the older PVC. The administrator of the infra cluster must move it back to the PVC that has the name of the volume"
            ),
            Self::InstanceOutlivesVm => {
                f.write_str("the VM is deleted and its VMI, which still has the volume, is not gone yet")
            }
        }
    }
}

fn known(status: &str) -> &str {
    if status.is_empty() { "no status" } else { status }
}

/// A volume's status as KubeVirt reports it.
struct Status<'a>(&'a VolumeStatus);

impl fmt::Display for Status<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phase {}", self.0.phase.as_str())?;
        for text in [&self.0.reason, &self.0.message].into_iter().filter(|text| !text.is_empty()) {
            write!(f, ", {text}")?;
        }
        Ok(())
    }
}
