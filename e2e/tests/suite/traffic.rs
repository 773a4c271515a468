//! What clients send to a guest's load balancer: through infra's kube-proxy to a VM, and through the VM's to a pod. The pods answer with
//! their names and the client that they saw.

mod data_path;
pub mod disruption;

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Result, ensure};
use bench::{
    client::{Answer, Protocol},
    sandbox::network::{
        clients::{CLIENT, OTHER_CLIENT},
        second, worker_address,
    },
    scenario::{Deadline, PORT, until, until_gone},
};
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::{
    fixture::Fixture,
    provider::{merge, mirror_name},
};
use data_path::DataPath;

tests! {
    Exclusive:
        any_vm_answers_and_local_shows_the_client,
        our_endpoints_under_local_are_those_with_a_pod,
        both_families_through_our_endpoints,
        source_ranges_hold_on_infra,
        affinity_and_two_protocols_until_the_end;
    Exclusive, long:
        both_families_and_the_second_alone;
}

/// The keys with which we write all endpoints.
fn managed() -> Value {
    json!({"endpoints": "Managed"})
}

/// Policy Cluster: any VM forwards traffic to any pod, with infra's address as source. Local, while the Service runs: only to its
/// own pods, with the client's address. And back.
async fn any_vm_answers_and_local_shows_the_client(fixture: Fixture) -> Result<()> {
    let path = DataPath::new(&fixture).await?;
    let pods = path.pods("web").await?;
    let address = path.service("web", json!({})).await?;
    path.until_answered("both pods", address, |answers| {
        pods_in(answers) == pods && answers.iter().all(|answer| answer.client != CLIENT)
    })
    .await?;

    merge(&path.place.guests, "web", json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
    path.until_answered("both pods, which see the client", address, |answers| {
        pods_in(answers) == pods && answers.iter().all(|answer| answer.client == CLIENT)
    })
    .await?;
    merge(&path.place.guests, "web", json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await?;
    path.until_answered("no pod that sees the client", address, |answers| {
        answers.iter().all(|answer| answer.client != CLIENT)
    })
    .await?;

    path.delete_pod("web-2").await?;
    let one = BTreeSet::from(["web-1".to_owned()]);
    path.until_answered("the pod that is left", address, |answers| pods_in(answers) == one).await?;
    let port = path.node_port("web").await?;
    for number in 1..=2 {
        let answer = path.user.get(worker_address(number), port).await?;
        ensure!(answer.pod == "web-1", "expected worker {number} to forward to web-1, saw {}", answer.pod);
    }
    path.close().await
}

async fn both_families_and_the_second_alone(fixture: Fixture) -> Result<()> {
    families(fixture, json!({})).await
}

async fn both_families_through_our_endpoints(fixture: Fixture) -> Result<()> {
    families(fixture, managed()).await
}

/// Dual stack, and IPv6 alone: each address is answered, and under Local the pods see the client's address of that family;
/// whoever writes the endpoints.
async fn families(fixture: Fixture, keys: Value) -> Result<()> {
    let path = DataPath::with(&fixture, &keys).await?;
    let mine = |address: IpAddr| if address.is_ipv4() { CLIENT.into() } else { IpAddr::from(second(CLIENT)) };
    for families in [&["IPv4", "IPv6"][..], &["IPv6"]] {
        let name = format!("web{}", families.len());
        let pods = path.pods(&name).await?;
        let addresses = path.service_of(&name, families).await?;
        for &address in &addresses {
            path.until_answered("both pods", address, |answers| {
                pods_in(answers) == pods && answers.iter().all(|answer| answer.client != mine(address))
            })
            .await?;
        }
        merge(&path.place.guests, &name, json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
        for &address in &addresses {
            path.until_answered("both pods, which see the client", address, |answers| {
                pods_in(answers) == pods && answers.iter().all(|answer| answer.client == mine(address))
            })
            .await?;
        }
    }
    path.close().await
}

/// Our own endpoints under policy Local: a VM without a pod gets no traffic, though its Service's mirror would find it; the client's
/// address is seen; the same holds when the pod moves to the other VM.
async fn our_endpoints_under_local_are_those_with_a_pod(fixture: Fixture) -> Result<()> {
    let path = DataPath::with(&fixture, &managed()).await?;
    let pods = path.pods("web").await?;
    let address = path.service("web", json!({"externalTrafficPolicy": "Local"})).await?;
    let from_client = |answers: &[Answer]| answers.iter().all(|answer| answer.client == CLIENT);
    path.until_answered("both pods, which see the client", address, |answers| {
        pods_in(answers) == pods && from_client(answers)
    })
    .await?;
    let one = |pod: &str| BTreeSet::from([pod.to_owned()]);
    path.delete_pod("web-2").await?;
    path.until_answered("the pod that is left", address, |answers| pods_in(answers) == one("web-1")).await?;
    path.pod("web-2").await?;
    path.delete_pod("web-1").await?;
    path.until_answered("the pod on the other worker, which sees the client", address, |answers| {
        pods_in(answers) == one("web-2") && from_client(answers)
    })
    .await?;
    merge(&path.place.guests, "web", json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await?;
    path.until_answered("no pod that sees the client", address, |answers| {
        answers.iter().all(|answer| answer.client != CLIENT)
    })
    .await?;
    path.close().await
}

/// A client outside of the ranges gets no answer; a change of the ranges takes effect at once.
async fn source_ranges_hold_on_infra(fixture: Fixture) -> Result<()> {
    let path = DataPath::new(&fixture).await?;
    path.pods("web").await?;
    let only_other = json!({"loadBalancerSourceRanges": [format!("{OTHER_CLIENT}/32")]});
    let address = path.service("web", only_other).await?;
    path.answers(OTHER_CLIENT, address, PORT, Protocol::Tcp).await?;
    let refused = path.ask(CLIENT, address, PORT, Protocol::Tcp).await;
    ensure!(refused.is_err(), "expected no answer for a client outside of the ranges, saw {refused:?}");

    let ranges = json!({"spec": {"loadBalancerSourceRanges": [format!("{CLIENT}/32")]}});
    merge(&path.place.guests, "web", ranges).await?;
    path.answers(CLIENT, address, PORT, Protocol::Tcp).await?;
    path.silent(OTHER_CLIENT, address, PORT, Protocol::Tcp).await?;

    merge(&path.place.guests, "web", json!({"spec": {"loadBalancerSourceRanges": null}})).await?;
    path.answers(OTHER_CLIENT, address, PORT, Protocol::Tcp).await?;
    path.close().await
}

/// A client with affinity stays with its pod. TCP and UDP through one Service; with it both end.
async fn affinity_and_two_protocols_until_the_end(fixture: Fixture) -> Result<()> {
    const UDP_PORT: u16 = 53;
    let path = DataPath::new(&fixture).await?;
    let pods = path.pods("web").await?;
    let ports = json!([
        {"name": "http", "port": PORT, "targetPort": 8080},
        {"name": "dns", "protocol": "UDP", "port": UDP_PORT, "targetPort": 8080},
    ]);
    let address = path.service("web", json!({"ports": ports})).await?;
    path.until_answered("both pods", address, |answers| pods_in(answers) == pods).await?;
    path.answers(CLIENT, address, UDP_PORT, Protocol::Udp).await?;

    merge(&path.place.guests, "web", json!({"spec": {"sessionAffinity": "ClientIP"}})).await?;
    let mirror = mirror_name(&path.place.guests.get("web").await?);
    path.place.mirror(&mirror, "affinity", |now| now["spec"]["sessionAffinity"] == "ClientIP").await?;
    path.until_answered("always the same pod", address, |answers| pods_in(answers).len() == 1).await?;

    path.place.guests.delete("web", &DeleteParams::default()).await?;
    until_gone(&path.place.guests, "web", "the guest's Service", Deadline::Reaction).await?;
    path.silent(CLIENT, address, PORT, Protocol::Tcp).await?;
    path.silent(CLIENT, address, UDP_PORT, Protocol::Udp).await?;
    until("the mirror to be gone", Deadline::Reaction, async || {
        Ok(if path.place.mirrors.get_opt(&mirror).await?.is_none() {
            Ok(())
        } else {
            Err("there".to_owned())
        })
    })
    .await?;
    path.close().await
}

fn pods_in(answers: &[Answer]) -> BTreeSet<String> {
    answers.iter().map(|answer| answer.pod.clone()).collect()
}
