//! Which of the guest's VMs can have a load balancer's traffic, and where each is reached. Pure.
//!
//! A guest says of its Nodes which VMs they are. Several guests can share an infra namespace, so a VM whose label names another
//! cluster, or whose system UUID is not the Node's, is not believed to be this guest's; and an address counts only when the VM's
//! own status shows it, never because a Node says so.

use crate::{
    cluster_name::ClusterName,
    guest::nodes::{Claims, GuestNode, INTERNAL_IP},
    infra::machines::{
        Phase, Vmi,
        index::{Seen, Snapshot},
    },
    nodes::{
        address::AddressPolicy,
        backends::exclusion_by,
        recognise::{Identity, doubt, identify},
    },
    wire::{endpoint_slice::Conditions, ip_family::Family},
};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A Node of the guest, as far as load balancers go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it says about itself.
    pub claims: Claims,
    /// Its addresses, what kubelet was given first.
    pub addresses: Vec<IpAddr>,
    /// Whether load balancers leave it out.
    pub excluded: bool,
}

/// A VM that can have traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Names of the guest's Nodes that it is: one, but for left-overs.
    pub nodes: Vec<String>,
    /// Name of VM and VMI.
    pub vm: String,
    /// UID of the VMI.
    pub uid: String,
    /// The infra node that it runs on; during a live migration the source.
    pub host: Option<String>,
    /// What the VM can do.
    pub conditions: Conditions,
    /// Its addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Whether its status shows all addresses that it has: without the guest agent some may be missing for a while.
    pub shows_all: bool,
}

impl From<&GuestNode> for Member {
    fn from(node: &GuestNode) -> Self {
        let internal = node.addresses.iter().filter(|address| address.kind == INTERNAL_IP);
        let internal = internal.filter_map(|address| address.address.parse().ok());
        Self {
            claims: node.claims.clone(),
            addresses: node.provided.iter().copied().chain(internal).collect(),
            excluded: exclusion_by(node.deleting, Some(&node.labels), &node.taints).is_some()
                // Nothing serves node ports there yet.
                || node.is_uninitialized(),
        }
    }
}

impl Backend {
    /// Its address of this family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}

/// The VMs of the guest `cluster` that can have traffic, by name; `None` = VMs were not read, so nothing is known.
pub fn backends<'a>(
    members: impl IntoIterator<Item = &'a Member>,
    seen: &Snapshot,
    cluster: &ClusterName,
    policy: &AddressPolicy,
) -> Option<Vec<Backend>> {
    let known = seen.known();
    known.vmis?;
    let mut backends: BTreeMap<String, Backend> = BTreeMap::new();
    for member in members.into_iter().filter(|member| !member.excluded) {
        let Identity::Vm { id, .. } = identify(&member.claims, known) else { continue };
        let Seen::Present(vmi) = seen.vmi(id.vm()) else { continue };
        if doubt(&vmi, &member.claims, cluster).is_some() {
            continue;
        }
        let backend = backends.entry(vmi.name.clone()).or_insert_with(|| backend(&vmi, member, policy));
        backend.nodes.push(member.claims.name.clone());
    }
    Some(backends.into_values().collect())
}

fn backend(vmi: &Vmi, member: &Member, policy: &AddressPolicy) -> Backend {
    let serving = vmi.phase == Phase::Running && !vmi.conditions.paused;
    let ended = matches!(vmi.phase, Phase::Succeeded | Phase::Failed);
    Backend {
        nodes: Vec::new(),
        vm: vmi.name.clone(),
        uid: vmi.uid.clone(),
        host: vmi.host.clone(),
        conditions: Conditions {
            ready: serving && vmi.conditions.ready && !vmi.deleting,
            serving,
            terminating: vmi.deleting || ended,
        },
        addresses: policy.shown(vmi, &member.addresses),
        shows_all: vmi.agent_connected,
    }
}

#[cfg(test)]
mod tests;
