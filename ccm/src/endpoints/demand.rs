//! Which endpoints an infra Service should have: the guest's own EndpointSlices laid over its VMs. Pure.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use crate::{
    endpoints::backend::Backend,
    guest::slices::GuestSlice,
    infra::slices::Endpoint,
    wire::{endpoint_slice::Conditions, ip_family::Family},
};
use std::net::IpAddr;

/// Which VMs get the traffic of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Those that have an endpoint of it.
    WithEndpoint,
    /// Those that have an endpoint of it; all, if none of those is ready; those of excluded Nodes too, if none of all is. For
    /// policy Cluster, with which every Node forwards: the only endpoint may be on a Node that takes no traffic of load
    /// balancers, and an exclusion must not end all traffic.
    Preferred,
    /// All: with policy Cluster every Node forwards traffic, so where the endpoints are does not matter.
    Everywhere,
}

/// What a Service should have.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Which VMs.
    pub spread: Spread,
    /// Whether the guest's Service has a selector. Of one that has neither a selector nor slices nothing is known.
    pub has_selector: bool,
    /// The guest's slices of the Service.
    pub slices: &'a [&'a GuestSlice],
}

/// The endpoints of one family, by VM. `kept` gives the last address at which a VMI (name, UID) was reached: it is used
/// while the VMI shows none because its guest agent does not report, or reports no address at all.
pub fn demand(
    wanted: &Wanted<'_>,
    family: Family,
    backends: &[Backend],
    kept: &dyn Fn(&str, &str) -> Option<IpAddr>,
) -> Vec<Endpoint> {
    let counted: Vec<_> = backends.iter().filter(|backend| !backend.excluded).collect();
    let nothing_said = !wanted.has_selector && wanted.slices.is_empty();
    let of = |backends: &[&Backend], everywhere: bool| {
        endpoints(wanted.slices, everywhere || nothing_said, family, backends, kept)
    };
    let is_ready = |endpoints: &[Endpoint]| endpoints.iter().any(|endpoint| endpoint.conditions.ready);
    match wanted.spread {
        Spread::WithEndpoint => of(&counted, false),
        Spread::Everywhere => of(&counted, true),
        Spread::Preferred => {
            let all: Vec<_> = backends.iter().collect();
            let tries = [(&counted, false), (&counted, true), (&all, false), (&all, true)];
            let mut found = tries.into_iter().map(|(backends, everywhere)| of(backends, everywhere));
            found.find(|endpoints| is_ready(endpoints)).unwrap_or_else(|| of(&counted, true))
        }
    }
}

/// The endpoints on these VMs; with `everywhere` all of them have one.
fn endpoints(
    slices: &[&GuestSlice],
    everywhere: bool,
    family: Family,
    backends: &[&Backend],
    kept: &dyn Fn(&str, &str) -> Option<IpAddr>,
) -> Vec<Endpoint> {
    let slices: Vec<_> = slices.iter().filter(|slice| slice.family == Some(family)).collect();
    let anywhere = slices.iter().filter_map(|slice| slice.anywhere).reduce(Conditions::or);
    let on = |backend: &Backend| {
        let here = slices.iter().flat_map(|slice| backend.nodes.iter().filter_map(|it| slice.nodes.get(it)));
        here.copied().chain(anywhere).reduce(Conditions::or)
    };
    let endpoint = |backend: &&Backend| {
        let conditions = if everywhere { Conditions::READY } else { on(backend)? };
        // As with the addresses of a Node: an interface that shows nothing is not known to have lost its address.
        let is_shown = backend.shows_all && !backend.addresses.is_empty();
        let last = || kept(&backend.vm, &backend.uid).filter(|_| !is_shown && !backend.is_unproved);
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
