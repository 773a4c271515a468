//! The section `loadBalancer.limits`: how much one Service of the guest may cost the infra cluster.
//!
//! Infra allots a node port for each port, kube-proxy writes ports × source ranges rules on each infra node, and etcd keeps
//! the annotations. A guest user chooses all three.

use super::{
    ConfigError,
    section::{Section, wrong},
};

/// The full name of the section.
const NAME: &str = "loadBalancer.limits";
/// `ports` where it is absent. More than the largest load balancers in use have (ingress controllers with TCP services),
/// and 1/27 of infra's node ports, of which there are 2768 by default.
const DEFAULT_PORTS: usize = 100;
/// `sourceRanges` where it is absent. With as many ports, 10,000 rules in each infra node's kube-proxy.
const DEFAULT_SOURCE_RANGES: usize = 100;
/// `annotationBytes` where it is absent: a quarter of what the API admits (`TotalAnnotationSizeLimitB`, 256 KiB).
const DEFAULT_ANNOTATION_BYTES: usize = 64 * 1024;

/// How much one Service of the guest may ask for. `None` = as much as the API admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `ports`: entries of `spec.ports`.
    pub ports: Option<usize>,
    /// `sourceRanges`: entries of `spec.loadBalancerSourceRanges`.
    pub source_ranges: Option<usize>,
    /// `annotationBytes`: keys and values of the annotations that the policy lets through.
    pub annotation_bytes: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ports: Some(DEFAULT_PORTS),
            source_ranges: Some(DEFAULT_SOURCE_RANGES),
            annotation_bytes: Some(DEFAULT_ANNOTATION_BYTES),
        }
    }
}

/// Reads the section from `loadBalancer` and adds unknown keys to `unknown`.
pub(super) fn limits(
    load_balancer: &mut Section<'_>,
    unknown: &mut Vec<String>,
) -> Result<Limits, ConfigError> {
    let mut section = load_balancer.section_of("limits", NAME)?;
    let limits = Limits {
        ports: limit(&mut section, "ports", DEFAULT_PORTS)?,
        source_ranges: limit(&mut section, "sourceRanges", DEFAULT_SOURCE_RANGES)?,
        annotation_bytes: limit(&mut section, "annotationBytes", DEFAULT_ANNOTATION_BYTES)?,
    };
    unknown.extend(section.left());
    Ok(limits)
}

/// A limit; 0 means none.
fn limit(section: &mut Section<'_>, key: &str, default: usize) -> Result<Option<usize>, ConfigError> {
    let value = section.take(key);
    if value.is_null() {
        return Ok(Some(default));
    }
    match value.as_str().and_then(|number| number.parse().ok()) {
        Some(0) => Ok(None),
        Some(limit) => Ok(Some(limit)),
        None => Err(wrong(&section.path(key), "a whole number, 0 for no limit", &value)),
    }
}
