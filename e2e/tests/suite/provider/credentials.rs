//! Credentials of providers that change, or end, while they run.

use anyhow::Result;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::{
    Place,
    account::{ACCOUNT, Access, GUEST_ACCOUNT_NAMESPACE, access},
};
use crate::bound_token;

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

    /// The usual credentials in the guest, and in infra those of another account of the infra namespace.
    pub async fn access_of(&self, infra: &Client, account: &str) -> Result<Access> {
        Ok(Access {
            infra: access(infra, "infra", (&self.infra_namespace, account), None).await?,
            guest: self.guest_access.clone(),
        })
    }

    /// Credentials of the usual accounts that end with a Secret of this name in both clusters, which it makes.
    pub async fn access_bound_to(&self, infra: &Client, secret: &str) -> Result<Access> {
        let bound = async |client: &Client, cluster: &str, namespace: &str| {
            let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
            access(client, cluster, (namespace, ACCOUNT), Some(bound_token::anchor(&secrets, secret).await?))
                .await
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
