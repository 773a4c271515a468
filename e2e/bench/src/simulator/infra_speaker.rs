//! Stands for the **speakers of the infra cluster's load balancer**, as MetalLB's are in layer 2 mode: clients that ask by ARP, or neighbour discovery, which host
//! has the address of a `LoadBalancer` Service get an answer as long as the Service's status shows the address. kube-proxy
//! forwards the traffic.
//!
//! What it does not do: choose among nodes (the bench's data path has one), unsolicited announcements. A test runs one in its own
//! process, for a namespace of its own; when it stops, it withdraws all announcements.

use std::{collections::BTreeSet, net::IpAddr, pin::pin};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, reflector, watcher},
};
use tokio_util::task::AbortOnDropHandle;

use super::Running;
use crate::sandbox::network::clients;

/// Starts announcing the addresses of one namespace of the infra cluster.
pub fn start(infra: Client, namespace: &str) -> Running {
    let services = Api::<Service>::namespaced(infra, namespace);
    Running::new(vec![AbortOnDropHandle::new(tokio::spawn(speak(services)))])
}

async fn speak(services: Api<Service>) {
    let (store, writer) = reflector::store();
    let changes = reflector(writer, watcher(services, watcher::Config::default())).default_backoff();
    let mut changes = pin!(changes);
    let mut announced = Announced::default();
    while let Some(change) = changes.next().await {
        match change {
            Ok(_) => {
                let services = store.state();
                announced.change_to(&services.iter().flat_map(|service| addresses(service)).collect());
            }
            Err(error) => tracing::warn!(simulator = "infra-speaker", "{error}; trying again"),
        }
    }
}

/// The addresses in a Service's status.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    ingress.iter().filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}

/// What is announced; withdrawn when it is dropped.
#[derive(Debug, Default)]
struct Announced(BTreeSet<IpAddr>);

impl Announced {
    /// Each change is one process of a few milliseconds. A failure is logged, and retried at the next change.
    fn change_to(&mut self, wanted: &BTreeSet<IpAddr>) {
        let (gone, new): (Vec<_>, Vec<_>) =
            (self.0.difference(wanted).copied().collect(), wanted.difference(&self.0).copied().collect());
        for address in gone {
            if done(&clients::withdraw(address)) {
                self.0.remove(&address);
            }
        }
        for address in new {
            if done(&clients::announce(address)) {
                self.0.insert(address);
            }
        }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.change_to(&BTreeSet::new());
    }
}

fn done(change: &anyhow::Result<()>) -> bool {
    if let Err(error) = change {
        tracing::warn!(simulator = "infra-speaker", "{error:#}");
    }
    change.is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_those_of_the_status() {
        let service = |status| serde_json::from_value(json!({"status": status})).expect("a Service");
        let shown = service(json!({"loadBalancer": {"ingress": [{"ip": "198.18.0.1"}, {"hostname": "h"}]}}));
        assert_eq!(addresses(&shown), [IpAddr::from([198, 18, 0, 1])]);
        assert_eq!(addresses(&service(json!({}))), [] as [IpAddr; 0]);
    }
}
