//! Which of the rights that the endpoint controller uses it has. It asks the API servers instead of trying: a Service
//! must not lose its selector before it is known that its endpoints can be written.

use std::time::Duration;

use cluster::Right;
use kube::Client;

use crate::{
    access::{GuestCluster, InfraCluster},
    call::{CallError, call},
};

/// Pause before the CCM asks again for a missing right: it may be granted at any time, and an API server that starts
/// refuses for a moment what it allows.
pub(crate) const ASK_AGAIN: Duration = Duration::from_mins(1);
/// API group of EndpointSlices.
const DISCOVERY: &str = "discovery.k8s.io";
const LIST_SLICES: Right = slices("list");
/// What the CCM does with slices of infra.
const IN_INFRA: [Right; 6] =
    [slices("get"), LIST_SLICES, slices("watch"), slices("create"), slices("update"), slices("delete")];
/// What the CCM reads of the guest.
const IN_GUEST: [Right; 4] = [LIST_SLICES, slices("watch"), nodes("list"), nodes("watch")];
/// Takes Services over from the selector.
const DELETE_ENDPOINTS: Right =
    Right { group: "", resource: "endpoints", verb: "delete", purpose: "taking over from the selector" };

const fn slices(verb: &'static str) -> Right {
    Right { group: DISCOVERY, resource: "endpointslices", verb, purpose: "writing endpoints" }
}

const fn nodes(verb: &'static str) -> Right {
    Right { group: "", resource: "nodes", verb, purpose: "writing endpoints" }
}

/// The rights that the controller has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rights {
    /// The missing rights, as text; empty = slices can be written.
    pub missing: Vec<String>,
    /// Whether the CCM may delete Endpoints in infra, so that it can take Services over from the selector.
    pub may_convert: bool,
}

/// Asks both clusters.
pub(crate) async fn ask(guest: &GuestCluster, infra: &InfraCluster) -> Result<Rights, CallError> {
    let mut missing = Vec::new();
    let namespace = Some(infra.namespace.as_str());
    for right in IN_INFRA {
        if !may(&infra.client, namespace, right).await? {
            missing.push(format!("{right} in the infra namespace"));
        }
    }
    for right in IN_GUEST {
        if !may(&guest.client, None, right).await? {
            missing.push(format!("{right} in the guest"));
        }
    }
    Ok(Rights { missing, may_convert: may_convert(infra).await? })
}

/// Whether the CCM may delete Endpoints of infra.
pub(crate) async fn may_convert(infra: &InfraCluster) -> Result<bool, CallError> {
    may(&infra.client, Some(&infra.namespace), DELETE_ENDPOINTS).await
}

/// Whether the CCM may list slices of infra.
pub(crate) async fn may_look(infra: &InfraCluster) -> Result<bool, CallError> {
    may(&infra.client, Some(&infra.namespace), LIST_SLICES).await
}

async fn may(client: &Client, namespace: Option<&str>, right: Right) -> Result<bool, CallError> {
    let asked = cluster::is_granted(client, namespace, &right);
    call(|| format!("ask for the right to {right}"), asked).await
}
