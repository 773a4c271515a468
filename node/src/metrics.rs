//! What the node counts about disks. Calls are counted elsewhere, for all services alike.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::error::{Error, Result};
use crate::stage::Decision;

/// Bounds in seconds: hotplug shows within half a second, a late disk after a rescan, a lost one never.
const WAIT_BOUNDS: [f64; 10] = [0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 45.0, 90.0];

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
    fn default() -> Self {
        Self { decisions: Family::default(), device_wait: Histogram::new(WAIT_BOUNDS) }
    }
}

impl Metrics {
    /// Puts them into a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_csi_node_format_decisions",
            "Disks that were looked at before staging, by what was decided",
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
            Err(Error::OtherFilesystem { .. }) => "refused_other_filesystem",
            Err(Error::NotBlank { .. }) => "refused_not_blank",
            Err(Error::DiskUnreadable { .. }) => "refused_unreadable",
            Err(Error::ReadOnlyBlank { .. }) => "refused_read_only",
            Err(Error::DiskBusy { .. }) => "refused_in_use",
            Err(_) => "refused_not_probed",
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
