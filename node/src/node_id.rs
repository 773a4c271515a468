//! Which VM this worker is: the guest's Node object → `<namespace>/<vm>`.
//!
//! Decides only. The caller reads the Node, so that this crate needs no API client.

use std::{collections::BTreeMap, future::Future};

use csi_call::contract::NodeId;
use kubevirt::provider_id;

use crate::error::{Error, Result};

/// Cluster API writes the namespace of the infra objects of a node here.
pub const CLUSTER_NAMESPACE: &str = "cluster.x-k8s.io/cluster-namespace";
/// Set by an operator or an installer where Cluster API is not used.
pub const INFRA_VM_NAME: &str = "csi.kubevirt.io/infra-vm-name";
/// Goes with [`INFRA_VM_NAME`].
pub const INFRA_VM_NAMESPACE: &str = "csi.kubevirt.io/infra-vm-namespace";

/// The part of this worker's Node object that names its VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeObject {
    /// `spec.providerID`.
    pub provider_id: Option<String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// Reads this worker's Node object from the guest API, until the Node names its VM; then never again.
pub trait NodeIdentitySource: Send + Sync + 'static {
    /// One read, bounded by a deadline of its own.
    fn node(
        &self,
    ) -> impl Future<Output = Result<NodeObject, Box<dyn std::error::Error + Send + Sync>>> + Send;
}

/// The node id: `<namespace>/<vm>`.
///
/// Order as kubevirt/csi-driver has it: providerID with the Cluster API annotation, else the driver's own two
/// annotations.
///
/// # Errors
/// `NotIdentified`, with what is missing.
pub fn node_id(node: &NodeObject) -> Result<String> {
    let annotation = |name: &str| node.annotations.get(name).map(String::as_str);
    let provider = node.provider_id.as_deref().and_then(|id| id.strip_prefix(provider_id::PREFIX));
    let by_provider = provider.zip(annotation(CLUSTER_NAMESPACE));
    let by_annotation = annotation(INFRA_VM_NAME).zip(annotation(INFRA_VM_NAMESPACE));
    let mut named = [by_provider, by_annotation].into_iter().flatten();
    let id = named.find_map(|(vm, namespace)| NodeId::new(namespace, vm));
    id.map(|id| id.to_string()).ok_or_else(|| {
        Error::NotIdentified(format!(
            "this Node does not say which VM it is: it needs spec.providerID {}<vm> with annotation \
             {CLUSTER_NAMESPACE}, or annotations {INFRA_VM_NAME} and {INFRA_VM_NAMESPACE}",
            provider_id::PREFIX
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const OWN: [(&str, &str); 2] = [(INFRA_VM_NAME, "own-vm"), (INFRA_VM_NAMESPACE, "own-ns")];
    const CAPI: (&str, &str) = (CLUSTER_NAMESPACE, "capi-ns");

    #[rstest]
    #[case(Some("kubevirt://vm"), &[CAPI], Some("capi-ns/vm"))]
    #[case(Some("kubevirt://vm"), &[CAPI, OWN[0], OWN[1]], Some("capi-ns/vm"))]
    #[case(Some("kubevirt://vm"), &[OWN[0], OWN[1]], Some("own-ns/own-vm"))]
    #[case(Some("aws:///i-1"), &[CAPI, OWN[0], OWN[1]], Some("own-ns/own-vm"))]
    #[case(None, &[CAPI, OWN[0], OWN[1]], Some("own-ns/own-vm"))]
    #[case(None, &[OWN[0]], None)]
    #[case(None, &[OWN[1]], None)]
    #[case(None, &[], None)]
    #[case(Some("kubevirt://vm"), &[], None)]
    #[case(Some("kubevirt://"), &[CAPI], None)]
    #[case(Some("kubevirt://ns/vm"), &[CAPI], None)]
    #[case(Some("kubevirt://vm"), &[(CLUSTER_NAMESPACE, "")], None)]
    fn the_vm_is_named_by_provider_id_or_by_annotations(
        #[case] provider_id: Option<&str>,
        #[case] annotations: &[(&str, &str)],
        #[case] id: Option<&str>,
    ) {
        let node = NodeObject {
            provider_id: provider_id.map(str::to_owned),
            annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        assert_eq!(node_id(&node).ok().as_deref(), id);
    }
}
