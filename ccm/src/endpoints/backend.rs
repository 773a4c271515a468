//! Which of the guest's VMs can take a load balancer's traffic, and at which address each is reached. Pure.
//!
//! A guest's Nodes claim which VMs they are. Several guests can share an infra namespace, so the CCM leaves out a VM
//! whose label names another cluster, or whose system UUID is not the Node's. It uses an address only if the VM's
//! status shows it and the guest could not choose it, never because a Node claims it.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use crate::{
    cluster_name::ClusterName,
    guest::nodes::{Claims, GuestNode, INTERNAL_IP},
    infra::machines::{Vmi, index::Snapshot},
    nodes::{
        address::AddressPolicy,
        backends::exclusion,
        recognise::{Machine, Recognition, Unlabelled, backend_doubt, identify, prove},
    },
    wire::{endpoint_slice::Conditions, ip_family::Family},
};
use std::collections::BTreeMap;
use std::net::IpAddr;

use kubevirt::{Phase, Seen};

/// A Node of the guest, with the fields that load balancing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it claims about its VM.
    pub claims: Claims,
    /// Its addresses, those that kubelet has from `--node-ip` first.
    pub addresses: Vec<IpAddr>,
    /// Whether load balancers leave it out.
    pub excluded: bool,
}

/// A VM that can take traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Names of the guest's Nodes that are this VM. There is one, unless an old Node object is left.
    pub nodes: Vec<String>,
    /// Name of VM and VMI.
    pub vm: String,
    /// UID of the VMI.
    pub uid: String,
    /// The infra Node on which it runs. During a live migration this is the source.
    pub host: Option<String>,
    /// The conditions of its endpoints.
    pub conditions: Conditions,
    /// Its addresses, at most one per family; empty if they are not proved.
    pub addresses: Vec<IpAddr>,
    /// Whether nothing proves that the addresses that it shows are its own.
    pub is_unproved: bool,
    /// Whether load balancers leave it out: all Nodes that are this VM are excluded.
    pub excluded: bool,
    /// Whether its status shows all its addresses: without the guest agent some can be missing for a while.
    pub shows_all: bool,
}

impl From<&GuestNode> for Member {
    fn from(node: &GuestNode) -> Self {
        let internal = node.addresses.iter().filter(|address| address.kind == INTERNAL_IP);
        let internal = internal.filter_map(|address| address.address.parse().ok());
        Self {
            claims: node.claims.clone(),
            addresses: node.provided.iter().copied().chain(internal).collect(),
            excluded: exclusion(node).is_some(),
        }
    }
}

impl Backend {
    /// Its address of this family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}

/// The VMs of the guest `cluster` that can take traffic, by name, also those that load balancers leave out. `None` = VMs were
/// not read, so nothing is known.
pub fn backends<'a>(
    members: impl IntoIterator<Item = &'a Member>,
    seen: &Snapshot,
    cluster: &ClusterName,
    unlabelled: Unlabelled,
    policy: &AddressPolicy,
) -> Option<Vec<Backend>> {
    let known = seen.known();
    known.vmis?;
    let mut backends: BTreeMap<String, Backend> = BTreeMap::new();
    for member in members {
        let id = match identify(&member.claims, known) {
            Recognition::Vm { id, .. } => Some(id),
            Recognition::Foreign => prove(&member.claims, known),
            _ => None,
        };
        let Some(id) = id else { continue };
        let Seen::Present(vmi) = seen.vmi(id.vm()) else { continue };
        let vm = seen.vm(id.vm());
        if backend_doubt(Machine::of(&vm, &vmi), &member.claims, cluster, unlabelled).is_some() {
            continue;
        }
        let backend = backends.entry(vmi.name.clone()).or_insert_with(|| backend(&vmi, member, policy));
        if backend.excluded && !member.excluded {
            // Of an old Node object and the present one, the latter counts.
            *backend = self::backend(&vmi, member, policy);
        }
        if backend.excluded == member.excluded {
            backend.nodes.push(member.claims.name.clone());
        }
    }
    Some(backends.into_values().collect())
}

fn backend(vmi: &Vmi, member: &Member, policy: &AddressPolicy) -> Backend {
    let serving = vmi.phase == Phase::Running && !vmi.conditions.paused;
    let ended = matches!(vmi.phase, Phase::Succeeded | Phase::Failed);
    let proved = policy.proved(vmi, &member.addresses);
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
        is_unproved: proved.is_none(),
        excluded: member.excluded,
        addresses: proved.unwrap_or_default(),
        shows_all: vmi.agent_connected,
    }
}

#[cfg(test)]
mod tests;
