//! Stands for the **load balancer of the infra cluster**, as MetalLB's controller is one: a Service of type `LoadBalancer` gets an
//! address in its status. The address only: `infra_speaker` lets clients find it.
//!
//! Rules (MetalLB `controller/service.go`): an address of the pool for each of a Service's families, kept as long as the Service is; the one of
//! `spec.loadBalancerIP` if it is named; what happens if the pool lacks a family is a [`Rule`]; events as MetalLB words them.
//!
//! What it does not do: several pools, sharing of addresses, `loadBalancerClass`. A test runs one in its own process, for a
//! namespace of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use k8s_openapi::api::core::v1::{ObjectReference, Service, ServiceSpec};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{Controller, controller::Action, watcher},
};
use serde_json::json;

use crate::sandbox::network::second;

use super::{
    Running,
    event::{Kind, Recorder},
    fault_plan::{FaultPlan, Hold, Pending, Verdict, selects, verdict},
    queue::{self, not_found},
};

/// The component that its events come from.
const COMPONENT: &str = "metallb-controller";
/// The first address of `sandbox::network::clients`' load balancers.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The families, as `spec.ipFamilies` names them.
const IPV4: &str = "IPv4";
const IPV6: &str = "IPv6";
/// `spec.ipFamilyPolicy` of a Service that is content with one family.
const PREFER_DUAL_STACK: &str = "PreferDualStack";
/// MetalLB's message where a pool has no address for a Service (`internal/allocator`).
const NO_ADDRESS: &str = "no available IPs";
/// `spec.type` of what it serves.
const LOAD_BALANCER: &str = "LoadBalancer";

/// The faults that the load balancer can inject.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The address comes late, or not at all.
    Hold {
        /// How late.
        hold: Hold,
        /// Of which Service; none = of all.
        service: Option<String>,
    },
    /// The load balancer assigns no address, and writes an event with this message.
    Refuse {
        /// The event's message.
        message: String,
    },
    /// The pool has addresses of one family only.
    Pool {
        /// Which.
        family: Family,
        /// What a Service of two families gets then.
        rule: Rule,
    },
    /// Another address than before.
    Move {
        /// Of which Service.
        service: String,
        /// The address.
        to: Ipv4Addr,
    },
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a Service of two families gets from a pool of one. A Service of one family that the pool lacks never gets an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Older releases of MetalLB: its addresses must be of the same families as its cluster IPs. It gets none, and one that it
    /// had is taken away (metallb/metallb#2482).
    AllOrNone,
    /// Newer releases (`AllocateFromPoolForAdditionalFamily`): with the policy `PreferDualStack` it gets and keeps what the pool
    /// has.
    WhatThereIs,
}

/// The pool: the families that it has, and the rule where it lacks one.
type Pool = Option<(Family, Rule)>;

struct LoadBalancer {
    client: Client,
    faults: FaultPlan<Fault>,
    pending: Pending<String>,
    events: Recorder,
    /// Which Service has which place in the pool.
    places: Mutex<BTreeMap<String, u32>>,
}

/// Starts serving one namespace of the infra cluster.
pub fn start(infra: Client, namespace: &str, faults: FaultPlan<Fault>) -> Running {
    let services = Api::<Service>::namespaced(infra.clone(), namespace);
    let controller = Controller::new(services, watcher::Config::default()).reconcile_all_on(faults.changes());
    let balancer = Arc::new(LoadBalancer {
        client: infra,
        faults,
        pending: Pending::default(),
        events: Recorder::new(COMPONENT),
        places: Mutex::default(),
    });
    Running::new(vec![queue::run("infra-load-balancer", controller, balancer, serve)])
}

async fn serve(service: Arc<Service>, balancer: Arc<LoadBalancer>) -> Result<Action> {
    let spec = service.spec.clone().unwrap_or_default();
    let shown = service.status.clone().unwrap_or_default().load_balancer.unwrap_or_default();
    let shown: Vec<String> =
        shown.ingress.unwrap_or_default().into_iter().filter_map(|ingress| ingress.ip).collect();
    let name = service.name_any();
    if spec.type_.as_deref() != Some(LOAD_BALANCER) || service.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let holds = balancer.faults.active().into_iter().filter_map(|fault| match fault {
        Fault::Hold { hold, service } if selects(service.as_deref(), &name) => Some(hold),
        _ => None,
    });
    match verdict(balancer.pending.waited(service.uid().unwrap_or_default()), holds) {
        Verdict::Go => {}
        Verdict::Wait(left) => return Ok(Action::requeue(left)),
        Verdict::Stuck => return Ok(Action::await_change()),
    }
    let mut wanted = match addresses(&spec, balancer.pool(), balancer.place(&service)) {
        Ok(wanted) => wanted,
        Err(why) => {
            if !shown.is_empty() {
                balancer.show(&service, &[]).await?;
            }
            let message = format!(
                "Failed to allocate IP for \"{}/{name}\": {why}",
                service.namespace().unwrap_or_default()
            );
            let words = (Kind::Warning, "AllocationFailed", message.as_str());
            balancer.events.tell(&balancer.client, &reference(&service), words).await;
            return Ok(Action::await_change());
        }
    };
    for fault in balancer.faults.active() {
        match fault {
            Fault::Refuse { message } => {
                let words = (Kind::Warning, "AllocationFailed", message.as_str());
                balancer.events.tell(&balancer.client, &reference(&service), words).await;
                return Ok(Action::await_change());
            }
            Fault::Move { service, to } if service == name => wanted = vec![to.to_string()],
            Fault::Hold { .. } | Fault::Move { .. } | Fault::Pool { .. } => {}
        }
    }
    if shown != wanted {
        balancer.assign(&service, &wanted).await?;
    }
    Ok(Action::await_change())
}

/// The addresses of a Service whose place in the pool is `place`, or why it has none.
fn addresses(spec: &ServiceSpec, pool: Pool, place: Ipv4Addr) -> Result<Vec<String>, String> {
    let families: Vec<Family> =
        spec.ip_families.iter().flatten().filter_map(|it| Family::parse(it)).collect();
    if let Some(named) = &spec.load_balancer_ip {
        let family = named.parse().map(Family::of);
        return match family {
            Ok(family) if families == [family] => Ok(vec![named.clone()]),
            _ => Err(format!(
                "requested loadBalancer IP(s) [\"{named}\"] does not match the ipFamily of the service"
            )),
        };
    }
    let has = |family: &Family| pool.is_none_or(|(only, _)| only == *family);
    let present: Vec<_> = families.iter().filter(|family| has(family)).collect();
    let prefers = spec.ip_family_policy.as_deref() == Some(PREFER_DUAL_STACK);
    let is_content = prefers && pool.is_some_and(|(_, rule)| rule == Rule::WhatThereIs);
    if present.is_empty() || (present.len() < families.len() && !is_content) {
        return Err(NO_ADDRESS.to_owned());
    }
    Ok(present.into_iter().map(|family| family.at(place).to_string()).collect())
}

impl Family {
    fn parse(text: &str) -> Option<Self> {
        match text {
            IPV4 => Some(Self::V4),
            IPV6 => Some(Self::V6),
            _ => None,
        }
    }

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The address of this family at a place in the pool.
    fn at(self, place: Ipv4Addr) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(place),
            Self::V6 => IpAddr::V6(second(place)),
        }
    }
}

impl LoadBalancer {
    fn pool(&self) -> Pool {
        self.faults.active().into_iter().find_map(|fault| match fault {
            Fault::Pool { family, rule } => Some((family, rule)),
            _ => None,
        })
    }

    fn place(&self, service: &Service) -> Ipv4Addr {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let place = *places.entry(service.uid().unwrap_or_default()).or_insert(next);
        Ipv4Addr::from(u32::from(FIRST_ADDRESS).wrapping_add(place))
    }

    async fn assign(&self, service: &Service, addresses: &[String]) -> Result<()> {
        self.show(service, addresses).await?;
        let message = format!("Assigned IP {addresses:?}");
        self.events.tell(&self.client, &reference(service), (Kind::Normal, "IPAllocated", &message)).await;
        Ok(())
    }

    async fn show(&self, service: &Service, addresses: &[String]) -> Result<()> {
        let namespace = service.namespace().unwrap_or_default();
        let services: Api<Service> = Api::namespaced(self.client.clone(), &namespace);
        let ingress: Vec<_> =
            addresses.iter().map(|address| json!({"ip": address, "ipMode": "VIP"})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        match services.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(status)).await
        {
            Err(error) if !not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn reference(service: &Service) -> ObjectReference {
    ObjectReference { resource_version: None, ..service.object_ref(&()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 7);

    fn spec(families: &[&str], policy: &str, named: Option<&str>) -> ServiceSpec {
        ServiceSpec {
            ip_families: Some(families.iter().map(|&family| family.to_owned()).collect()),
            ip_family_policy: Some(policy.to_owned()),
            load_balancer_ip: named.map(str::to_owned),
            ..ServiceSpec::default()
        }
    }

    #[test]
    fn a_service_gets_what_metallb_gives_it() {
        let (four, six) = (PLACE.to_string(), second(PLACE).to_string());
        let only = |family, rule| Some((family, rule));
        let both = ["IPv4", "IPv6"];
        let (old, new) = (Rule::AllOrNone, Rule::WhatThereIs);
        for (families, policy, pool, expected) in [
            (&both[..1], "SingleStack", None, vec![&four]),
            (&both[..], "PreferDualStack", None, vec![&four, &six]),
            (&both[..1], "SingleStack", only(Family::V4, old), vec![&four]),
            (&both[1..], "SingleStack", only(Family::V4, old), vec![]),
            (&both[1..], "SingleStack", only(Family::V4, new), vec![]),
            (&both[..], "PreferDualStack", only(Family::V4, old), vec![]),
            (&both[..], "PreferDualStack", only(Family::V4, new), vec![&four]),
            (&both[..], "PreferDualStack", only(Family::V6, new), vec![&six]),
            (&both[..], "RequireDualStack", only(Family::V4, new), vec![]),
        ] {
            let found = addresses(&spec(families, policy, None), pool, PLACE).unwrap_or_default();
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{families:?} {policy} {pool:?}");
        }
    }

    #[test]
    fn an_address_that_is_named_has_to_be_of_the_service_s_family() {
        let named =
            |families: &[&str], named| addresses(&spec(families, "SingleStack", Some(named)), None, PLACE);
        assert_eq!(named(&["IPv4"], "198.18.9.9"), Ok(vec!["198.18.9.9".to_owned()]));
        assert!(named(&["IPv6"], "198.18.9.9").unwrap_err().contains("does not match"));
        assert!(named(&["IPv4", "IPv6"], "198.18.9.9").unwrap_err().contains("does not match"));
    }
}
