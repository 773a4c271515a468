//! What a Node lacks of the properties that its VM shows. Pure. After its plan was carried out, it plans nothing.
//!
//! A Node with the uninitialized taint is initialised as soon as its VM has a VMI: one write sets providerID and labels
//! and removes the taint. A Node with a providerID of ours is kept up to date afterwards. Every other Node belongs to
//! another program.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;
use kubevirt::provider_id::{Claimed, ProviderId};

use crate::{
    guest::nodes::{GuestNode, NodeAddress, UNINITIALIZED_TAINT},
    infra::{hosts::Host, machines::Vmi},
    nodes::{
        address::{AddressPolicy, addresses},
        place,
    },
};

/// The VM that a Node is.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// Its id.
    pub id: ProviderId,
    /// Its VMI. `None` if it is stopped, or was not read.
    pub vmi: Option<&'a Vmi>,
    /// The infra Node on which the VMI runs.
    pub host: Host,
    /// Whether it is proved to be the Node's VM, whatever the Node's providerID claims.
    pub is_proved: bool,
}

/// What to write. Empty = the Node is as it should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// `status.addresses`, the whole list.
    pub addresses: Option<Vec<NodeAddress>>,
    /// Metadata and spec.
    pub metadata: Option<NodeChange>,
}

/// A change of metadata and spec, in one write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeChange {
    /// `spec.providerID`, if the Node has none.
    pub provider_id: Option<String>,
    /// Labels to set. No label is ever removed.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`, the whole list without the uninitialized taint. `Some` = the write initialises the Node.
    pub taints: Option<Vec<Taint>>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it removes the uninitialized taint.
    pub fn initialises(&self) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| metadata.taints.is_some())
    }
}

/// What to write to `node`, which is the VM `found`.
pub fn plan(policy: &AddressPolicy, node: &GuestNode, found: &Found<'_>) -> Plan {
    let is_ours = match Claimed::parse(&node.claims.provider_id) {
        Claimed::Vm(id) => id == found.id,
        Claimed::Nothing => node.is_uninitialized(),
        // Another program set it, and waits for a cloud provider like us to do the rest. It stays as it is.
        Claimed::Foreign => node.is_uninitialized() && found.is_proved,
    };
    // A Node must not be opened for pods before its VM can show addresses and topology.
    if node.deleting || !is_ours || (node.is_uninitialized() && found.vmi.is_none()) {
        return Plan::default();
    }
    let wanted = addresses(policy, found.vmi, &node.provided, &node.addresses);
    Plan { addresses: (wanted != node.addresses).then_some(wanted), metadata: metadata(node, found) }
}

fn metadata(node: &GuestNode, found: &Found<'_>) -> Option<NodeChange> {
    let of_vm = found.vmi.map(|vmi| place::labels(vmi, &found.host)).unwrap_or_default();
    let mut labels: BTreeMap<String, String> =
        place::present_names(&node.labels).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    labels.extend(of_vm.into_iter().map(|(key, value)| (key.to_owned(), value)));
    labels.retain(|key, value| node.labels.get(key) != Some(value));
    let change = NodeChange {
        provider_id: node.claims.provider_id.is_empty().then(|| found.id.to_string()),
        labels,
        taints: node.is_uninitialized().then(|| node.taints_without(UNINITIALIZED_TAINT)),
    };
    (change != NodeChange::default()).then_some(change)
}

#[cfg(test)]
mod tests;
