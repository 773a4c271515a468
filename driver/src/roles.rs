//! From flags to services: which roles this process serves, and what each is made of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use controller::{Controller, ControllerSettings, StorageClassPolicy};
use csi_call::Identity;
use csi_proto::v1::controller_server::ControllerServer;
use csi_proto::v1::identity_server::IdentityServer;
use csi_proto::v1::node_server::NodeServer;
use infra::{GuestGuard, Infra, WriteRate};
use node::Node;
use prometheus_client::registry::Registry;
use serving::shutdown::DRAIN_BOUND;
use serving::{Endpoint, Tasks, Wedged};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::flags::{Flags, path};
use crate::node_identity::OwnNode;
use crate::rights;

/// The driver's name in guest objects (`CSIDriver`, `StorageClass`): that of kubevirt/csi-driver, because under another
/// name its volumes would not be ours.
const DRIVER_NAME: &str = "csi.kubevirt.io";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The roles of this process.
pub struct Roles {
    /// Their services.
    pub routes: Routes,
    controller: Option<Controller>,
    node: Option<Node<OwnNode>>,
    storage_classes: String,
}

/// Calls that only wait are ended this long after the stop. The time that is left is enough for one call, so that a
/// change that is being made can end, and for the last answers and log lines.
const CLOSE_AFTER: Duration = DRAIN_BOUND.saturating_sub(infra::CALL_DEADLINE).saturating_sub(LAST_WORDS);
/// Time for the last answers and log lines, see [`CLOSE_AFTER`].
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Roles {
    /// Makes the chosen roles, without a call to another system: if one can't be reached, the first call shows it.
    pub async fn new(flags: &Flags, registry: &mut Registry, tasks: &Tasks) -> Result<Self> {
        // Both roles report it: these are the plugin's capabilities, not the process's (CSI "GetPluginCapabilities").
        let capabilities = vec![Identity::controller_service()];
        let mut storage_classes = String::new();
        let controller = if flags.run_controller_service {
            Some(controller(flags, registry, &mut storage_classes, tasks).await?)
        } else {
            None
        };
        let identity =
            Identity::new(DRIVER_NAME, VERSION, capabilities).with_wedged(wedged(controller.clone()));
        let mut routes = Routes::new(IdentityServer::new(identity));
        if let Some(controller) = &controller {
            routes = routes.add_service(ControllerServer::new(controller.clone()));
        }
        let node = if flags.run_node_service { Some(node(flags).await?) } else { None };
        if let Some(node) = &node {
            node.register_metrics(registry);
            routes = routes.add_service(NodeServer::new(node.clone()));
        }
        Ok(Self { routes, controller, node, storage_classes })
    }

    /// Returns why the process will not recover by itself, if so. The node role never returns a reason: its threads
    /// hang where the kernel hangs, which a new process does not cure; a metric shows them.
    pub fn wedged(&self) -> Wedged {
        wedged(self.controller.clone())
    }

    /// The effective settings, for the one log line of the start.
    pub fn settings(&self, flags: &Flags) -> String {
        let mut settings = Vec::new();
        if self.controller.is_some() {
            settings.push(format!(
                "controller of infra namespace {}, labels {}, volume prefix {}, infra storage classes: {}",
                flags.infra_cluster_namespace,
                flags.infra_cluster_labels,
                flags.volume_prefix,
                self.storage_classes
            ));
        }
        if self.node.is_some() {
            let format =
                if flags.allow_format_nonzero { "blank disks and unknown data" } else { "blank disks" };
            settings.push(format!("node {}, formats {format} only", flags.node_name));
        }
        settings.join("; ")
    }

    /// After the stop: lets calls finish for [`CLOSE_AFTER`], then ends those that only wait, so that each caller gets
    /// an answer.
    pub fn close_after(&self, stop: CancellationToken, tasks: &Tasks) {
        let Some(controller) = self.controller.clone() else { return };
        tasks.spawn("the end of waiting calls", async move {
            stop.cancelled().await;
            tokio::time::sleep(CLOSE_AFTER).await;
            controller.close();
        });
    }

    /// Waits for calls that outlived their callers, but not longer than `grace`. To be called when no more calls can
    /// come.
    pub async fn finish(&self, grace: Duration) -> Result<()> {
        let controller = async {
            match &self.controller {
                Some(controller) => controller.shutdown(grace).await,
                None => true,
            }
        };
        let node = async {
            match &self.node {
                Some(node) => node.shutdown(grace).await,
                None => true,
            }
        };
        let (controller, node) = tokio::join!(controller, node);
        ensure!(controller, "a call of the controller role is still going on");
        ensure!(node, "a call of the node role is still going on");
        Ok(())
    }
}

fn wedged(controller: Option<Controller>) -> Wedged {
    Arc::new(move || controller.as_ref().and_then(Controller::wedged))
}

async fn controller(
    flags: &Flags,
    registry: &mut Registry,
    shown: &mut String,
    tasks: &Tasks,
) -> Result<Controller> {
    let (storage_classes, unknown) = StorageClassPolicy::parse(&flags.infra_storage_class_enforcement)
        .context("INFRA_STORAGE_CLASS_ENFORCEMENT (key infraStorageClassEnforcement of driver-config)")?;
    if !unknown.is_empty() {
        tracing::warn!(keys = ?unknown, "unknown keys in INFRA_STORAGE_CLASS_ENFORCEMENT have no effect");
    }
    *shown = storage_classes.to_string();
    let infra_settings = infra::InfraSettings {
        kubeconfig: path(&flags.infra_cluster_kubeconfig),
        namespace: flags.infra_cluster_namespace.clone(),
        labels: GuestGuard::parse_labels(&flags.infra_cluster_labels)?,
        volume_prefix: flags.volume_prefix.clone(),
        vm_labels: vm_labels(&flags.infra_vm_labels)?,
        write_rate: WriteRate::of_flags(flags.kube_api_qps, flags.kube_api_burst),
    };
    let infra = Infra::connect(infra_settings, tasks).await?;
    rights::report(infra.clone(), registry, tasks);
    let settings = ControllerSettings {
        driver_name: DRIVER_NAME.to_owned(),
        vendor_version: VERSION.to_owned(),
        storage_classes,
    };
    let controller = Controller::new(infra, settings, tasks);
    controller.register(registry);
    Ok(controller)
}

/// Parses `--infra-vm-labels`; without it no VM has to carry a label.
fn vm_labels(text: &str) -> Result<BTreeMap<String, String>> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    GuestGuard::parse_labels(text)
        .map_err(|_| anyhow!("--infra-vm-labels: {text:?} are not key=value pairs separated by commas"))
}

async fn node(flags: &Flags) -> Result<Node<OwnNode>> {
    let source = OwnNode::open(path(&flags.tenant_cluster_kubeconfig), flags.node_name.clone()).await?;
    let mut settings = node::NodeSettings {
        allow_format_nonzero: flags.allow_format_nonzero,
        ..node::NodeSettings::default()
    };
    // The kubelet reaches the socket, so the socket's folder is on the worker and outlives this container.
    if let Endpoint::Unix(socket) = &flags.endpoint
        && let Some(folder) = socket.parent()
    {
        settings.paths.disk_records = folder.join(node::DISK_RECORDS);
    }
    Ok(Node::new(settings, source))
}
