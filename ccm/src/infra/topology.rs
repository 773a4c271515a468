//! Zone and region of an infra Node, by its labels.

use std::collections::BTreeMap;

use crate::wire::topology_labels::{BETA_LABELS, REGION_LABEL, ZONE_LABEL};

/// Zone and region of an infra node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Zone.
    pub zone: Option<String>,
    /// Region.
    pub region: Option<String>,
}

impl Topology {
    /// Reads the labels of an infra Node. An older name counts where the current one is missing.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Self {
        let of = |wanted: &str| {
            let older = BETA_LABELS.iter().find(|(_, stable)| *stable == wanted).map(|(beta, _)| *beta);
            labels.get(wanted).or_else(|| labels.get(older?)).filter(|value| !value.is_empty()).cloned()
        };
        Self { zone: of(ZONE_LABEL), region: of(REGION_LABEL) }
    }
}
