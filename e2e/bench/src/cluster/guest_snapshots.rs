//! Snapshots in the guest cluster, as its administrator installs them: their kinds and snapshot-controller, once for all drivers, with the
//! rights that its project documents. csi-snapshotter belongs to the driver and comes with its installation.

use anyhow::{Context, Result};

use super::{ApiServer, infra_storage};
use crate::{
    artifact::Programs,
    supervise::{ProcessSpec, Supervisor},
};

/// The program and the account that its manifests give it.
const CONTROLLER: &str = "snapshot-controller";
/// The namespace of that account.
const NAMESPACE: &str = "kube-system";

/// Defines the kinds and starts snapshot-controller. It elects no leader: it is alone.
///
/// # Errors
/// When the guest cluster refuses an object, or the program does not start.
pub(super) async fn start(supervisor: &Supervisor, programs: &Programs, tenant: &ApiServer) -> Result<()> {
    infra_storage::define_snapshots(programs, tenant).await?;
    let rights = infra_storage::documented_rights(programs, CONTROLLER, NAMESPACE)?;
    tenant.apply(&rights).await.context("create the account of the guest's snapshot-controller")?;
    let account = tenant.write_service_account(NAMESPACE, CONTROLLER).await?;
    supervisor.start(&ProcessSpec {
        name: format!("tenant-{CONTROLLER}"),
        program: programs.path(CONTROLLER)?.to_owned(),
        args: vec![
            format!("--kubeconfig={}", account.display()),
            infra_storage::retry_limit(),
            "--v=2".to_owned(),
        ],
        ..ProcessSpec::default()
    })?;
    Ok(())
}
