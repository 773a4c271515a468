//! The whole way from a client to the guest's pods, with a cloud controller manager of the test's own.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result};
use bench::{
    client::{Answer, Client, Protocol, Question},
    scenario::{CLUSTER_NAME, Deadline, HCP_NAMESPACE, PORT, answering_pod, is_ready, until, until_gone},
    simulator::{Running, infra_speaker},
};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    super::{
        ALONE,
        provider::{Place, Provider},
    },
    LOOK,
};
use crate::fixture::Fixture;

/// The way; it is closed when this is dropped.
pub struct Way {
    /// Where Services are made.
    pub place: Place,
    /// The client.
    pub user: Client,
    pods: Api<Pod>,
    workers: Vec<String>,
    _provider: Provider,
    _speaker: Running,
}

impl Way {
    /// Opens it.
    pub async fn new(fixture: &Fixture) -> Result<Self> {
        let place = Place::over_workers(fixture).await?;
        Ok(Self {
            user: Client::start().await?,
            pods: Api::namespaced(fixture.guest.clone(), &place.namespace),
            workers: fixture.control.workers().await?,
            _provider: place.provider("a", CLUSTER_NAME, &[ALONE]).await?,
            _speaker: infra_speaker::start(fixture.infra.clone(), HCP_NAMESPACE),
            place,
        })
    }

    /// Creates a pod `<app>-<number>` on each worker, and waits until all are Ready; their names.
    pub async fn pods(&self, app: &str) -> Result<BTreeSet<String>> {
        let named = |(index, worker): (usize, &String)| (format!("{app}-{}", index + 1), worker.clone());
        let all: Vec<(String, String)> = self.workers.iter().enumerate().map(named).collect();
        try_join_all(all.iter().map(|(name, worker)| async move {
            self.pods.create(&PostParams::default(), &answering_pod(name, app, Some(worker))).await?;
            until(&format!("pod {name}"), Deadline::PodStart, async || {
                let pod = self.pods.get(name).await?;
                Ok(if is_ready(&pod) { Ok(()) } else { Err("not Ready".to_owned()) })
            })
            .await
        }))
        .await?;
        Ok(all.into_iter().map(|(name, _)| name).collect())
    }

    /// Deletes a pod, and waits until it is gone.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        self.pods.delete(name, &DeleteParams::default()).await?;
        until_gone(&self.pods, name, "pod", Deadline::PodStart).await
    }

    /// Creates a Service before the pods of its name, and waits for its address; `spec` replaces fields.
    pub async fn service(&self, name: &str, mut spec: Value) -> Result<Ipv4Addr> {
        spec["selector"] = json!({"app": name});
        self.place.create(name, spec).await?;
        self.place.served(name).await?.parse().context("the load balancer's address")
    }

    /// The first node port of a Service.
    pub async fn node_port(&self, name: &str) -> Result<u16> {
        let ports = self.place.guests.get(name).await?.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let port = ports.first().and_then(|port| port.node_port).context("no node port")?;
        u16::try_from(port).context("a node port")
    }

    /// Removes Services and pods, and waits until they are gone: the workers are small. What a failed test leaves in infra is
    /// removed by the next.
    pub async fn close(self) -> Result<()> {
        let all = ListParams::default();
        for service in self.place.guests.list(&all).await? {
            self.place.guests.delete(&service.name_any(), &DeleteParams::default()).await?;
            until_gone(&self.place.guests, &service.name_any(), "Service", Deadline::Reaction).await?;
        }
        self.pods.delete_collection(&DeleteParams::default(), &all).await?;
        until("the end of the pods", Deadline::PodStart, async || {
            let left = self.pods.list(&all).await?.items.len();
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} left")) })
        })
        .await
    }

    /// Asks once.
    pub async fn ask(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16, protocol: Protocol) -> Result<Answer> {
        self.user.ask(Question { from, to: SocketAddrV4::new(to, port), protocol }).await
    }

    /// Asks [`LOOK`] times until all are answered, and so that `wanted` is content.
    pub async fn look(&self, what: &str, to: Ipv4Addr, wanted: impl Fn(&[Answer]) -> bool) -> Result<()> {
        until(what, Deadline::Reaction, async || {
            let answers = try_join_all((0..LOOK).map(|_| self.user.get(to, PORT))).await?;
            Ok(if wanted(&answers) { Ok(()) } else { Err(format!("{answers:?}")) })
        })
        .await
    }

    /// Waits until a client gets an answer.
    pub async fn answers(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16, protocol: Protocol) -> Result<()> {
        until(&format!("an answer for {from} from {to}:{port}"), Deadline::Reaction, async || {
            self.ask(from, to, port, protocol).await.map(|_| Ok(()))
        })
        .await
    }

    /// Waits until a client gets none any more.
    pub async fn silent(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16, protocol: Protocol) -> Result<()> {
        until(&format!("no answer for {from} from {to}:{port}"), Deadline::Reaction, async || {
            Ok(match self.ask(from, to, port, protocol).await {
                Ok(answer) => Err(format!("{} answers", answer.pod)),
                Err(_) => Ok(()),
            })
        })
        .await
    }
}
