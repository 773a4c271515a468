//! What earlier tests left of load balancers.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::fixture::Fixture;

/// The label of every mirror, as kubevirt/cloud-provider-kubevirt sets it.
const TENANT_NAME: &str = "cluster.x-k8s.io/tenant-service-name";

/// Removes what earlier tests left of load balancers in both clusters. The caller has the guest's Services alone.
///
/// In infra these are the mirrors in the namespaces of those tests: each load balancer begins with the same address, and
/// infra's kube-proxy would serve it for one of them.
pub async fn remove_left_everywhere(fixture: &Fixture) -> Result<()> {
    remove_left(&fixture.guest).await?;
    remove(&fixture.infra, &ListParams::default().labels(TENANT_NAME)).await
}

/// Removes what an earlier test left in the guest: a provider serves the Services of all namespaces. The caller has the guest's
/// Services alone.
pub(super) async fn remove_left(guest: &Client) -> Result<()> {
    remove(guest, &ListParams::default().fields("spec.type=LoadBalancer")).await
}

/// Deletes the Services that `which` selects in all namespaces; no finalizer holds them.
async fn remove(client: &Client, which: &ListParams) -> Result<()> {
    for service in Api::<Service>::all(client.clone()).list(which).await? {
        let services: Api<Service> =
            Api::namespaced(client.clone(), &service.namespace().context("no namespace")?);
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        services.patch(&service.name_any(), &PatchParams::default(), &free).await?;
        if service.metadata.deletion_timestamp.is_none() {
            services.delete(&service.name_any(), &DeleteParams::default()).await?;
        }
    }
    Ok(())
}
