//! Node ids, `<namespace>/<vm>`, and the VMs of this guest that they name.
//!
//! The namespace in a node id is not read, as kubevirt/csi-driver does not: the node role takes it from an annotation
//! that Cluster API writes for its own objects, which may be in another namespace than the VMs. All VMs of a guest are in
//! this controller's infra namespace, and it calls no other.

use infra::{Infra, ObjectName};

use crate::{error::Error, request::NodeId};

/// The VM of a node id, in the infra namespace.
pub(crate) fn vm_of_node(node: &NodeId) -> Result<&ObjectName, Error> {
    match node {
        NodeId::Vm(name) => Ok(name),
        NodeId::Unknown(id) => Err(Error::NoSuchNode(id.clone())),
    }
}

/// The node id of a VM.
pub(crate) fn node_id(infra: &Infra, vm: &ObjectName) -> String {
    format!("{}/{vm}", infra.namespace())
}

/// The node ids of `vms`, separated by commas, for an error text.
pub(crate) fn node_ids(infra: &Infra, vms: &[ObjectName]) -> String {
    vms.iter().map(|vm| node_id(infra, vm)).collect::<Vec<_>>().join(", ")
}
