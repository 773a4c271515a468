//! The metric of objects that can't be read. What happens with them is the same for both programs: [`Readable`].

use cluster::CountSkipped;
pub use cluster::{Readable, Reader, Unreadable};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Counts the unreadable objects of both clusters. Clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct SkippedMetrics(Family<SkippedLabels, Counter>);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SkippedLabels {
    cluster: &'static str,
    resource: String,
}

impl SkippedMetrics {
    /// Registers the counter.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubevirt_ccm_unreadable_objects",
            "Objects that could not be read and were skipped, by cluster and resource; each read of one counts",
            self.0.clone(),
        );
    }

    /// Counts one, so that a test sees the labels.
    #[cfg(test)]
    pub(crate) fn sample(&self) {
        self.skipped("sample", "sample");
    }
}

impl CountSkipped for SkippedMetrics {
    fn skipped(&self, cluster: &'static str, resource: &str) {
        self.0.get_or_create(&SkippedLabels { cluster, resource: resource.to_owned() }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use prometheus_client::encoding::text::encode;
    use serde_json::json;

    #[test]
    fn each_read_of_an_odd_object_counts() {
        let (metrics, mut registry, mut text) =
            (SkippedMetrics::default(), Registry::default(), String::new());
        metrics.register(&mut registry);
        let reader = Reader::of("guest", metrics);
        for _ in 0..2 {
            let odd: Readable<Service> =
                serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": 7})).unwrap();
            assert!(reader.read(odd).is_err());
        }
        encode(&mut text, &registry).unwrap();
        let line = r#"kubevirt_ccm_unreadable_objects_total{cluster="guest",resource="services"} 2"#;
        assert!(text.contains(line), "{text}");
    }
}
