//! The well-known labels for the topology and the type of a machine, and their older names.

/// Zone (Kubernetes well-known labels).
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Region.
pub const REGION_LABEL: &str = "topology.kubernetes.io/region";
/// Instance type.
pub const TYPE_LABEL: &str = "node.kubernetes.io/instance-type";
/// The older names of the three, each with its current one: the framework writes both.
pub const BETA_LABELS: [(&str, &str); 3] = [
    ("failure-domain.beta.kubernetes.io/zone", ZONE_LABEL),
    ("failure-domain.beta.kubernetes.io/region", REGION_LABEL),
    ("beta.kubernetes.io/instance-type", TYPE_LABEL),
];
