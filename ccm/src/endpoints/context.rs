//! What the endpoint controller works with.

use std::sync::Arc;

use kube::runtime::reflector::ObjectRef;

use crate::{
    access::{GuestCluster, InfraCluster},
    announcer::{EventSink, Kind},
    endpoints::metrics::EndpointMetrics,
    guest::{nodes::watch::NodeWatch, services::GuestService},
    guest_names::GuestLabels,
    handover::{EndpointChoice, Gate, Work},
    infra::machines::{feed::Feed, index::MachineIndex},
    load_balancer::{announce::reference, index::Index as ServiceIndex},
    nodes::{address::AddressPolicy, recognise::Unlabelled},
    queue_metrics::Queue,
    repairs::Contested,
};

/// What the endpoint controller needs.
#[derive(Clone)]
pub struct Context {
    /// The cluster with the endpoints.
    pub guest: GuestCluster,
    /// The cluster with the load balancers.
    pub infra: InfraCluster,
    /// What identifies the guest in infra.
    pub identity: GuestLabels,
    /// Which Services' endpoints are ours to write.
    pub choice: EndpointChoice,
    /// Whether VMs without a label get traffic.
    pub unlabelled: Unlabelled,
    /// Which of a VM's addresses its Node gets.
    pub addresses: AddressPolicy,
    /// The Services of both clusters.
    pub services: ServiceIndex,
    /// The guest's Nodes.
    pub nodes: NodeWatch,
    /// Where it reports its progress.
    pub gate: Arc<Gate>,
    /// The VMs.
    pub index: Arc<MachineIndex>,
    /// Keeps `index` up to date.
    pub feed: Feed,
    /// The metrics of endpoints.
    pub metrics: EndpointMetrics,
    /// Repairs of what another program writes too.
    pub contested: Contested,
    /// Takes events on the guest's Services.
    pub events: EventSink,
    /// The metrics of its queue.
    pub queue: Queue,
}

impl Context {
    /// Reports to the service controller whether slices can be written.
    pub(crate) fn set(&self, work: Work) {
        if self.gate.set(work) {
            self.services.enqueue_all();
        }
    }

    /// Reports to the service controller whether a Service can do without its selector.
    pub(crate) fn wrote(&self, guest: &GuestService, is_written: bool) {
        if self.gate.wrote(guest.uid(), is_written) {
            self.services.enqueue(ObjectRef::from_obj(guest));
        }
    }

    /// Reports to the guest's users that `writer` writes a slice of the Service too: it is overruled, at ever longer
    /// intervals.
    pub(crate) fn contested(&self, guest: &GuestService, slice: &str, writer: Option<&str>) {
        let writer = writer.unwrap_or("a program that managedFields does not name");
        let note = format!(
            "{writer} changes the endpoint slice {slice} of this service in the infra cluster; it is restored, at ever longer \
             intervals. The operator of the infra cluster has to keep that program from it"
        );
        tracing::warn!(service = guest.metadata.name, namespace = guest.metadata.namespace, "{note}");
        self.events.emit(&reference(guest), Kind::Warning, "LoadBalancerContested", &note);
    }

    /// Reports to the service controller, and the first time to the guest's users, that a Service needs its selector
    /// because nothing proves the addresses of this VM. `None` = all are proved.
    pub(crate) fn unproved(&self, guest: &GuestService, vm: Option<&str>) {
        if !self.gate.unproved(guest.uid(), vm.is_some()) {
            return;
        }
        if let Some(vm) = vm {
            let note = format!(
                "no endpoints are written, so traffic goes to all VMs of the guest (by selector): the addresses of VM {vm} are \
                 what its guest agent reports, and nothing proves that they are its own. The operator of the infra cluster has \
                 to list the workers' networks in instancesV2.nodeAddresses.within of the cloud-config, or to give the VMs the \
                 binding masquerade"
            );
            tracing::warn!(service = guest.metadata.name, namespace = guest.metadata.namespace, "{note}");
            self.events.emit(&reference(guest), Kind::Warning, "EndpointAddressesUnproved", &note);
        }
        self.services.enqueue(ObjectRef::from_obj(guest));
    }
}
