//! The accounts that providers have in both clusters, with the rights of `deploy/cloud-controller-manager`.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use bench::{command::goal::Plan, paths};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams, config::Kubeconfig};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::fixture::Fixture;

/// The account of both halves.
pub(super) const ACCOUNT: &str = "cloud-controller-manager";

/// Where the guest half has its account.
pub(super) const GUEST_ACCOUNT_NAMESPACE: &str = "kube-system";

/// Credentials of a provider in both clusters.
pub struct Access {
    /// In infra.
    pub infra: Kubeconfig,
    /// In the guest.
    pub guest: Kubeconfig,
}

/// The arguments with which kubectl is the administrator of one of the bench's clusters.
pub fn administrator(cluster: &str) -> Vec<String> {
    vec![format!("--kubeconfig={}", paths::kubeconfig().display()), format!("--context={cluster}")]
}

/// Applies the accounts and rights of a folder of `deploy/cloud-controller-manager`, with the credentials in `kubectl_as`.
pub(super) async fn apply(
    fixture: &Fixture,
    part: &str,
    kubectl_as: &[String],
    namespace: Option<&str>,
) -> Result<()> {
    let plan = Plan::read(&fixture.run)?;
    let kubectl = plan.artifacts.programs.path("kubectl")?;
    let folder = paths::repository().join("deploy/cloud-controller-manager").join(part);
    let rendered = tokio::process::Command::new(kubectl).arg("kustomize").arg(&folder).output().await?;
    let mut items: Vec<Value> = serde_saphyr::from_multiple(std::str::from_utf8(&rendered.stdout)?)?;
    items.retain(|object| !matches!(object["kind"].as_str(), Some("Deployment" | "ConfigMap")));
    for object in &mut items {
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
            for subject in object["subjects"].as_array_mut().into_iter().flatten() {
                subject["namespace"] = json!(namespace);
            }
        }
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    kubectl_with(fixture, kubectl_as, &["apply"], &list)
        .await
        .with_context(|| format!("apply {}", folder.display()))
}

/// Runs kubectl with `arguments` and the manifests on its standard input.
pub async fn kubectl_with(
    fixture: &Fixture,
    kubectl_as: &[String],
    arguments: &[&str],
    manifests: &str,
) -> Result<()> {
    let plan = Plan::read(&fixture.run)?;
    let mut kubectl = tokio::process::Command::new(plan.artifacts.programs.path("kubectl")?)
        .args(kubectl_as)
        .args(arguments)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    kubectl.stdin.take().context("no stdin")?.write_all(manifests.as_bytes()).await?;
    let status = kubectl.wait().await?;
    if status.success() { Ok(()) } else { bail!("expected kubectl {arguments:?} to succeed, saw {status}") }
}

/// A kubeconfig of the account: the administrator's with another user, whose token ends with the object to which it is bound, if any.
pub async fn access(
    client: &Client,
    cluster: &str,
    (namespace, account): (&str, &str),
    bound_to: Option<BoundObjectReference>,
) -> Result<Kubeconfig> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let spec = TokenRequestSpec { bound_object_ref: bound_to, ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    let token = answer.status.map(|status| status.token).context("no token in the answer")?;
    let mut admin = Kubeconfig::read_from(paths::kubeconfig())?;
    admin.clusters.retain(|entry| entry.name == cluster);
    let mut admin = serde_json::to_value(admin)?;
    admin["users"] = json!([{"name": "account", "user": {"token": token}}]);
    admin["contexts"] = json!([{"name": cluster, "context": {"cluster": cluster, "user": "account"}}]);
    admin["current-context"] = json!(cluster);
    Ok(serde_json::from_value(admin)?)
}
