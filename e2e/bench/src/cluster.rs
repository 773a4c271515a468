//! The two clusters: infra (with KubeVirt and CDI) and guest, from real programs, as processes of the sandbox.
//!
//! ```text
//! etcd ─┬─ infra-kube-apiserver  ── controller manager, scheduler, virt-api, virt-controller, cdi-apiserver, cdi-controller
//!       └─ tenant-kube-apiserver ── controller manager, scheduler
//! ```
//!
//! The sidecars of infra's storage are real too; the CSI plugin that they call is `simulator`'s. No kubelet runs in infra: its nodes,
//! pods and virt-handler are `simulator`'s. Its kube-proxy is real and starts once
//! there are nodes (`service_proxy`). The guest's nodes are the
//! VMs of `vm`. RBAC and the Node authorizer are on in both, and both write an audit log.

mod access;
mod api_server;
mod apply;
mod cdi;
mod controllers;
mod etcd;
mod guest_snapshots;
mod infra_storage;
mod kubeconfig;
mod kubevirt;
mod objects;
pub mod pki;
pub mod service_proxy;
pub mod storage_classes;
pub mod wait;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;

pub use access::{ADMIN, ApiServer};
use api_server::ApiServerSpec;
pub use apply::FIELD_MANAGER;

use crate::{artifact::Programs, paths, report::Progress, sandbox::network, supervise::Supervisor};

/// The infra namespace that holds the guest's VMs and volumes.
pub const HCP_NAMESPACE: &str = "hcp-guest";

/// The infra cluster's API server.
const INFRA: ApiServerSpec = ApiServerSpec {
    name: "infra",
    address: network::INFRA_API,
    port: 6443,
    service_ranges: "10.96.0.0/16,fd00:10:96::/112",
    service_address: Ipv4Addr::new(10, 96, 0, 1),
    memory: [("GOGC", "100"), ("GOMEMLIMIT", "2500MiB")],
    etcd: etcd::URL,
    more: &[],
};

/// The guest cluster's API server: no large CRDs, so a smaller cap.
const TENANT: ApiServerSpec = ApiServerSpec {
    name: "tenant",
    address: network::TENANT_API,
    port: 6444,
    service_ranges: "10.97.0.0/16,fd00:10:97::/112",
    service_address: Ipv4Addr::new(10, 97, 0, 1),
    memory: [("GOGC", "100"), ("GOMEMLIMIT", "1200MiB")],
    etcd: etcd::URL,
    more: &[],
};

/// Another guest cluster, which a test starts: an API server and nothing else.
const ANOTHER_TENANT: ApiServerSpec = ApiServerSpec { name: "another-tenant", port: 6445, ..TENANT };

/// The same with an etcd of its own, which holds some GiB. Without a cache of Services the server has each of them in memory only
/// while it is read; and there are more node ports than by default, one for each Service.
const LARGE_TENANT: ApiServerSpec = ApiServerSpec {
    etcd: etcd::LARGE_URL,
    more: &["--watch-cache-sizes=services#0", "--service-node-port-range=20000-32767"],
    ..ANOTHER_TENANT
};

/// How the clusters differ from one bench to the next.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// KubeVirt's feature gates. None: hotplug is a change of the VM's spec (`DeclarativeHotplugVolumes`, the default
    /// of 1.9); `HotplugVolumes`: it goes through the VM's `status.volumeRequests`, as in 1.8 and before.
    pub kubevirt_feature_gates: Vec<String>,
    /// The socket of the infra storage's CSI plugin, which serves already.
    pub infra_storage: PathBuf,
}

/// Both clusters. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Clusters {
    /// The cluster whose VMs are the guest's nodes.
    pub infra: ApiServer,
    /// The cluster whose users ask for volumes.
    pub tenant: ApiServer,
}

impl Clusters {
    /// Writes the file of [`paths::kubeconfig`]; the namespace of `infra` is [`HCP_NAMESPACE`].
    fn write_kubeconfig(&self) -> Result<()> {
        let entries = [self.tenant.admin_entry("default"), self.infra.admin_entry(HCP_NAMESPACE)];
        pki::write_private(&paths::kubeconfig(), &kubeconfig::render(&entries)?)
    }
}

/// Boots both clusters inside the sandbox; returns when every part of them has shown that it works.
///
/// # Errors
/// With the name, the state last seen and the end of the log of the part that did not come up. What runs by then is the
/// supervisor's to stop.
pub async fn start(
    supervisor: &Supervisor,
    programs: &Programs,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Clusters> {
    progress.step("starting etcd and both API servers");
    let etcd = etcd::start(supervisor, programs)?;
    let servers = async {
        tokio::try_join!(
            api_server::start(supervisor, programs, &INFRA),
            api_server::start(supervisor, programs, &TENANT),
        )
    };
    let (infra, tenant) = wait::alive(&etcd, servers).await?;
    let clusters = Clusters { infra, tenant };
    clusters.write_kubeconfig()?;
    progress.step("both API servers are ready; starting controllers, KubeVirt and CDI");
    let infra = async {
        let foundation = async {
            tokio::try_join!(
                controllers::start(supervisor, programs, &clusters.infra, controllers::INFRA_CONTROLLERS),
                storage_classes::install(&clusters.infra),
                create_hcp_namespace(&clusters.infra),
            )
        };
        // CDI asks once whether there are snapshots, so their definitions come first.
        let storage_and_cdi = async {
            infra_storage::define_snapshots(programs, &clusters.infra).await?;
            tokio::try_join!(
                infra_storage::start(supervisor, programs, &clusters.infra, &options.infra_storage),
                storage_classes::install_snapshot_class(&clusters.infra),
                cdi::start(supervisor, programs, &clusters.infra, progress),
            )
        };
        tokio::try_join!(
            foundation,
            kubevirt::start(supervisor, programs, &clusters.infra, &options.kubevirt_feature_gates, progress),
            storage_and_cdi,
        )?;
        storage_classes::describe_to_cdi(&clusters.infra).await
    };
    let tenant = async {
        let controllers =
            controllers::start(supervisor, programs, &clusters.tenant, controllers::TENANT_CONTROLLERS);
        tokio::try_join!(controllers, guest_snapshots::start(supervisor, programs, &clusters.tenant))
    };
    tokio::try_join!(infra, tenant)?;
    progress.step("both clusters are up");
    Ok(clusters)
}

/// Starts the API server of another guest cluster beside a bench that is up, without controllers and nodes; `supervisor` is the
/// caller's own, and the caller stops it.
///
/// # Errors
/// When it does not get ready.
pub async fn start_another_tenant(supervisor: &Supervisor, programs: &Programs) -> Result<ApiServer> {
    api_server::start(supervisor, programs, &ANOTHER_TENANT).await
}

/// As [`start_another_tenant`], one whose objects may have some GiB; `data` is an empty folder on disk.
///
/// # Errors
/// When it does not get ready.
pub async fn start_large_tenant(
    supervisor: &Supervisor,
    programs: &Programs,
    data: &Path,
) -> Result<ApiServer> {
    let etcd = etcd::start_large(supervisor, programs, data)?;
    wait::alive(&etcd, api_server::start(supervisor, programs, &LARGE_TENANT)).await
}

async fn create_hcp_namespace(infra: &ApiServer) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HCP_NAMESPACE}});
    infra.apply(&[namespace]).await.context("create the namespace of the tenant's VMs")
}
