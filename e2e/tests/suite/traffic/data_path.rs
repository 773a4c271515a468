//! The whole data path from a client to the guest's pods, with a cloud controller manager of the test's own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
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

use crate::{
    fixture::Fixture,
    provider::{ALONE, Place, Provider},
};

/// Requests of one check: with two pods and no affinity, all go to one by chance once in half a million checks.
const REQUESTS: usize = 20;

/// The data path; it is closed when this is dropped.
pub struct DataPath {
    /// Where Services are made.
    pub place: Place,
    /// The client.
    pub user: Client,
    pods: Api<Pod>,
    workers: Vec<String>,
    _provider: Provider,
    _speaker: Running,
}

impl DataPath {
    /// Opens it; infra's own controller writes the endpoints.
    pub async fn new(fixture: &Fixture) -> Result<Self> {
        Self::with(fixture, &json!({})).await
    }

    /// Opens it with these keys in the cloud-config's section `loadBalancer`, and the rights that any of them needs.
    pub async fn with(fixture: &Fixture, keys: &Value) -> Result<Self> {
        let place = Place::over_workers(fixture).await?;
        place.grant(fixture, "endpoints").await?;
        Ok(Self {
            user: Client::start().await?,
            pods: Api::namespaced(fixture.guest.clone(), &place.namespace),
            workers: fixture.control.workers().await?,
            _provider: place.provider_with("a", CLUSTER_NAME, &[ALONE], keys.clone()).await?,
            _speaker: infra_speaker::start(fixture.infra.clone(), HCP_NAMESPACE),
            place,
        })
    }

    /// Creates a pod `<app>-<number>` on each worker, and waits until all are Ready; their names.
    pub async fn pods(&self, app: &str) -> Result<BTreeSet<String>> {
        let all: Vec<String> = (1..=self.workers.len()).map(|number| format!("{app}-{number}")).collect();
        try_join_all(all.iter().map(|name| self.pod(name))).await?;
        Ok(all.into_iter().collect())
    }

    /// Creates the pod `<app>-<number>` on the worker of that number, counted from 1, and waits until it is Ready.
    pub async fn pod(&self, name: &str) -> Result<()> {
        let (app, number) = name.rsplit_once('-').context("no number in a pod's name")?;
        let worker = number
            .parse::<usize>()?
            .checked_sub(1)
            .and_then(|index| self.workers.get(index))
            .context("no worker of that number")?;
        self.pods.create(&PostParams::default(), &answering_pod(name, app, Some(worker))).await?;
        until(&format!("pod {name} to be Ready"), Deadline::PodStart, async || {
            let pod = self.pods.get(name).await?;
            Ok(if is_ready(&pod) { Ok(()) } else { Err("not Ready".to_owned()) })
        })
        .await
    }

    /// Deletes a pod, and waits until it is gone.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        self.pods.delete(name, &DeleteParams::default()).await?;
        until_gone(&self.pods, name, "pod", Deadline::PodStart).await
    }

    /// Creates a Service that selects the pods of its name, and waits for its address; `spec` replaces fields.
    pub async fn service(&self, name: &str, mut spec: Value) -> Result<IpAddr> {
        spec["selector"] = json!({"app": name});
        self.place.create(name, spec).await?;
        self.place.served(name).await?.parse().context("the load balancer's address")
    }

    /// Creates a Service of both families, or of one that is not the clusters' first, and waits for its addresses.
    pub async fn service_of(&self, name: &str, families: &[&str]) -> Result<Vec<IpAddr>> {
        let policy = if families.len() > 1 { "RequireDualStack" } else { "SingleStack" };
        let spec = json!({"selector": {"app": name}, "ipFamilies": families, "ipFamilyPolicy": policy});
        self.place.create(name, spec).await?;
        until(&format!("addresses of {name}"), Deadline::Reaction, async || {
            let shown = self.place.addresses(name).await?;
            Ok(if shown.len() == families.len() { Ok(shown) } else { Err(format!("it shows {shown:?}")) })
        })
        .await?
        .iter()
        .map(|address| address.parse().context("the load balancer's address"))
        .collect()
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
        for service in self.place.guests.list(&ListParams::default()).await? {
            self.place.guests.delete(&service.name_any(), &DeleteParams::default()).await?;
            until_gone(&self.place.guests, &service.name_any(), "Service", Deadline::Reaction).await?;
        }
        self.pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        self.pods_gone().await
    }

    /// Waits until a Service that was deleted is gone, and all pods with it.
    pub async fn ended(&self, name: &str) -> Result<()> {
        until_gone(&self.place.guests, name, "Service", Deadline::Reaction).await?;
        self.pods_gone().await
    }

    async fn pods_gone(&self) -> Result<()> {
        until("the pods to be gone", Deadline::PodStart, async || {
            let left = self.pods.list(&ListParams::default()).await?.items.len();
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} left")) })
        })
        .await
    }

    /// Sends one request.
    pub async fn ask(
        &self,
        from: impl Into<IpAddr>,
        to: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Result<Answer> {
        self.user.ask(Question { from: from.into(), to: SocketAddr::new(to, port), protocol }).await
    }

    /// Sends [`REQUESTS`] requests, again until all are answered and `wanted` accepts the answers.
    pub async fn until_answered(
        &self,
        what: &str,
        to: IpAddr,
        wanted: impl Fn(&[Answer]) -> bool,
    ) -> Result<()> {
        until(&format!("answers from {what}"), Deadline::Reaction, async || {
            let answers = try_join_all((0..REQUESTS).map(|_| self.user.get(to, PORT))).await?;
            Ok(if wanted(&answers) { Ok(()) } else { Err(format!("{answers:?}")) })
        })
        .await
    }

    /// Waits until a client gets an answer.
    pub async fn answers(
        &self,
        from: impl Into<IpAddr>,
        to: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Result<()> {
        let from = from.into();
        until(&format!("an answer for {from} from {to}:{port}"), Deadline::Reaction, async || {
            self.ask(from, to, port, protocol).await.map(|_| Ok(()))
        })
        .await
    }

    /// Waits until a client gets no more answers.
    pub async fn silent(
        &self,
        from: impl Into<IpAddr>,
        to: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Result<()> {
        let from = from.into();
        until(&format!("no answer for {from} from {to}:{port}"), Deadline::Reaction, async || {
            Ok(match self.ask(from, to, port, protocol).await {
                Ok(answer) => Err(format!("{} answers", answer.pod)),
                Err(_) => Ok(()),
            })
        })
        .await
    }
}
