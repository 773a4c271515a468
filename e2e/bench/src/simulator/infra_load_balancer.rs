//! Stands for the **load balancer of the infra cluster**, as MetalLB's controller is one: a Service of type `LoadBalancer` gets an
//! address in its status. The address only: `infra_speaker` lets clients find it.
//!
//! Rules (MetalLB `controller/service.go`): an address of the pool for each of a Service's families, kept as long as the Service is; the one of
//! `spec.loadBalancerIP` if it is named; events as MetalLB words them.
//!
//! What it does not do: pools, sharing of addresses, `loadBalancerClass`. A test runs one in its own process, for a
//! namespace of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use k8s_openapi::api::core::v1::{ObjectReference, Service};
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
/// The second family, as `spec.ipFamilies` names it.
const IPV6: &str = "IPv6";
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
    /// Another address than before.
    Move {
        /// Of which Service.
        service: String,
        /// The address.
        to: Ipv4Addr,
    },
}

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
    let place = || {
        let families = spec.ip_families.unwrap_or_default();
        let place = balancer.place(&service);
        let of = |family: &String| if family == IPV6 { IpAddr::V6(second(place)) } else { IpAddr::V4(place) };
        families.iter().map(|family| of(family).to_string()).collect()
    };
    let mut wanted: Vec<String> = spec.load_balancer_ip.map_or_else(place, |named| vec![named]);
    for fault in balancer.faults.active() {
        match fault {
            Fault::Refuse { message } => {
                let words = (Kind::Warning, "AllocationFailed", message.as_str());
                balancer.events.tell(&balancer.client, &reference(&service), words).await;
                return Ok(Action::await_change());
            }
            Fault::Move { service, to } if service == name => wanted = vec![to.to_string()],
            Fault::Hold { .. } | Fault::Move { .. } => {}
        }
    }
    if shown != wanted {
        balancer.assign(&service, &wanted).await?;
    }
    Ok(Action::await_change())
}

impl LoadBalancer {
    fn place(&self, service: &Service) -> Ipv4Addr {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let place = *places.entry(service.uid().unwrap_or_default()).or_insert(next);
        Ipv4Addr::from(u32::from(FIRST_ADDRESS).wrapping_add(place))
    }

    async fn assign(&self, service: &Service, addresses: &[String]) -> Result<()> {
        let namespace = service.namespace().unwrap_or_default();
        let services: Api<Service> = Api::namespaced(self.client.clone(), &namespace);
        let ingress: Vec<_> =
            addresses.iter().map(|address| json!({"ip": address, "ipMode": "VIP"})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        match services.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(status)).await
        {
            Err(error) if !not_found(&error) => return Err(error.into()),
            _ => {}
        }
        let message = format!("Assigned IP {addresses:?}");
        self.events.tell(&self.client, &reference(service), (Kind::Normal, "IPAllocated", &message)).await;
        Ok(())
    }
}

fn reference(service: &Service) -> ObjectReference {
    ObjectReference { resource_version: None, ..service.object_ref(&()) }
}
