//! Labels of a Node for the topology and the type of its VM: zone, region, instance type. Pure.
//!
//! Zone and region are those of the infra Node on which the VM runs. If the CCM may not read infra Nodes, a label or
//! annotation of the VMI itself counts, which is as reliable as its author. A label whose value is not known stays as
//! it is.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use crate::{
    infra::{hosts::Host, machines::Vmi},
    wire::topology_labels::{BETA_LABELS, REGION_LABEL, TYPE_LABEL, ZONE_LABEL},
};
use std::collections::BTreeMap;

/// Longest value of a label.
const MAX_VALUE: usize = 63;

/// The labels that a Node should have because of its VM, under current and older names. None where the value is not
/// known.
pub fn labels(vmi: &Vmi, host: &Host) -> BTreeMap<&'static str, String> {
    let (zone, region) = match host {
        Host::At(place) => (&place.zone, &place.region),
        Host::Forbidden => (&vmi.zone, &vmi.region),
        Host::Unknown => (&None, &None),
    };
    let stable = [(ZONE_LABEL, zone), (REGION_LABEL, region), (TYPE_LABEL, &vmi.instance_type)];
    let mut labels = BTreeMap::new();
    for (label, value) in stable {
        let Some(value) = value.as_ref().filter(|value| is_label_value(value)) else { continue };
        let older = BETA_LABELS.iter().filter(|(_, stable)| *stable == label).map(|(beta, _)| *beta);
        labels.extend(older.chain([label]).map(|name| (name, value.clone())));
    }
    labels
}

/// The current names that follow from older ones which another program wrote: the framework takes the older one as the
/// source.
pub fn present_names(labels: &BTreeMap<String, String>) -> BTreeMap<&'static str, String> {
    let older = BETA_LABELS.iter().filter_map(|(beta, stable)| Some((*stable, labels.get(*beta)?.clone())));
    older.collect()
}

/// Whether a value is a valid label value: the name of an instance type, which is an object's name, can be longer.
fn is_label_value(value: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    value.len() <= MAX_VALUE
        && ends(value.chars().next())
        && ends(value.chars().last())
        && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::topology::Topology;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn vmi() -> Vmi {
        let own = |text: &str| Some(text.to_owned());
        Vmi { instance_type: own("u1.large"), zone: own("own-zone"), region: None, ..Vmi::default() }
    }

    fn shown(vmi: &Vmi, host: &Host) -> Vec<(&'static str, String)> {
        labels(vmi, host).into_iter().collect()
    }

    #[test]
    fn present_and_older_names_are_written() {
        let host = Host::At(Topology { zone: Some("z1".into()), region: Some("r1".into()) });
        let expected = [
            ("beta.kubernetes.io/instance-type", "u1.large"),
            ("failure-domain.beta.kubernetes.io/region", "r1"),
            ("failure-domain.beta.kubernetes.io/zone", "z1"),
            ("node.kubernetes.io/instance-type", "u1.large"),
            ("topology.kubernetes.io/region", "r1"),
            ("topology.kubernetes.io/zone", "z1"),
        ];
        assert_eq!(shown(&vmi(), &host), expected.map(|(key, value)| (key, value.to_owned())));
    }

    #[test]
    fn the_vm_speaks_for_itself_only_where_infra_nodes_may_not_be_read() {
        let zone = |host: &Host| labels(&vmi(), host).remove(ZONE_LABEL);
        assert_eq!(zone(&Host::Forbidden).as_deref(), Some("own-zone"));
        assert_eq!(zone(&Host::Unknown), None);
        assert_eq!(zone(&Host::At(Topology::default())), None);
    }

    #[test]
    fn what_is_no_label_value_is_left_out() {
        for bad in ["a".repeat(MAX_VALUE + 1), "-a".into(), "a b".into(), String::new()] {
            let vmi = Vmi { instance_type: Some(bad), ..Vmi::default() };
            assert!(labels(&vmi, &Host::Unknown).is_empty());
        }
    }

    #[test]
    fn a_place_is_read_by_present_names_first() {
        let older = ("failure-domain.beta.kubernetes.io/zone", "old");
        assert_eq!(Topology::of_labels(&map(&[older])).zone.as_deref(), Some("old"));
        assert_eq!(Topology::of_labels(&map(&[older, (ZONE_LABEL, "z1")])).zone.as_deref(), Some("z1"));
        assert_eq!(Topology::of_labels(&map(&[(ZONE_LABEL, "")])), Topology::default());
    }
}
