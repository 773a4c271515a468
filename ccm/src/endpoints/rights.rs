//! Which of the rights that the endpoint controller uses it has. It asks the API servers instead of trying: a Service
//! must not lose its selector before it is known that its endpoints can be written.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};

use crate::{
    access::{GuestCluster, InfraCluster},
    call::{CallError, call},
};

/// API group of EndpointSlices.
const DISCOVERY: &str = "discovery.k8s.io";
/// The verbs that the CCM uses on slices of infra.
const INFRA_VERBS: [&str; 6] = ["get", "list", "watch", "create", "update", "delete"];
/// The verbs that the CCM uses on objects of the guest.
const GUEST_VERBS: [&str; 2] = ["list", "watch"];

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
    let slices = ("endpointslices", DISCOVERY);
    for verb in INFRA_VERBS {
        if !may(&infra.client, Some(&infra.namespace), slices, verb).await? {
            missing.push(format!("{verb} endpointslices in the infra namespace"));
        }
    }
    for (resource, group) in [slices, ("nodes", "")] {
        for verb in GUEST_VERBS {
            if !may(&guest.client, None, (resource, group), verb).await? {
                missing.push(format!("{verb} {resource} in the guest"));
            }
        }
    }
    let may_convert = may(&infra.client, Some(&infra.namespace), ("endpoints", ""), "delete").await?;
    Ok(Rights { missing, may_convert })
}

/// Whether the CCM may list slices of infra.
pub(crate) async fn may_look(infra: &InfraCluster) -> Result<bool, CallError> {
    may(&infra.client, Some(&infra.namespace), ("endpointslices", DISCOVERY), "list").await
}

async fn may(
    client: &kube::Client,
    namespace: Option<&str>,
    (resource, group): (&str, &str),
    verb: &str,
) -> Result<bool, CallError> {
    let attributes = ResourceAttributes {
        namespace: namespace.map(str::to_owned),
        verb: Some(verb.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec =
        SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let params = PostParams::default();
    let asked = call(|| format!("ask for the right to {verb} {resource}"), api.create(&params, &review));
    Ok(asked.await?.status.is_some_and(|status| status.allowed))
}
