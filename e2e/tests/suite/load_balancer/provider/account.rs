//! The accounts that providers have in both clusters, with the rights of `deploy/cloud-controller-manager`.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use bench::{command::goal::Plan, paths};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Secret, ServiceAccount},
};
use kube::{Api, Client, api::PostParams, config::Kubeconfig};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{GUEST_ACCOUNT_NAMESPACE, Place};
use crate::{bound_token, fixture::Fixture};

/// The account of both halves.
pub(super) const ACCOUNT: &str = "cloud-controller-manager";

/// Credentials of a provider in both clusters.
pub struct Access {
    /// In infra.
    pub infra: Kubeconfig,
    /// In the guest.
    pub guest: Kubeconfig,
}

impl Place {
    /// Puts other credentials where a provider has its own, as kubelet does with a Secret's files: whole, or not at all.
    pub async fn replace_access(&self, suffix: &str, access: &Access) -> Result<()> {
        for (what, kubeconfig) in [("infra", &access.infra), ("guest", &access.guest)] {
            let (file, new) = (self.file(suffix, what), self.file(suffix, &format!("{what}.new")));
            tokio::fs::write(&new, serde_json::to_vec(kubeconfig)?).await?;
            tokio::fs::rename(&new, &file).await?;
        }
        Ok(())
    }

    /// Credentials of the usual accounts that end with a Secret of this name in both clusters, which it makes.
    pub async fn access_bound_to(&self, infra: &Client, secret: &str) -> Result<Access> {
        let bound = async |client: &Client, cluster: &str, namespace: &str| {
            let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
            access(client, cluster, namespace, Some(bound_token::anchor(&secrets, secret).await?)).await
        };
        Ok(Access {
            infra: bound(infra, "infra", &self.infra_namespace).await?,
            guest: bound(&self.guest, "tenant", GUEST_ACCOUNT_NAMESPACE).await?,
        })
    }

    /// Ends such credentials, and waits until both API servers refuse them, which remember them for some seconds.
    pub async fn end_access(&self, infra: &Client, secret: &str, access: Access) -> Result<()> {
        let ends = [
            (infra, self.infra_namespace.as_str(), access.infra),
            (&self.guest, GUEST_ACCOUNT_NAMESPACE, access.guest),
        ];
        for (client, namespace, kubeconfig) in ends {
            let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
            bound_token::end(&secrets, secret, kubeconfig).await?;
        }
        Ok(())
    }
}

/// The arguments with which kubectl is the administrator of one of the bench's clusters.
pub(super) fn administrator(cluster: &str) -> Vec<String> {
    vec![format!("--kubeconfig={}", paths::kubeconfig().display()), format!("--context={cluster}")]
}

/// Applies the accounts and rights of a folder of `deploy/cloud-controller-manager`, as who `kubectl_as` is.
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
    let mut apply = tokio::process::Command::new(kubectl)
        .args(kubectl_as)
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    apply.stdin.take().context("no stdin")?.write_all(list.as_bytes()).await?;
    let status = apply.wait().await?;
    if status.success() { Ok(()) } else { bail!("kubectl apply of {}: {status}", folder.display()) }
}

/// A kubeconfig of the account: the administrator's with another user, whose token ends with an object where it is bound to one.
pub(super) async fn access(
    client: &Client,
    cluster: &str,
    namespace: &str,
    bound_to: Option<BoundObjectReference>,
) -> Result<Kubeconfig> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let spec = TokenRequestSpec { bound_object_ref: bound_to, ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?;
    let token = answer.status.map(|status| status.token).context("no token in the answer")?;
    let mut admin = Kubeconfig::read_from(paths::kubeconfig())?;
    admin.clusters.retain(|entry| entry.name == cluster);
    let mut admin = serde_json::to_value(admin)?;
    admin["users"] = json!([{"name": "account", "user": {"token": token}}]);
    admin["contexts"] = json!([{"name": cluster, "context": {"cluster": cluster, "user": "account"}}]);
    admin["current-context"] = json!(cluster);
    Ok(serde_json::from_value(admin)?)
}
