//! The lower bound for many load balancers: the same writes without a cloud controller manager, by clients that know what to
//! write and wait only for the API servers.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::fixture::Fixture;

/// A class that no controller serves.
const CLASS: &str = "bench.local/bare";
/// An address for all of them.
const ADDRESS: &str = "198.18.255.1";

/// What the same writes cost without a cloud controller manager.
pub struct Bare {
    /// From the guest's Service to infra's: the median of lives one after the other.
    pub present: Duration,
    /// All of many lives, begun at the same moment.
    pub burst: Duration,
}

/// How long `single` lives take one after the other, and `burst` lives that are begun at the same moment, from the guest's Service to
/// its address: for each one the guest's Service, a first patch of its status, infra's Service, its address, and the same address in
/// the guest.
pub async fn lives(fixture: &Fixture, single: usize, burst: usize) -> Result<Bare> {
    let namespace = format!("{}-bare", fixture.word);
    for client in [&fixture.guest, &fixture.infra] {
        let object = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await?;
    }
    let guests: Api<Service> = Api::namespaced(fixture.guest.clone(), &namespace);
    let mirrors: Api<Service> = Api::namespaced(fixture.infra.clone(), &namespace);
    let mut present = Vec::new();
    for number in 0..single {
        present.push(life(&guests, &mirrors, format!("single-{number}")).await?);
    }
    present.sort();
    let began = Instant::now();
    try_join_all((0..burst).map(|number| life(&guests, &mirrors, format!("bare-{number}")))).await?;
    let burst = began.elapsed();
    for services in [&guests, &mirrors] {
        services.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    }
    Ok(Bare { present: present[present.len() / 2], burst })
}

/// One life; measures from the creation of the guest's Service to that of infra's.
async fn life(guests: &Api<Service>, mirrors: &Api<Service>, name: String) -> Result<Duration> {
    let service: Service =
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"type": "LoadBalancer",
        "loadBalancerClass": CLASS, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}))?;
    // Infra's controllers write the endpoints of a selector, as they do for a mirror.
    let mut mirror = service.clone();
    if let Some(spec) = &mut mirror.spec {
        spec.selector = Some([(CLASS.to_owned(), name.clone())].into());
    }
    let begun = json!({"status": {"conditions": [{"type": CLASS, "status": "False", "reason": "Pending", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let addressed = json!({"status": {"loadBalancer": {"ingress": [{"ip": ADDRESS}]}}});
    guests.create(&PostParams::default(), &service).await?;
    let created = Instant::now();
    write(guests, &name, &begun).await?;
    mirrors.create(&PostParams::default(), &mirror).await?;
    let present = created.elapsed();
    write(mirrors, &name, &addressed).await?;
    write(guests, &name, &addressed).await?;
    Ok(present)
}

async fn write(services: &Api<Service>, name: &str, patch: &Value) -> Result<()> {
    services.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}
