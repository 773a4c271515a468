//! The credentials of providers.

use anyhow::{Context, Result};
use bench::{
    paths,
    scenario::{Deadline, until},
};
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use super::{ACCOUNT, GUEST_ACCOUNT_NAMESPACE, Place};

/// HTTP: the credentials are nobody's.
const UNAUTHORIZED: u16 = 401;

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
            let object = serde_json::from_value(json!({"metadata": {"name": secret}}))?;
            let uid = secrets.create(&PostParams::default(), &object).await?.uid();
            let object = json!({"apiVersion": "v1", "kind": "Secret", "name": secret, "uid": uid});
            let request = json!({"spec": {"audiences": [], "boundObjectRef": object}});
            access(client, cluster, namespace, &serde_json::from_value(request)?).await
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
            secrets.delete(secret, &DeleteParams::default()).await?;
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            let client = Client::try_from(config)?;
            until("the end of a token", Deadline::Reaction, async || {
                Ok(match client.apiserver_version().await {
                    Err(kube::Error::Api(status)) if status.code == UNAUTHORIZED => Ok(()),
                    answer => Err(format!("{answer:?}")),
                })
            })
            .await?;
        }
        Ok(())
    }
}

/// A kubeconfig of the account: the administrator's with another user.
pub(super) async fn access(
    client: &Client,
    cluster: &str,
    namespace: &str,
    request: &TokenRequest,
) -> Result<Kubeconfig> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = accounts.create_token_request(ACCOUNT, &PostParams::default(), request).await?;
    let token = answer.status.map(|status| status.token).context("no token in the answer")?;
    let mut admin = Kubeconfig::read_from(paths::kubeconfig())?;
    admin.clusters.retain(|entry| entry.name == cluster);
    let mut admin = serde_json::to_value(admin)?;
    admin["users"] = json!([{"name": "account", "user": {"token": token}}]);
    admin["contexts"] = json!([{"name": cluster, "context": {"cluster": cluster, "user": "account"}}]);
    admin["current-context"] = json!(cluster);
    Ok(serde_json::from_value(admin)?)
}
