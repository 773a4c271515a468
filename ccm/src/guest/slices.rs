//! An `EndpointSlice` of the guest, with the fields that are read.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use kube::api::ObjectMeta;
use kubevirt::null_as_default;
use serde::Deserialize;

use crate::wire::{
    endpoint_slice::{Conditions, WireConditions},
    ip_family::Family,
};

/// An `EndpointSlice` of the guest: where its endpoints are, and their conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSlice {
    /// Its family; `None` for a slice of host names, for example.
    pub family: Option<Family>,
    /// The endpoints by Node.
    pub nodes: BTreeMap<String, Conditions>,
    /// The endpoints that name no Node, such as those of a Gateway, which every Node serves.
    pub anywhere: Option<Conditions>,
}

/// The fields that are read.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "EndpointSlice")]
#[serde(rename_all = "camelCase")]
pub struct WireGuestSlice {
    /// Its name, and the label with the name of its Service.
    pub metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    #[serde(default, deserialize_with = "null_as_default")]
    endpoints: Vec<WireGuestEndpoint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireGuestEndpoint {
    node_name: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    conditions: WireConditions,
}

impl From<&WireGuestSlice> for GuestSlice {
    fn from(wire: &WireGuestSlice) -> Self {
        let family = Family::parse(&wire.address_type);
        let mut slice = Self { family, nodes: BTreeMap::new(), anywhere: None };
        for endpoint in &wire.endpoints {
            let conditions = Conditions::from(&endpoint.conditions);
            match endpoint.node_name.as_ref().filter(|node| !node.is_empty()) {
                Some(node) => {
                    let known = slice.nodes.entry(node.clone()).or_default();
                    *known = known.or(conditions);
                }
                None => slice.anywhere = Some(slice.anywhere.unwrap_or_default().or(conditions)),
            }
        }
        slice
    }
}
