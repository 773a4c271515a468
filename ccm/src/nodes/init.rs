//! What a Node lacks of what its VM shows. Pure; after the plan is carried out there is nothing to plan.
//!
//! A Node with the uninitialized taint is initialised as soon as its VM runs an instance: providerID, labels and the taint go in
//! one write. A Node that carries a providerID of ours is kept true afterwards. Every other Node is somebody else's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;

use crate::{
    guest::nodes::{GuestNode, NodeAddress, UNINITIALIZED_TAINT},
    infra::{hosts::Host, machines::Vmi},
    nodes::{
        address::{AddressPolicy, addresses},
        place,
    },
    provider_id::{Claimed, ProviderId},
};

/// The VM that a Node is.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// Its id.
    pub id: ProviderId,
    /// Its instance; `None` where it is stopped, or was not read.
    pub vmi: Option<&'a Vmi>,
    /// Where the instance runs.
    pub host: Host,
}

/// What is to be written. Empty = the Node is as it should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// `status.addresses`, whole.
    pub addresses: Option<Vec<NodeAddress>>,
    /// Metadata and spec.
    pub identity: Option<Identity>,
}

/// A change of metadata and spec, which goes in one write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    /// `spec.providerID`, where there is none.
    pub provider_id: Option<String>,
    /// Labels to set; none is ever removed.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`, whole: without the uninitialized taint. `Some` = this initialises the Node.
    pub taints: Option<Vec<Taint>>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it removes the uninitialized taint.
    pub fn initialises(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.taints.is_some())
    }
}

/// What is to be written to `node`, which is the VM `found`.
pub fn plan(policy: &AddressPolicy, node: &GuestNode, found: &Found<'_>) -> Plan {
    let is_ours = match Claimed::parse(&node.claims.provider_id) {
        Claimed::Vm(id) => id == found.id,
        Claimed::Nothing => node.is_uninitialized(),
        Claimed::Foreign => false,
    };
    // A Node must not be opened for pods before its VM can tell addresses and place.
    if node.deleting || !is_ours || (node.is_uninitialized() && found.vmi.is_none()) {
        return Plan::default();
    }
    let wanted = addresses(policy, found.vmi, &node.provided, &node.addresses);
    Plan { addresses: (wanted != node.addresses).then_some(wanted), identity: identity(node, found) }
}

fn identity(node: &GuestNode, found: &Found<'_>) -> Option<Identity> {
    let of_vm = found.vmi.map(|vmi| place::labels(vmi, &found.host)).unwrap_or_default();
    let mut labels: BTreeMap<String, String> =
        place::present_names(&node.labels).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    labels.extend(of_vm.into_iter().map(|(key, value)| (key.to_owned(), value)));
    labels.retain(|key, value| node.labels.get(key) != Some(value));
    let change = Identity {
        provider_id: node.claims.provider_id.is_empty().then(|| found.id.to_string()),
        labels,
        taints: node.is_uninitialized().then(|| node.taints_without(UNINITIALIZED_TAINT)),
    };
    (change != Identity::default()).then_some(change)
}

#[cfg(test)]
mod tests;
