//! What the node counts about disks. The driver counts calls, for all its services alike.

use std::{fmt, time::Duration};

use csi_call::InFlight;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    error::{Error, Result},
    pool::Pool,
    stage::Decision,
};

/// Bounds in seconds: hotplug shows within half a second, a late disk after a rescan, a lost one never.
const WAIT_BOUNDS: [f64; 10] = [0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 45.0, 90.0];

const REFUSED_OTHER_FILESYSTEM: &str = "refused_other_filesystem";
const REFUSED_NOT_BLANK: &str = "refused_not_blank";
const REFUSED_UNREADABLE: &str = "refused_unreadable";
const REFUSED_BLANK_COPY: &str = "refused_blank_copy";
const REFUSED_READ_ONLY: &str = "refused_read_only";
const REFUSED_TOO_SMALL: &str = "refused_too_small";
const REFUSED_IN_USE: &str = "refused_in_use";
const REFUSED_NOT_PROBED: &str = "refused_not_probed";
/// The label's values for disks that were refused.
const REFUSALS: [&str; 8] = [
    REFUSED_OTHER_FILESYSTEM,
    REFUSED_NOT_BLANK,
    REFUSED_BLANK_COPY,
    REFUSED_UNREADABLE,
    REFUSED_READ_ONLY,
    REFUSED_TOO_SMALL,
    REFUSED_IN_USE,
    REFUSED_NOT_PROBED,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    result: &'static str,
}

/// The metrics of this crate; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    decisions: Family<DecisionLabel, Counter>,
    device_wait: Histogram,
}

impl Default for Metrics {
    /// Every result is exported from the start, at zero, so that Prometheus sees its first increase.
    fn default() -> Self {
        let decisions = Family::<DecisionLabel, Counter>::default();
        for result in Decision::LABELS.into_iter().chain(REFUSALS) {
            drop(decisions.get_or_create(&DecisionLabel { result }));
        }
        Self { decisions, device_wait: Histogram::new(WAIT_BOUNDS) }
    }
}

/// Reads at each scrape how long the oldest operation has been running and how many threads work.
#[derive(Debug)]
pub(crate) struct Work {
    pub in_flight: InFlight,
    pub pools: Vec<Pool>,
}

impl Collector for Work {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let age = ConstGauge::new(self.in_flight.oldest().unwrap_or_default().as_secs_f64());
        let metric = encoder.encode_descriptor(
            "kubevirt_csi_node_oldest_operation",
            "Age of the oldest operation of the node that runs, also when its caller is gone; 0 when none does",
            Some(&Unit::Seconds),
            age.metric_type(),
        )?;
        age.encode(metric)?;
        let mut metric = encoder.encode_descriptor(
            "kubevirt_csi_node_free_threads",
            "Threads of a pool that no work has; 0 for long means disks that hang, or, of rescan, a SCSI host that does",
            None,
            MetricType::Gauge,
        )?;
        for pool in &self.pools {
            let free = ConstGauge::new(i64::try_from(pool.free()).unwrap_or(i64::MAX));
            free.encode(metric.encode_family(&[("pool", pool.name())])?)?;
        }
        Ok(())
    }
}

impl Metrics {
    /// Puts them into a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_csi_node_format_decisions",
            "Disks that were probed before staging, by decision",
            self.decisions.clone(),
        );
        registry.register(
            "kubevirt_csi_node_device_wait_seconds",
            "Time until the disk of a volume was seen in the guest, found or not",
            self.device_wait.clone(),
        );
    }

    pub(crate) fn count_decision(&self, decision: Result<Decision, &Error>) {
        let result = match decision {
            Ok(decision) => decision.label(),
            Err(Error::OtherFilesystem { .. }) => REFUSED_OTHER_FILESYSTEM,
            Err(Error::NotBlank { .. } | Error::ForeignFilesystem { .. }) => REFUSED_NOT_BLANK,
            Err(Error::BlankCopy { .. }) => REFUSED_BLANK_COPY,
            Err(Error::DiskUnreadable { .. }) => REFUSED_UNREADABLE,
            Err(Error::ReadOnlyBlank { .. }) => REFUSED_READ_ONLY,
            Err(Error::DiskTooSmall { .. }) => REFUSED_TOO_SMALL,
            Err(Error::DiskBusy { .. } | Error::DiskStacked { .. }) => REFUSED_IN_USE,
            Err(_) => REFUSED_NOT_PROBED,
        };
        self.decisions.get_or_create(&DecisionLabel { result }).inc();
    }

    pub(crate) fn observe_device_wait(&self, waited: Duration) {
        self.device_wait.observe(waited.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_by_result_without_any_name() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.count_decision(Ok(Decision::FormatBlank(1)));
        metrics.count_decision(Err(&Error::ReadOnlyBlank { name: "sda".into() }));
        metrics.observe_device_wait(Duration::from_millis(200));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(
            text.contains(r#"kubevirt_csi_node_format_decisions_total{result="format_blank"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"{result="refused_read_only"} 1"#), "{text}");
        assert!(text.contains(r#"kubevirt_csi_node_device_wait_seconds_bucket{le="0.25"} 1"#), "{text}");
        assert!(!text.contains("sda"), "{text}");
    }
}
