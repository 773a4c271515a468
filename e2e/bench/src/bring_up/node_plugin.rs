//! The node role in a worker: the pod that the guest's own controller manager makes from `deploy/`'s DaemonSet and that the
//! worker's kubelet runs. This module waits for it, and keeps its logs beside those of the bench's parts.

use std::{fs::OpenOptions, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use futures::io::AllowStdIo;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{ContainerStatus, Pod},
    storage::v1::CSINode,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, LogParams},
};
use tokio_util::task::AbortOnDropHandle;

use super::installation::TENANT_NAMESPACE;
use crate::{
    paths::Run,
    scenario::{Deadline, until},
};

/// The label of the DaemonSet's pods in `deploy/`.
const POD_LABEL: &str = "app=kubevirt-csi-driver";

/// The driver's container in it.
pub const DRIVER_CONTAINER: &str = "csi-driver";

/// The registrar's container in it.
pub const REGISTRAR_CONTAINER: &str = "csi-node-driver-registrar";

/// The driver's name in the guest's `CSINode` objects.
const DRIVER: &str = "csi.kubevirt.io";

/// The plugin's directory on the node; pods see it as `/csi` (the manifest's `plugin-dir` volume).
pub const PLUGIN_FOLDER: &str = "/var/lib/kubelet/plugins/csi.kubevirt.io";

/// Lines of a log that an error message quotes.
const LOG_LINES: i64 = 15;

/// Until the log of a container that does not run is checked again.
const LOG_RETRY: Duration = Duration::from_secs(1);

/// The node plugin of one worker.
#[derive(Clone, Debug)]
pub struct NodePlugin {
    pods: Api<Pod>,
    nodes: Api<CSINode>,
    worker: String,
}

impl NodePlugin {
    /// The plugin of `worker` in the guest cluster that `guest` administers.
    pub fn new(guest: &Client, worker: &str) -> Self {
        Self {
            pods: Api::namespaced(guest.clone(), TENANT_NAMESPACE),
            nodes: Api::all(guest.clone()),
            worker: worker.to_owned(),
        }
    }

    /// Its pod, once there is one.
    pub async fn pod(&self) -> Result<Option<Pod>> {
        let on_worker = format!("spec.nodeName={}", self.worker);
        let params = ListParams::default().labels(POD_LABEL).fields(&on_worker);
        Ok(self
            .pods
            .list(&params)
            .await?
            .items
            .into_iter()
            .find(|pod| pod.metadata.deletion_timestamp.is_none()))
    }

    /// Waits until its pod is Ready and kubelet has registered the driver.
    ///
    /// # Errors
    /// When that does not happen in time; the error quotes the ends of the containers' logs.
    pub async fn wait_until_serving(&self) -> Result<()> {
        let what = format!("the node plugin on {}", self.worker);
        let waited = until(&what, Deadline::PodStart, async || {
            let Some(pod) = self.pod().await? else { return Ok(Err("no pod".to_owned())) };
            if !is_ready(&pod) {
                return Ok(Err(format!("{} is not Ready: {}", pod.name_any(), states(&pod))));
            }
            let registered = self.nodes.get_opt(&self.worker).await?.map(|node| node.spec.drivers);
            let registered = registered.into_iter().flatten().any(|driver| driver.name == DRIVER);
            Ok(if registered { Ok(()) } else { Err("kubelet has not registered the driver".to_owned()) })
        });
        match waited.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.log_tails().await)),
        }
    }

    /// The id of the driver's container that runs now, or ran last.
    pub async fn container(&self) -> Result<Option<String>> {
        let pod = self.pod().await?;
        let driver = pod.iter().flat_map(statuses).find(|status| status.name == DRIVER_CONTAINER);
        Ok(driver.and_then(|status| status.container_id.clone()))
    }

    /// Waits until kubelet reports another container than `before`: a worker that was reset has none of its old ones.
    pub async fn wait_until_replaced(&self, before: Option<&str>) -> Result<()> {
        until(&format!("a new node plugin on {}", self.worker), Deadline::PodStart, async || {
            let now = self.container().await?;
            Ok(if now.is_some() && now.as_deref() != before { Ok(()) } else { Err(format!("{now:?}")) })
        })
        .await
    }

    /// Copies its containers' logs, as long as the handles live, to `node-<worker>-<container>.log` of the run.
    pub fn keep_logs(&self, run: &Run) -> Vec<AbortOnDropHandle<()>> {
        let keep = |container: &'static str| {
            let log = run.logs().join(format!("node-{}-{container}.log", self.worker));
            AbortOnDropHandle::new(tokio::spawn(self.clone().keep_log(container, log)))
        };
        [DRIVER_CONTAINER, REGISTRAR_CONTAINER].map(keep).into()
    }

    async fn keep_log(self, container: &'static str, log: PathBuf) {
        let mut before: Option<(String, Timestamp)> = None;
        loop {
            if let Err(error) = self.follow(container, &log, &mut before).await {
                tracing::debug!(worker = self.worker, container, "no log: {error:#}");
            }
            tokio::time::sleep(LOG_RETRY).await;
        }
    }

    /// Copies the log of the container that runs now until it ends; of the one of the last copy (`before`) only what is new.
    async fn follow(
        &self,
        container: &str,
        log: &PathBuf,
        before: &mut Option<(String, Timestamp)>,
    ) -> Result<()> {
        let pod = self.pod().await?.context("no pod")?;
        let status = statuses(&pod).iter().find(|status| status.name == container).context("no status")?;
        let id = status.container_id.clone().context("not started")?;
        let since_time = before.as_ref().filter(|(last, _)| *last == id).map(|(_, end)| *end);
        let params = LogParams {
            container: Some(container.to_owned()),
            follow: true,
            since_time,
            ..LogParams::default()
        };
        let lines = self.pods.log_stream(&pod.name_any(), &params).await?;
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let copied = futures::io::copy(lines, &mut AllowStdIo::new(file)).await;
        *before = Some((id, Timestamp::now()));
        copied.map(drop).context("copy the log")
    }

    /// The ends of its containers' logs, for error messages.
    async fn log_tails(&self) -> String {
        let name = match self.pod().await {
            Ok(Some(pod)) => pod.name_any(),
            Ok(None) => return format!("no pod of the node plugin on {}", self.worker),
            Err(error) => return format!("no logs: {error:#}"),
        };
        let mut tails = Vec::new();
        for container in [DRIVER_CONTAINER, REGISTRAR_CONTAINER] {
            let params = LogParams {
                container: Some(container.to_owned()),
                tail_lines: Some(LOG_LINES),
                ..LogParams::default()
            };
            let tail = self.pods.logs(&name, &params).await;
            let tail = tail.unwrap_or_else(|error| format!("no log: {error}"));
            tails.push(format!("{name}, {container}:\n{}", tail.trim_end()));
        }
        tails.join("\n")
    }
}

fn statuses(pod: &Pod) -> &[ContainerStatus] {
    let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    status.unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why the containers do not run.
fn states(pod: &Pod) -> String {
    let waiting = statuses(pod).iter().filter_map(|status| {
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
        Some(format!(
            "{} {} {}",
            status.name,
            waiting.reason.as_deref()?,
            waiting.message.as_deref().unwrap_or("")
        ))
    });
    waiting.collect::<Vec<_>>().join("; ")
}
