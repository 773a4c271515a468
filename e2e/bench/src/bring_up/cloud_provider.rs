//! Installs the cloud controller manager the way an operator does, from the kustomizations of `e2e/installation/cloud-provider`. Its
//! Deployment has no replica: a test that needs it scales the Deployment up (`scenario::while_provided`).

use anyhow::{Context, Result};
use serde_json::Value;

use super::{installation::kubeconfig_secret, manifests::render};
use crate::{artifact::Programs, cluster::Clusters, paths};

/// The folder of both halves.
const FOLDER: &str = "e2e/installation/cloud-provider";

/// The guest's account with which it acts there.
const ACCOUNT: (&str, &str) = ("kube-system", "cloud-controller-manager");

/// The Secret in infra with that account's kubeconfig; the Deployment names it.
const SECRET: &str = "kubeconfig";

/// The rendered manifests of both halves.
#[derive(Clone, Debug)]
pub struct CloudProvider {
    /// The infra half.
    pub infra: Vec<Value>,
    /// The guest half.
    pub tenant: Vec<Value>,
}

impl CloudProvider {
    /// Renders both halves.
    pub async fn render(programs: &Programs) -> Result<Self> {
        let kubectl = programs.path("kubectl")?;
        let [infra, tenant] = ["infra", "tenant"].map(|half| paths::repository().join(FOLDER).join(half));
        let (infra, tenant) = tokio::try_join!(render(kubectl, &infra), render(kubectl, &tenant))?;
        Ok(Self { infra, tenant })
    }

    /// Applies both halves.
    pub async fn apply(&self, clusters: &Clusters) -> Result<()> {
        clusters.tenant.apply(&self.tenant).await.context("apply the cloud provider's tenant manifests")?;
        let secret = kubeconfig_secret(&clusters.tenant, SECRET, ACCOUNT).await?;
        clusters.infra.apply(&[secret]).await.context("apply the cloud provider's kubeconfig")?;
        clusters.infra.apply(&self.infra).await.context("apply the cloud provider's infra manifests")
    }
}
