//! The three-step flow of a load balancer, and its end: a LoadBalancer Service of the guest has its mirror in infra, and what a client
//! sends to its address reaches a pod in a VM; the Service goes, and nobody answers there any more.
//!
//! Infra's load balancer is simulated meanwhile, as far as address and ARP go; kube-proxies, endpoints and all that is between
//! them are real.

use std::{net::IpAddr, time::Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};

use super::{
    Deadline, HCP_NAMESPACE, Narrator,
    service_objects::{PORT, answering_pod, is_ready, load_balancer},
    until, until_gone, while_provided,
};
use crate::{
    client,
    simulator::{fault_plan::FaultPlan, infra_load_balancer, infra_speaker},
};

/// The labels of an infra Service that name the guest Service it mirrors, as kubevirt/cloud-provider-kubevirt sets them.
const TENANT_NAME: &str = "cluster.x-k8s.io/tenant-service-name";
const TENANT_NAMESPACE: &str = "cluster.x-k8s.io/tenant-service-namespace";

/// A step of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The user created a LoadBalancer Service in the guest.
    GuestService,
    /// The cloud controller manager mirrored it in the infra namespace.
    InfraService,
    /// Infra gave the mirror an address, and the guest's Service shows it.
    Address,
    /// A client got an answer from a pod in a VM through that address.
    Answer,
    /// The Service is deleted: infra has no mirror, and nobody answers.
    Deleted,
}

/// One run of the flow.
#[derive(Clone)]
pub struct ThreeSteps<'a> {
    /// A client of the infra cluster.
    pub infra: Client,
    /// A client of the guest cluster.
    pub guest: Client,
    /// The guest namespace to work in; it exists.
    pub namespace: &'a str,
    /// Name of the Service, and of the pod behind it.
    pub name: &'a str,
    /// The worker of the pod.
    pub worker: &'a str,
}

impl ThreeSteps<'_> {
    /// Runs the flow forth and back.
    ///
    /// # Errors
    /// When a step is not seen within its deadline, with the state seen last.
    pub async fn run(&self, narrator: &Narrator<'_, Step>) -> Result<()> {
        let _address = infra_load_balancer::start(self.infra.clone(), HCP_NAMESPACE, FaultPlan::default());
        let _announcement = infra_speaker::start(self.infra.clone(), HCP_NAMESPACE);
        self.pod_is_ready().await?;
        while_provided(&self.infra, self.forth_and_back(narrator)).await?;
        let pods: Api<Pod> = Api::namespaced(self.guest.clone(), self.namespace);
        pods.delete(self.name, &DeleteParams::default()).await?;
        until_gone(&pods, self.name, "pod", Deadline::PodStart).await
    }

    async fn forth_and_back(&self, narrator: &Narrator<'_, Step>) -> Result<()> {
        let user = client::Client::start().await?;
        let started = Instant::now();
        let saw = |step: Step, detail: &str| narrator(step, detail, started.elapsed());
        let services: Api<Service> = Api::namespaced(self.guest.clone(), self.namespace);
        services.create(&PostParams::default(), &load_balancer(self.name)).await?;
        saw(Step::GuestService, &format!("{}/{}", self.namespace, self.name));

        let mirror = self.mirror_appears().await?;
        saw(Step::InfraService, &format!("{HCP_NAMESPACE}/{mirror}"));
        let address = shown_address(&services, self.name).await?;
        saw(Step::Address, &address.to_string());
        let answer = until("an answer through the load balancer", Deadline::Reaction, async || {
            Ok(user.get(address, PORT).await.map_err(|error| format!("{error:#}")))
        })
        .await?;
        saw(Step::Answer, &format!("{} on {} answers {address}", answer.pod, self.worker));

        services.delete(self.name, &DeleteParams::default()).await?;
        until_gone(&services, self.name, "the guest's Service", Deadline::Reaction).await?;
        let mirrors: Api<Service> = Api::namespaced(self.infra.clone(), HCP_NAMESPACE);
        until_gone(&mirrors, &mirror, "the infra Service", Deadline::Reaction).await?;
        let silence = until("the end of the traffic", Deadline::Reaction, async || {
            Ok(match user.get(address, PORT).await {
                Ok(answer) => Err(format!("{} answers", answer.pod)),
                Err(error) => Ok(error.root_cause().to_string()),
            })
        })
        .await?;
        saw(Step::Deleted, &format!("{address}: {silence}"));
        Ok(())
    }

    async fn pod_is_ready(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.guest.clone(), self.namespace);
        let pod = answering_pod(self.name, self.name, Some(self.worker));
        pods.create(&PostParams::default(), &pod).await?;
        until("the pod behind the Service", Deadline::PodStart, async || {
            let pod = pods.get(self.name).await?;
            Ok(if is_ready(&pod) { Ok(()) } else { Err("not Ready".to_owned()) })
        })
        .await
    }

    async fn mirror_appears(&self) -> Result<String> {
        let mirrors: Api<Service> = Api::namespaced(self.infra.clone(), HCP_NAMESPACE);
        let labels = format!("{TENANT_NAMESPACE}={},{TENANT_NAME}={}", self.namespace, self.name);
        let wanted = kube::api::ListParams::default().labels(&labels);
        until("the Service in infra", Deadline::Reaction, async || {
            let found = mirrors.list(&wanted).await?.items;
            Ok(found.first().map(ResourceExt::name_any).ok_or_else(|| "absent".to_owned()))
        })
        .await
    }
}

/// The address that a Service shows, when it does.
async fn shown_address(services: &Api<Service>, name: &str) -> Result<IpAddr> {
    let shown = until("the address in the guest", Deadline::Reaction, async || {
        let status = services.get(name).await?.status.unwrap_or_default();
        let ingress = status.load_balancer.unwrap_or_default().ingress.unwrap_or_default();
        Ok(ingress.first().and_then(|first| first.ip.clone()).ok_or_else(|| "it shows none".to_owned()))
    })
    .await?;
    shown.parse().with_context(|| format!("the Service shows {shown}"))
}
