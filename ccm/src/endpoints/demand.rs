//! Which endpoints an infra Service should have: the guest's own EndpointSlices laid over its VMs. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::backend::{Backend, Conditions};
use super::slice::{Endpoint, WireConditions};
use crate::address::Family;
use crate::machine::wire::null_as_default;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use kube::api::ObjectMeta;

/// Which VMs get the traffic of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Those in which an endpoint of it is.
    WithEndpoint,
    /// All: any Node forwards with policy Cluster, and it says nothing of where endpoints are.
    Everywhere,
}

/// An `EndpointSlice` of the guest: where endpoints are, and what they can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSlice {
    family: Option<Family>,
    /// By Node.
    nodes: BTreeMap<String, Conditions>,
    /// Those that don't say on which Node they are; a Gateway's, for example, that every Node serves.
    anywhere: Option<Conditions>,
}

/// What is read of it.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "EndpointSlice")]
#[serde(rename_all = "camelCase")]
pub struct WireGuestSlice {
    /// Its name and its Service's.
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

/// What is wanted of a Service.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Which VMs.
    pub spread: Spread,
    /// Whether the guest's Service has a selector; of one that has none and no slices nothing is known.
    pub has_selector: bool,
    /// The guest's slices of it.
    pub slices: &'a [&'a GuestSlice],
}

/// The endpoints of one family, by VM. `kept` is the address that an instance (name, UID) was last reached at: it is used while
/// the instance shows none because its guest agent is silent.
pub fn demand(
    wanted: &Wanted<'_>,
    family: Family,
    backends: &[Backend],
    kept: &dyn Fn(&str, &str) -> Option<IpAddr>,
) -> Vec<Endpoint> {
    let nothing_said = !wanted.has_selector && wanted.slices.is_empty();
    let everywhere = wanted.spread == Spread::Everywhere || nothing_said;
    let slices: Vec<_> = wanted.slices.iter().filter(|slice| slice.family == Some(family)).collect();
    let anywhere = slices.iter().filter_map(|slice| slice.anywhere).reduce(Conditions::or);
    let on = |backend: &Backend| {
        let here = slices.iter().flat_map(|slice| backend.nodes.iter().filter_map(|it| slice.nodes.get(it)));
        here.copied().chain(anywhere).reduce(Conditions::or)
    };
    let endpoint = |backend: &Backend| {
        let conditions = if everywhere { Conditions::READY } else { on(backend)? };
        let last = || kept(&backend.vm, &backend.uid).filter(|_| !backend.shows_all);
        Some(Endpoint {
            vm: backend.vm.clone(),
            uid: backend.uid.clone(),
            address: backend.address(family).or_else(last)?,
            host: backend.host.clone(),
            conditions: conditions.and(backend.conditions),
        })
    };
    backends.iter().filter_map(endpoint).collect()
}

#[cfg(test)]
mod tests;
