//! What a reconcile observes: slices, Nodes and VMs as the watches showed them last, and infra's slices as they are
//! now.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    endpoints::{
        backend::Backend,
        demand::{Spread, Wanted, demand},
        index::Index,
    },
    guest::{nodes::WireNode, services::GuestService, slices::GuestSlice},
    infra::{
        mirrors::InfraService,
        slices::{Endpoint, InfraSlice},
    },
    wire::ip_family::Family,
};

/// Namespace and name of a Service of the guest.
pub(crate) type ServiceKey = (String, String);

/// The last observation.
#[derive(Debug, Default)]
pub(crate) struct State {
    inner: Mutex<Seen>,
}

/// The last observation, by kind.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The guest's slices.
    pub guest_slices: Index<ServiceKey, GuestSlice>,
    /// Infra's slices, by the infra Service's name.
    pub infra_slices: Index<String, InfraSlice>,
    /// The guest's Nodes by name, as they were when the backends were found.
    pub nodes: BTreeMap<String, Arc<WireNode>>,
    /// The VMs of these Nodes; cached until something changes.
    pub backends: Option<Arc<Vec<Backend>>>,
    /// Which watches have delivered their first list.
    pub complete: HashSet<&'static str>,
}

impl State {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// The endpoints that the Service should have, by family. With `everywhere`, every VM serves policy Cluster.
    pub(crate) fn wanted(
        &self,
        guest: &GuestService,
        infra: &InfraService,
        slices: &[InfraSlice],
        backends: &[Backend],
        everywhere: bool,
    ) -> BTreeMap<Family, Vec<Endpoint>> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let key = (text(&guest.metadata.namespace), text(&guest.metadata.name));
        let of_guest: Vec<_> = self.guest_slices.of(&key).collect();
        let spread = match (guest.spec.is_local(), everywhere) {
            (true, _) => Spread::WithEndpoint,
            (false, true) => Spread::Everywhere,
            (false, false) => Spread::Preferred,
        };
        let wanted =
            Wanted { spread, has_selector: !guest.spec.selector.is_empty(), slices: of_guest.as_slice() };
        let families = infra.spec.ip_families.iter().filter_map(|text| Family::parse(text));
        let endpoints = |family: Family| {
            let kept = |vm: &str, uid: &str| last_address(slices, family, vm, uid);
            (family, demand(&wanted, family, backends, &kept))
        };
        families.map(endpoints).collect()
    }
}

/// The address at which our slices reach a VMI.
fn last_address(slices: &[InfraSlice], family: Family, vm: &str, uid: &str) -> Option<IpAddr> {
    let ours = slices.iter().filter(|slice| slice.family == Some(family));
    let mut endpoints =
        ours.filter_map(|slice| slice.content.as_ref()).flat_map(|content| &content.endpoints);
    endpoints.find(|endpoint| endpoint.vm == vm && endpoint.uid == uid).map(|endpoint| endpoint.address)
}
