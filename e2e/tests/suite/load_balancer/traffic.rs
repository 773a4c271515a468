//! What clients send to a guest's load balancer: through infra's kube-proxy to a VM, and through the VM's to a pod. The pods say who
//! they are and which client they saw.

mod disruption;
mod way;

use std::{collections::BTreeSet, net::IpAddr, sync::Mutex};

use anyhow::{Context, Result, ensure};
use bench::control::Lock::Exclusive;
use bench::{
    client::{Answer, Protocol},
    sandbox::network::{
        clients::{CLIENT, OTHER_CLIENT},
        second, worker_address,
    },
    scenario::{Deadline, PORT, ThreeSteps, three_steps::Step, until, until_gone},
};
use kube::api::DeleteParams;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::{
    merge,
    provider::{mirror_name, remove_left_everywhere},
};
use crate::fixture::{Fixture, trial};
use way::Way;

/// Questions that make one look: with two pods and no affinity, all to one by chance once in half a million looks.
const LOOK: usize = 20;

/// The tests of this module.
pub fn trials() -> Vec<Trial> {
    vec![
        trial("three_steps::a_client_reaches_one_pod_through_a_load_balancer", Exclusive, client_reaches_pod),
        trial("traffic::any_vm_answers_and_local_shows_the_client", Exclusive, policies),
        trial("traffic::our_endpoints_under_local_are_those_with_a_pod", Exclusive, own_endpoints),
        trial("traffic::lost_in_a_rolling_restart", Exclusive, |it| {
            disruption::rolling_restart(it, "infra's selector", json!({}), &["Cluster", "Local"])
        }),
        trial("traffic::lost_in_a_rolling_restart_with_our_endpoints", Exclusive, |it| {
            disruption::rolling_restart(it, "our endpoints", managed(), &["Local"])
        }),
        trial("traffic::lost_in_a_live_migration", Exclusive, disruption::live_migration),
        trial("traffic::lost_in_a_reset_of_a_vm", Exclusive, disruption::reset),
        trial("traffic::both_families_and_the_second_alone", Exclusive, |it| families(it, json!({}))),
        trial("traffic::both_families_through_our_endpoints", Exclusive, |it| families(it, managed())),
        trial("traffic::source_ranges_hold_on_infra", Exclusive, source_ranges),
        trial("traffic::affinity_and_two_protocols_until_the_end", Exclusive, affinity_and_protocols),
    ]
}

/// The keys with which all endpoints are ours.
fn managed() -> Value {
    json!({"endpoints": "Managed"})
}

/// The demo's flow, asserted.
async fn client_reaches_pod(fixture: Fixture) -> Result<()> {
    remove_left_everywhere(&fixture).await?;
    let workers = fixture.control.workers().await?;
    let namespace = fixture.guest_namespace().await?;
    let seen = Mutex::new(Vec::new());
    let flow = ThreeSteps {
        infra: fixture.infra.clone(),
        guest: fixture.guest.clone(),
        namespace: &namespace,
        name: "web",
        worker: workers.first().context("no worker")?,
    };
    let note = |step, _: &str, _| seen.lock().expect("no panic while it was held").push(step);
    Box::pin(flow.run(&note)).await?;
    let seen = seen.into_inner()?;
    let all = [Step::GuestService, Step::InfraService, Step::Address, Step::Answer, Step::Deleted];
    ensure!(seen == all, "only these steps were seen: {seen:?}");
    Ok(())
}

/// Policy Cluster: any VM passes traffic on to any pod, in infra's name. Local, while the Service runs: only to its own, in
/// the client's name. And back.
async fn policies(fixture: Fixture) -> Result<()> {
    let way = Way::new(&fixture).await?;
    let pods = way.pods("web").await?;
    let address = way.service("web", json!({})).await?;
    way.look("both pods", address, |answers| {
        pods_in(answers) == pods && answers.iter().all(|answer| answer.client != CLIENT)
    })
    .await?;

    merge(&way.place.guests, "web", json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
    way.look("both pods, which see the client", address, |answers| {
        pods_in(answers) == pods && answers.iter().all(|answer| answer.client == CLIENT)
    })
    .await?;
    merge(&way.place.guests, "web", json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await?;
    way.look("nobody who sees the client", address, |answers| {
        answers.iter().all(|answer| answer.client != CLIENT)
    })
    .await?;

    way.delete_pod("web-2").await?;
    let one = BTreeSet::from(["web-1".to_owned()]);
    way.look("the pod that is left", address, |answers| pods_in(answers) == one).await?;
    let port = way.node_port("web").await?;
    for number in 1..=2 {
        let answer = way.user.get(worker_address(number), port).await?;
        ensure!(answer.pod == "web-1", "worker {number} passed it on to {}", answer.pod);
    }
    way.close().await
}

/// Dual stack, and IPv6 alone: each address is answered, and under Local the pods see the client's address of that family;
/// whoever writes the endpoints.
async fn families(fixture: Fixture, keys: Value) -> Result<()> {
    let way = Way::with(&fixture, &keys).await?;
    let mine = |address: IpAddr| if address.is_ipv4() { CLIENT.into() } else { IpAddr::from(second(CLIENT)) };
    for families in [&["IPv4", "IPv6"][..], &["IPv6"]] {
        let name = format!("web{}", families.len());
        let pods = way.pods(&name).await?;
        let addresses = way.service_of(&name, families).await?;
        for &address in &addresses {
            way.look("both pods", address, |answers| {
                pods_in(answers) == pods && answers.iter().all(|answer| answer.client != mine(address))
            })
            .await?;
        }
        merge(&way.place.guests, &name, json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
        for &address in &addresses {
            way.look("both pods, which see the client", address, |answers| {
                pods_in(answers) == pods && answers.iter().all(|answer| answer.client == mine(address))
            })
            .await?;
        }
    }
    way.close().await
}

/// Our own endpoints under policy Local: a VM without a pod gets no traffic, though its Service's mirror would find it; the client's
/// address is seen; and so it goes on when the pod moves to the other VM.
async fn own_endpoints(fixture: Fixture) -> Result<()> {
    let way = Way::with(&fixture, &managed()).await?;
    let pods = way.pods("web").await?;
    let address = way.service("web", json!({"externalTrafficPolicy": "Local"})).await?;
    let from_client = |answers: &[Answer]| answers.iter().all(|answer| answer.client == CLIENT);
    way.look("both pods, which see the client", address, |answers| {
        pods_in(answers) == pods && from_client(answers)
    })
    .await?;
    let one = |pod: &str| BTreeSet::from([pod.to_owned()]);
    way.delete_pod("web-2").await?;
    way.look("the pod that is left", address, |answers| pods_in(answers) == one("web-1")).await?;
    way.pod("web-2").await?;
    way.delete_pod("web-1").await?;
    way.look("the pod on the other worker, which sees the client", address, |answers| {
        pods_in(answers) == one("web-2") && from_client(answers)
    })
    .await?;
    merge(&way.place.guests, "web", json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await?;
    way.look("nobody who sees the client", address, |answers| {
        answers.iter().all(|answer| answer.client != CLIENT)
    })
    .await?;
    way.close().await
}

/// D13: who is not in the ranges gets no answer; a change of the ranges counts at once.
async fn source_ranges(fixture: Fixture) -> Result<()> {
    let way = Way::new(&fixture).await?;
    way.pods("web").await?;
    let only_other = json!({"loadBalancerSourceRanges": [format!("{OTHER_CLIENT}/32")]});
    let address = way.service("web", only_other).await?;
    way.answers(OTHER_CLIENT, address, PORT, Protocol::Tcp).await?;
    let refused = way.ask(CLIENT, address, PORT, Protocol::Tcp).await;
    ensure!(refused.is_err(), "a client outside of the ranges got {refused:?}");

    let ranges = json!({"spec": {"loadBalancerSourceRanges": [format!("{CLIENT}/32")]}});
    merge(&way.place.guests, "web", ranges).await?;
    way.answers(CLIENT, address, PORT, Protocol::Tcp).await?;
    way.silent(OTHER_CLIENT, address, PORT, Protocol::Tcp).await?;

    merge(&way.place.guests, "web", json!({"spec": {"loadBalancerSourceRanges": null}})).await?;
    way.answers(OTHER_CLIENT, address, PORT, Protocol::Tcp).await?;
    way.close().await
}

/// D14: a client with affinity stays with its pod. TCP and UDP through one Service; with it both end.
async fn affinity_and_protocols(fixture: Fixture) -> Result<()> {
    const UDP_PORT: u16 = 53;
    let way = Way::new(&fixture).await?;
    let pods = way.pods("web").await?;
    let ports = json!([
        {"name": "http", "port": PORT, "targetPort": 8080},
        {"name": "dns", "protocol": "UDP", "port": UDP_PORT, "targetPort": 8080},
    ]);
    let address = way.service("web", json!({"ports": ports})).await?;
    way.look("both pods", address, |answers| pods_in(answers) == pods).await?;
    way.answers(CLIENT, address, UDP_PORT, Protocol::Udp).await?;

    merge(&way.place.guests, "web", json!({"spec": {"sessionAffinity": "ClientIP"}})).await?;
    let mirror = mirror_name(&way.place.guests.get("web").await?);
    way.place.mirror(&mirror, "affinity", |now| now["spec"]["sessionAffinity"] == "ClientIP").await?;
    way.look("always the same pod", address, |answers| pods_in(answers).len() == 1).await?;

    way.place.guests.delete("web", &DeleteParams::default()).await?;
    until_gone(&way.place.guests, "web", "the guest's Service", Deadline::Reaction).await?;
    way.silent(CLIENT, address, PORT, Protocol::Tcp).await?;
    way.silent(CLIENT, address, UDP_PORT, Protocol::Udp).await?;
    until("the end of the mirror", Deadline::Reaction, async || {
        Ok(if way.place.mirrors.get_opt(&mirror).await?.is_none() { Ok(()) } else { Err("there".to_owned()) })
    })
    .await?;
    way.close().await
}

fn pods_in(answers: &[Answer]) -> BTreeSet<String> {
    answers.iter().map(|answer| answer.pod.clone()).collect()
}
