//! Installs the driver the way an operator does: the kustomizations of `e2e/installation/` (which name `deploy/` as their
//! base and add this guest's namespace and labels) are rendered and applied, and the kubeconfig Secrets that the manifests
//! expect are made from ServiceAccount tokens of the guest.

use std::path::PathBuf;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use serde_json::{Value, json};

use super::manifests::{find, render};
use crate::{
    artifact::Programs,
    cluster::{ApiServer, Clusters},
    paths,
    scenario::{Deadline, HCP_NAMESPACE, until},
};

/// The guest namespace of the driver's objects, as in kubevirt/csi-driver.
pub const TENANT_NAMESPACE: &str = "kubevirt-csi-driver";

/// The controller's Deployment in infra, named as in kubevirt/csi-driver.
pub const CONTROLLER: &str = "kubevirt-csi-controller";

/// Secrets with a kubeconfig under the key `value`, one for each sidecar; the controller itself needs none of the guest's.
const KUBECONFIG_SECRETS: [(&str, &str); 4] = [
    ("kubevirt-csi-provisioner-kubeconfig", "kubevirt-csi-provisioner-sa"),
    ("kubevirt-csi-attacher-kubeconfig", "kubevirt-csi-attacher-sa"),
    ("kubevirt-csi-resizer-kubeconfig", "kubevirt-csi-resizer-sa"),
    ("kubevirt-csi-snapshotter-kubeconfig", "kubevirt-csi-snapshotter-sa"),
];

/// The rendered manifests of both halves.
#[derive(Clone, Debug)]
pub struct Installation {
    /// What goes to the infra cluster.
    pub infra: Vec<Value>,
    /// What goes to the guest cluster.
    pub tenant: Vec<Value>,
}

impl Installation {
    /// Renders both halves.
    pub async fn render(programs: &Programs) -> Result<Self> {
        let kubectl = programs.path("kubectl")?;
        let (infra, tenant) = (folder("infra"), folder("tenant"));
        let (infra, tenant) = tokio::try_join!(render(kubectl, &infra), render(kubectl, &tenant))?;
        Ok(Self { infra, tenant })
    }

    /// Applies both halves.
    pub async fn apply(&self, clusters: &Clusters) -> Result<()> {
        clusters.tenant.apply(&self.tenant).await.context("apply the tenant manifests")?;
        let mut secrets = Vec::new();
        for (secret, account) in KUBECONFIG_SECRETS {
            let account = (TENANT_NAMESPACE, account);
            secrets.push(kubeconfig_secret(&clusters.tenant, secret, account).await?);
        }
        clusters.infra.apply(&secrets).await.context("apply the kubeconfig secrets")?;
        clusters.infra.apply(&self.infra).await.context("apply the infra manifests")
    }

    /// Waits until the controller's Deployment has its replicas available.
    pub async fn controller_is_available(&self, infra: &ApiServer) -> Result<()> {
        let wanted = find(&self.infra, "Deployment", CONTROLLER)?["spec"]["replicas"].as_i64().unwrap_or(1);
        let deployments: Api<Deployment> = Api::namespaced(infra.client.clone(), HCP_NAMESPACE);
        until("the CSI controller", Deadline::PodStart, async || {
            let status = deployments.get(CONTROLLER).await?.status.unwrap_or_default();
            let available = i64::from(status.available_replicas.unwrap_or_default());
            Ok(if available >= wanted {
                Ok(())
            } else {
                Err(format!("{available} of {wanted} replicas available"))
            })
        })
        .await
    }
}

/// A Secret of infra, to be, with the kubeconfig of a guest's account (its namespace and name) under the key `value`.
pub(super) async fn kubeconfig_secret(
    tenant: &ApiServer,
    name: &str,
    (namespace, account): (&str, &str),
) -> Result<Value> {
    let kubeconfig = tenant.service_account_kubeconfig(namespace, account).await?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": HCP_NAMESPACE},
        "stringData": {"value": kubeconfig},
    }))
}

fn folder(half: &str) -> PathBuf {
    paths::repository().join("e2e/installation").join(half)
}
