//! Node ids, `<namespace>/<vm>`, and the VMs of this guest that they name.

use infra::{Infra, ObjectName};

use crate::{error::Error, request::NodeId};

/// The VM of a node id; the id of another namespace is refused.
pub(crate) fn vm_of_node(infra: &Infra, node: &NodeId) -> Result<ObjectName, Error> {
    match node {
        NodeId::Unknown(id) => Err(Error::NoSuchNode(id.clone())),
        NodeId::Vm { namespace, name } if namespace == infra.namespace() => Ok(name.clone()),
        NodeId::Vm { namespace, name } => Err(Error::ForeignNode {
            node: name.clone(),
            namespace: namespace.clone(),
            ours: infra.namespace().to_owned(),
        }),
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
