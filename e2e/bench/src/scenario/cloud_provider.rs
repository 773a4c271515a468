//! The cloud controller manager as it is installed in the bench, running for the time of a scenario.

use anyhow::Result;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{Deadline, HCP_NAMESPACE, until};

/// Its Deployment in infra, named as in kubevirt/cloud-provider-kubevirt.
const DEPLOYMENT: &str = "kubevirt-cloud-controller-manager";

/// The label of its pods.
const POD_LABEL: &str = "app=cloud-controller-manager";

/// Does `work` while one replica runs, which is over when this returns.
///
/// # Errors
/// Those of `work`, or when the replica does not become available, or does not end.
pub async fn while_provided<T>(infra: &Client, work: impl Future<Output = Result<T>>) -> Result<T> {
    let outcome = async {
        scale(infra, 1).await?;
        available(infra).await?;
        work.await
    };
    let outcome = outcome.await;
    scale(infra, 0).await?;
    gone(infra).await?;
    outcome
}

async fn scale(infra: &Client, replicas: i32) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(infra.clone(), HCP_NAMESPACE);
    let scale = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch_scale(DEPLOYMENT, &PatchParams::default(), &scale).await?;
    Ok(())
}

async fn available(infra: &Client) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(infra.clone(), HCP_NAMESPACE);
    until("the cloud controller manager", Deadline::PodStart, async || {
        let status = deployments.get(DEPLOYMENT).await?.status.unwrap_or_default();
        let available = status.available_replicas.unwrap_or_default();
        Ok(if available > 0 { Ok(()) } else { Err("no replica is available".to_owned()) })
    })
    .await
}

async fn gone(infra: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(infra.clone(), HCP_NAMESPACE);
    until("the end of the cloud controller manager's pod", Deadline::PodStart, async || {
        let left = pods.list(&ListParams::default().labels(POD_LABEL)).await?.items.len();
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} left")) })
    })
    .await
}
