//! Carries out the plan for a Node whose VM is stopped or gone. The plan is made from the index. Before a Node is
//! deleted, the infra cluster is read again, and the plan made again from the answer.

pub mod plan;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kubevirt::{Seen, provider_id::ProviderId};

use crate::{
    access::chain,
    call::CallError,
    guest::nodes::GuestNode,
    infra::machines::{Vm, Vmi, index::Snapshot, reads::InfraReads},
    nodes::{
        NodeWrites,
        announcer::{Announcement, Announcer, LIFECYCLE_SOURCE},
        lifecycle::plan::{NodeVm, Step, plan},
        metrics::NodeMetrics,
        recognise::{Recognition, VmState, identify, vm_state},
    },
};

/// The lifecycle of the guest's Nodes.
pub struct Lifecycle {
    reads: InfraReads,
    writes: NodeWrites,
    announcer: Announcer,
    metrics: NodeMetrics,
}

impl Lifecycle {
    /// The lifecycle of the Nodes of `guest`, with VMs from `reads`.
    pub fn new(guest: &Client, reads: InfraReads, metrics: NodeMetrics) -> Self {
        let (writes, announcer) = (NodeWrites::new(guest.clone()), Announcer::new(guest.clone()));
        Self { reads, writes, announcer, metrics }
    }

    /// Carries out the plan for one Node. True = the Node is deleted.
    pub async fn sync(
        &self,
        node: &GuestNode,
        recognised: &Recognition,
        seen: &Snapshot,
    ) -> Result<bool, CallError> {
        match plan(node, node_vm(node, recognised, seen)) {
            Step::Taint(taints) => {
                let name = &node.claims.name;
                tracing::info!(
                    node = name,
                    taints = taints.len(),
                    "the shutdown taint follows the VM's state"
                );
                self.writes.taints(node, &taints).await.map(|()| false)
            }
            Step::Delete if self.is_proved(node, recognised).await? => self.delete(node).await.map(|()| true),
            Step::Leave | Step::Delete => Ok(false),
        }
    }

    /// Whether live reads lead to the same plan. If a read fails, its error ends this.
    async fn is_proved(&self, node: &GuestNode, recognised: &Recognition) -> Result<bool, CallError> {
        let node_vm = match recognised {
            Recognition::Vm { id, .. } => NodeVm::Vm(self.vm_state(id).await?),
            Recognition::NoVm => {
                let everything = self.reads.everything().await?;
                node_vm(node, &identify(&node.claims, everything.known()), &everything)
            }
            Recognition::Foreign | Recognition::Ambiguous { .. } | Recognition::Unidentified => {
                NodeVm::Undecided
            }
        };
        Ok(plan(node, node_vm) == Step::Delete)
    }

    /// The VMI is read first: a VM creates its VMI, so if one is created between the two reads, its VM shows that.
    async fn vm_state(&self, id: &ProviderId) -> Result<VmState, CallError> {
        let vmi = self.reads.get::<Vmi>(id.vm()).await?.map(Arc::new);
        let vm = self.reads.get::<Vm>(id.vm()).await?.map(Arc::new);
        Ok(vm_state(&vm.map_or(Seen::Absent, Seen::Present), &vmi.map_or(Seen::Absent, Seen::Present)))
    }

    async fn delete(&self, node: &GuestNode) -> Result<(), CallError> {
        let name = &node.claims.name;
        let said =
            |warning, reason, message| Announcement { source: LIFECYCLE_SOURCE, warning, reason, message };
        let message = format!("Deleting node {name} because it does not exist in the cloud provider");
        self.announcer.announce(node, &said(false, "DeletingNode", message)).await;
        match self.writes.delete(node).await {
            Ok(()) => {
                self.metrics.deleted();
                tracing::info!(node = name, provider_id = node.claims.provider_id, "deleted: its VM is gone");
                Ok(())
            }
            Err(error) if error.proves_absence_of::<Node>(name) => Ok(()),
            Err(error) => {
                if !error.is_conflict() {
                    let message = format!("Unable to delete node {name}: {}", chain(&error));
                    self.announcer.announce(node, &said(true, "DeletingNodeFailed", message)).await;
                }
                Err(error)
            }
        }
    }
}

/// What is known of the Node's VM. A Node without the uninitialized taint and without a providerID is not ours to
/// judge, whatever its name is.
fn node_vm(node: &GuestNode, recognised: &Recognition, seen: &Snapshot) -> NodeVm {
    match recognised {
        Recognition::Vm { .. } if node.claims.provider_id.is_empty() && !node.is_uninitialized() => {
            NodeVm::Undecided
        }
        Recognition::Vm { id, .. } => NodeVm::Vm(vm_state(&seen.vm(id.vm()), &seen.vmi(id.vm()))),
        Recognition::NoVm => NodeVm::NoVm,
        Recognition::Foreign | Recognition::Ambiguous { .. } | Recognition::Unidentified => NodeVm::Undecided,
    }
}

#[cfg(test)]
mod tests;
