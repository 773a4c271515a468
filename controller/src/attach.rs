//! The planner of hotplug: from what VM and VMI show of one volume to the one next step. It is a plain function; the
//! same observation always gives the same step.
//!
//! *Attached* = in VM spec and VMI spec, and VMI status Ready with hotplug entry and target. *Gone* = absent from VM
//! spec, volume requests, VMI spec and VMI status; what a VMI shows that has ended, and whose pods are recorded to be gone,
//! counts as absent. What has not been read, and a phase that this driver does not know,
//! is neither. The planner adds a volume only if everything was read and nothing names the volume, so a pending change
//! is never repeated.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

mod projection;
mod text;

use infra::{Phase, VolumePhase, VolumeStatus};
use kubevirt::Seen;

/// What a VM shows of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmView {
    pub deleting: bool,
    /// KubeVirt keeps it running.
    pub automatic: bool,
    /// `printableStatus`.
    pub status: String,
    /// What KubeVirt reports to be wrong with it; may be empty.
    pub complaint: String,
    /// `updateVolumesStrategy: Migration`: while it is set, KubeVirt plugs nothing in or out that changes in the VM's spec (gate
    /// `DeclarativeHotplugVolumes`, `HandleDeclarativeVolumes` of 1.9).
    pub moves_volumes: bool,
    pub spec: SpecEntry,
    pub request: Option<Request>,
}

/// The volume in the VM's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SpecEntry {
    Absent,
    /// Hotplugged under its own name, as this driver and kubevirt/csi-driver do it.
    Hotplugged,
    /// A disk of the VM that this driver must not unplug: fixed, or under another name.
    Fixed {
        name: String,
    },
    /// Hotplugged under its own name, and its source is another claim: KubeVirt has moved the volume, or is about to
    /// (`updateVolumesStrategy: Migration`). The claim that this driver would plug next time has older data.
    Moved {
        claim: String,
    },
}

/// A hotplug call that KubeVirt accepted and has not carried out (gate `HotplugVolumes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Add,
    Remove,
}

/// What a VMI shows of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own that was read")]
pub(crate) struct VmiView {
    pub deleting: bool,
    pub phase: Phase,
    /// It has ended and its pods are gone, so nothing writes to the volume any more, whatever spec and status show.
    pub pods_are_gone: bool,
    /// What KubeVirt reports to be wrong with it; may be empty.
    pub complaint: String,
    pub in_spec: bool,
    /// It is in the spec under its own name, and can be unplugged.
    pub hotplugged: bool,
    /// The claim of the entry that has its name in the spec.
    pub claim: Option<String>,
    /// KubeVirt copies it to another claim (`status.migratedVolumes`).
    pub migrating: bool,
    pub status: Option<VolumeStatus>,
}

/// What is known of one volume on one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    pub vm: Seen<VmView>,
    pub vmi: Seen<VmiView>,
    /// The claim that the volume's own claim is recorded to have been moved to, so that the next attach is refused.
    pub recorded_move: Option<String>,
}

/// The desired state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Attached,
    Detached,
}

/// The one next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask KubeVirt for the change.
    Call(HotplugCall),
    /// Record at the volume's claim that KubeVirt has moved it to this claim. Once it is unplugged, nothing else shows that.
    RecordMove(String),
    /// Read again.
    Wait(Cause),
    /// The volume is as desired.
    Done,
    /// The volume can't become so; waiting does not help.
    Refuse(Refusal),
}

/// A hotplug call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HotplugCall {
    Add,
    Remove,
}

/// Why the only step is to read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The VM has to be read.
    VmUnseen,
    /// The VMI has to be read.
    VmiUnseen,
    /// KubeVirt has accepted a call and not carried it out.
    Requested(Request),
    /// The VM has the volume, its VMI does not yet.
    NotInVmi,
    /// The volume is on its way in.
    Attaching(VolumeStatus),
    /// The volume is on its way out.
    Detaching(Option<VolumeStatus>),
    /// The VMI has ended with the volume, and a pod of it is left. KubeVirt takes no volume out of an ended VMI; with the
    /// run strategies `Once` and `Manual` it deletes neither the VMI nor the pod. The phase alone does not prove that
    /// nothing writes any more.
    Ended,
    /// KubeVirt is moving it to this claim. Until that has ended, neither claim has all its data for sure.
    Moving(String),
    /// The VM is coming up.
    Starting(String),
    /// The VMI is being stopped.
    Stopping,
    /// A VMI phase that this driver does not know.
    UnknownVmiPhase(String),
}

/// Why the volume can't become as desired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The VM does not exist.
    NoSuchVm,
    /// The VM is being deleted.
    VmDeleting,
    /// The VM is not running and nothing starts it: the disk would come at its next start, with no VolumeAttachment
    /// that needs it.
    Halted(String),
    /// A disk of the VM that this driver must not plug or unplug.
    Fixed(String),
    /// KubeVirt has moved the volume to another claim.
    Moved {
        /// The claim that has its data now.
        claim: String,
    },
    /// The VM is gone, its VMI still has the disk; KubeVirt then refuses to unplug it (400 since 1.9).
    InstanceOutlivesVm,
}

/// The next step.
pub(crate) fn next(observed: &Observed, wanted: Wanted) -> Step {
    match wanted {
        Wanted::Attached => attach(observed),
        Wanted::Detached => detach(observed),
    }
}

fn attach(observed: &Observed) -> Step {
    let vm = match &observed.vm {
        Seen::Unseen => return attach_without_vm(&observed.vmi),
        Seen::Absent => return Step::Refuse(Refusal::NoSuchVm),
        Seen::Present(vm) => vm,
    };
    if let SpecEntry::Fixed { name } = &vm.spec {
        return Step::Refuse(Refusal::Fixed(name.clone()));
    }
    if let SpecEntry::Moved { claim } = &vm.spec {
        return Step::Refuse(Refusal::Moved { claim: claim.clone() });
    }
    if vm.deleting {
        return Step::Refuse(Refusal::VmDeleting);
    }
    let vmi = match &observed.vmi {
        Seen::Unseen => return Step::Wait(Cause::VmiUnseen),
        Seen::Absent => return not_running(vm),
        Seen::Present(vmi) => vmi,
    };
    match &vmi.phase {
        Phase::Running => {}
        Phase::Succeeded | Phase::Failed => return not_running(vm),
        Phase::Starting => return Step::Wait(Cause::Starting(vm.status.clone())),
        Phase::Unknown(phase) => return Step::Wait(Cause::UnknownVmiPhase(phase.clone())),
    }
    if vmi.deleting {
        return Step::Wait(Cause::Stopping);
    }
    if let Some(request) = vm.request {
        return Step::Wait(Cause::Requested(request));
    }
    match (&vm.spec, vmi.in_spec, &vmi.status) {
        (SpecEntry::Hotplugged, true, Some(status)) if is_ready(status) => Step::Done,
        (SpecEntry::Hotplugged, true, Some(status)) => Step::Wait(Cause::Attaching(status.clone())),
        (SpecEntry::Hotplugged, _, _) => Step::Wait(Cause::NotInVmi),
        (_, false, None) => Step::Call(HotplugCall::Add),
        (_, _, status) => Step::Wait(Cause::Detaching(status.clone())),
    }
}

/// After our own call the VM is read only once its VMI shows that the change has ended: that saves one call per read.
fn attach_without_vm(vmi: &Seen<VmiView>) -> Step {
    match vmi {
        Seen::Unseen => Step::Wait(Cause::VmiUnseen),
        Seen::Present(VmiView {
            phase: Phase::Running,
            deleting: false,
            in_spec: true,
            status: Some(status),
            ..
        }) if !is_ready(status) => Step::Wait(Cause::Attaching(status.clone())),
        Seen::Present(VmiView { phase: Phase::Running, deleting: false, status: None, .. }) => {
            Step::Wait(Cause::NotInVmi)
        }
        Seen::Absent | Seen::Present(_) => Step::Wait(Cause::VmUnseen),
    }
}

fn not_running(vm: &VmView) -> Step {
    if vm.automatic {
        Step::Wait(Cause::Starting(vm.status.clone()))
    } else {
        Step::Refuse(Refusal::Halted(vm.status.clone()))
    }
}

fn is_ready(status: &VolumeStatus) -> bool {
    status.phase == VolumePhase::Ready && status.hotplug && !status.target.is_empty()
}

fn detach(observed: &Observed) -> Step {
    let vm = match &observed.vm {
        Seen::Unseen => return detach_without_vm(&observed.vmi),
        Seen::Absent => {
            return match &observed.vmi {
                Seen::Unseen => Step::Wait(Cause::VmiUnseen),
                Seen::Present(vmi) if vmi.holds_volume() => Step::Refuse(Refusal::InstanceOutlivesVm),
                Seen::Absent | Seen::Present(_) => Step::Done,
            };
        }
        Seen::Present(vm) => vm,
    };
    if let Some(request) = vm.request {
        return Step::Wait(Cause::Requested(request));
    }
    match (&vm.spec, &observed.vmi) {
        (SpecEntry::Fixed { name }, _) => Step::Refuse(Refusal::Fixed(name.clone())),
        (SpecEntry::Moved { .. } | SpecEntry::Absent, Seen::Unseen) => Step::Wait(Cause::VmiUnseen),
        (SpecEntry::Moved { claim }, Seen::Present(vmi)) if vmi.is_moving_to(claim) => {
            Step::Wait(Cause::Moving(claim.clone()))
        }
        (SpecEntry::Moved { claim }, _) if observed.recorded_move.as_ref() != Some(claim) => {
            Step::RecordMove(claim.clone())
        }
        // The call names a disk that this driver plugged in, so it is right whatever the VMI shows, also in an unknown
        // phase.
        (SpecEntry::Hotplugged | SpecEntry::Moved { .. }, _) => Step::Call(HotplugCall::Remove),
        (SpecEntry::Absent, Seen::Present(vmi)) if vmi.holds_volume() => Step::Wait(leaving(vmi)),
        (SpecEntry::Absent, Seen::Absent | Seen::Present(_)) => Step::Done,
    }
}

fn detach_without_vm(vmi: &Seen<VmiView>) -> Step {
    match vmi {
        Seen::Present(vmi) if vmi.holds_volume() => Step::Wait(leaving(vmi)),
        Seen::Unseen | Seen::Absent | Seen::Present(_) => Step::Wait(Cause::VmUnseen),
    }
}

/// Why a VMI still has a volume that is to leave it.
fn leaving(vmi: &VmiView) -> Cause {
    match vmi.phase {
        Phase::Succeeded | Phase::Failed => Cause::Ended,
        Phase::Starting | Phase::Running | Phase::Unknown(_) => Cause::Detaching(vmi.status.clone()),
    }
}

/// How far a change is that KubeVirt accepted, by the VMI alone. A set of changes has to settle by this measure before
/// the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settling {
    /// The volume is as desired.
    Settled,
    /// Its attachment pod is at work, and another change now would replace the pod.
    Moving,
    /// It waits for its claim or its pod, which can last for ever.
    Pending,
}

/// How far a change is.
pub(crate) fn settling(vmi: &VmiView, wanted: Wanted) -> Settling {
    match (wanted, &vmi.status) {
        (Wanted::Detached, _) => {
            if vmi.holds_volume() {
                Settling::Moving
            } else {
                Settling::Settled
            }
        }
        (Wanted::Attached, Some(status)) if is_ready(status) => Settling::Settled,
        (Wanted::Attached, Some(VolumeStatus { phase: VolumePhase::Pending, .. }) | None) => {
            Settling::Pending
        }
        (Wanted::Attached, Some(_)) => Settling::Moving,
    }
}

impl Cause {
    /// Whether only a read of the VM can show that it is over.
    pub(crate) fn is_about_vm(&self) -> bool {
        matches!(self, Self::VmUnseen | Self::Requested(_) | Self::Starting(_) | Self::Stopping)
    }

    /// Whether it states what the infra cluster shows, as opposed to a read that is still to come.
    pub(crate) fn is_observed(&self) -> bool {
        !matches!(self, Self::VmUnseen | Self::VmiUnseen)
    }
}

impl Observed {
    /// What KubeVirt reports to be wrong with VM and VMI, each text once; `None` if nothing.
    pub(crate) fn complaint(&self) -> Option<String> {
        let vm = if let Seen::Present(vm) = &self.vm { vm.complaint.as_str() } else { "" };
        let vmi = if let Seen::Present(vmi) = &self.vmi { vmi.complaint.as_str() } else { "" };
        match (vmi, vm) {
            ("", "") => None,
            (vmi, "") => Some(vmi.to_owned()),
            ("", vm) => Some(vm.to_owned()),
            // virt-controller repeats at the VM what it reports at the VMI.
            (vmi, vm) if vmi.contains(vm) => Some(vmi.to_owned()),
            (vmi, vm) => Some(format!("{vmi}; {vm}")),
        }
    }

    /// What the wait for `cause` is to be told beside what KubeVirt reports; may be empty.
    pub(crate) fn hint(&self, cause: &Cause) -> &'static str {
        match (&self.vm, cause) {
            (Seen::Present(VmView { moves_volumes: true, .. }), Cause::NotInVmi | Cause::Detaching(_)) => {
                text::MOVES_VOLUMES
            }
            _ => "",
        }
    }

    /// Whether a running VMI has the volume, plugged in under its own name, and its VM neither has nor requests it. For a
    /// moment this is so in each detach; where it stays, the volume was plugged into the VMI alone.
    pub(crate) fn is_only_in_vmi(&self) -> bool {
        let vm = matches!(&self.vm, Seen::Present(VmView { spec: SpecEntry::Absent, request: None, .. }));
        let vmi = matches!(
            &self.vmi,
            Seen::Present(VmiView { phase: Phase::Running, deleting: false, hotplugged: true, .. })
        );
        vm && vmi
    }
}

impl VmiView {
    /// Whether spec or status have the volume and something may still write to it.
    pub(crate) fn holds_volume(&self) -> bool {
        !self.pods_are_gone && (self.in_spec || self.status.is_some())
    }

    /// Whether KubeVirt has not yet moved the volume to `claim`, which its VM names.
    fn is_moving_to(&self, claim: &str) -> bool {
        let has_other = self.claim.as_deref().is_some_and(|has| has != claim);
        self.holds_volume() && (self.migrating || has_other)
    }
}

#[cfg(test)]
mod tests;
