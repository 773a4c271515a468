//! Metrics: what the controller waits for, in seconds by cause, and how long its oldest operation has been running.

use std::{fmt, sync::atomic::AtomicU64, time::Duration};

use csi_call::InFlight;
use infra::VolumePhase;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::attach::Cause;

/// What an operation waits for. The label of a metric: a closed set, without any object's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitCause {
    /// A read of VM or VMI.
    Observation,
    /// Other changes of the VM come first.
    VmQueue,
    /// A set of changes of one VM settles; a change that waits for its turn meanwhile counts as `VmQueue` too.
    Settling,
    /// CDI has not made the infra claim yet.
    InfraClaim,
    /// The holder annotation names another VM, which does not have the volume.
    OtherHolder,
    /// The infra claim is being made larger.
    Expansion,
    /// The infra API asked for a pause before a change.
    InfraPause,
    /// KubeVirt accepted a hotplug call and has not carried it out.
    HotplugRequest,
    /// The volume is in the VM and not in its VMI.
    VmiUpdate,
    /// The volume waits for its infra volume: to be provisioned, populated, bound.
    VolumePending,
    /// The volume is on its way through the attachment pod into the VM.
    AttachmentPod,
    /// The volume leaves the VM.
    Detaching,
    /// The VM comes up.
    VmStarting,
    /// The VMI is being stopped.
    VmStopping,
    /// A phase that this driver does not know.
    UnknownPhase,
    /// The infra cluster takes a snapshot.
    Snapshot,
}

impl WaitCause {
    const ALL: [Self; 16] = [
        Self::Observation,
        Self::VmQueue,
        Self::Settling,
        Self::InfraClaim,
        Self::OtherHolder,
        Self::Expansion,
        Self::InfraPause,
        Self::HotplugRequest,
        Self::VmiUpdate,
        Self::VolumePending,
        Self::AttachmentPod,
        Self::Detaching,
        Self::VmStarting,
        Self::VmStopping,
        Self::UnknownPhase,
        Self::Snapshot,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Observation => "observation",
            Self::VmQueue => "vm_queue",
            Self::Settling => "settling",
            Self::InfraClaim => "infra_claim",
            Self::OtherHolder => "other_holder",
            Self::Expansion => "expansion",
            Self::InfraPause => "infra_pause",
            Self::HotplugRequest => "hotplug_request",
            Self::VmiUpdate => "vmi_update",
            Self::VolumePending => "volume_pending",
            Self::AttachmentPod => "attachment_pod",
            Self::Detaching => "detaching",
            Self::VmStarting => "vm_starting",
            Self::VmStopping => "vm_stopping",
            Self::UnknownPhase => "unknown_phase",
            Self::Snapshot => "snapshot",
        }
    }
}

impl From<&Cause> for WaitCause {
    fn from(cause: &Cause) -> Self {
        match cause {
            Cause::VmUnseen | Cause::VmiUnseen => Self::Observation,
            Cause::Requested(_) => Self::HotplugRequest,
            Cause::NotInVmi => Self::VmiUpdate,
            Cause::Attaching(status) => match status.phase {
                VolumePhase::Pending => Self::VolumePending,
                VolumePhase::Bound
                | VolumePhase::AttachedToNode
                | VolumePhase::MountedToPod
                | VolumePhase::Ready => Self::AttachmentPod,
                VolumePhase::UnMountedFromPod | VolumePhase::Detaching => Self::Detaching,
                VolumePhase::Unknown(_) => Self::UnknownPhase,
            },
            Cause::Detaching(_) | Cause::Moving(_) | Cause::Ended => Self::Detaching,
            Cause::Starting(_) => Self::VmStarting,
            Cause::Stopping => Self::VmStopping,
            Cause::UnknownVmiPhase(_) => Self::UnknownPhase,
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

/// Counts waits. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Waits {
    seconds: Family<CauseLabel, Counter<f64, AtomicU64>>,
    queued: Gauge,
}

impl Default for Waits {
    /// Every cause is exported from the start, at zero, so that Prometheus sees its first increase.
    fn default() -> Self {
        let waits = Self { seconds: Family::default(), queued: Gauge::default() };
        for cause in WaitCause::ALL {
            waits.add(cause, Duration::ZERO);
        }
        waits
    }
}

impl Waits {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "kubevirt_csi_controller_waited",
            "Time that operations of the controller waited, by cause",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register(
            "kubevirt_csi_controller_queued_changes",
            "Hotplug changes in the queues of their VMs, those that are being made included",
            self.queued.clone(),
        );
    }

    pub(crate) fn add(&self, cause: WaitCause, waited: Duration) {
        self.seconds.get_or_create(&CauseLabel { cause: cause.label() }).inc_by(waited.as_secs_f64());
    }

    /// Counts a change as queued until dropped.
    pub(crate) fn queued(&self) -> Queued {
        self.queued.inc();
        Queued(self.queued.clone())
    }
}

/// A change in a VM's queue.
pub(crate) struct Queued(Gauge);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Reads the age of the oldest operation at each scrape.
#[derive(Debug)]
pub(crate) struct OldestOperation(pub InFlight);

impl Collector for OldestOperation {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let age = ConstGauge::new(self.0.oldest().unwrap_or_default().as_secs_f64());
        let metric = encoder.encode_descriptor(
            "kubevirt_csi_controller_oldest_operation",
            "Age of the oldest operation of the controller that runs, also when its caller is gone; 0 when none does",
            Some(&Unit::Seconds),
            age.metric_type(),
        )?;
        age.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use infra::VolumeStatus;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn every_cause_is_shown_from_the_start_and_counts_seconds() {
        let (waits, mut registry) = (Waits::default(), Registry::default());
        waits.register(&mut registry);
        waits.add(WaitCause::Settling, Duration::from_millis(1500));
        let queued = waits.queued();
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for cause in WaitCause::ALL {
            let seconds = if cause == WaitCause::Settling { "1.5" } else { "0.0" };
            let line = format!(
                "kubevirt_csi_controller_waited_seconds_total{{cause=\"{}\"}} {seconds}\n",
                cause.label()
            );
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert!(text.contains("kubevirt_csi_controller_queued_changes 1\n"), "{text}");
        drop(queued);
        assert_eq!(waits.queued.get(), 0);
    }

    #[test]
    fn the_planners_causes_have_their_own_words() {
        let at =
            |phase| WaitCause::from(&Cause::Attaching(VolumeStatus { phase, ..VolumeStatus::default() }));
        assert_eq!(at(VolumePhase::Pending), WaitCause::VolumePending);
        assert_eq!(at(VolumePhase::MountedToPod), WaitCause::AttachmentPod);
        assert_eq!(at(VolumePhase::Unknown("x".into())), WaitCause::UnknownPhase);
        assert_eq!(WaitCause::from(&Cause::NotInVmi), WaitCause::VmiUpdate);
    }
}
