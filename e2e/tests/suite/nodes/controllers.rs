//! The Node controllers, running with rights that installers give.

use std::sync::Arc;

use anyhow::{Context, Result};
use bench::scenario::HCP_NAMESPACE;
use ccm::{
    infra::machines::{feed::Feed, index::MachineIndex, reads::InfraReads},
    nodes::{
        controller::{NodeController, Settings},
        metrics::NodeMetrics,
    },
    queue_metrics::QueueMetrics,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fixture::Fixture;

/// The user of the controllers in the guest.
const GUEST_USER: &str = "bench:node-controllers";

/// Rights in infra, as installers give them.
#[derive(Clone, Copy)]
pub enum Rights {
    /// The role and the cluster role of kubevirt/cloud-provider-kubevirt.
    Reference,
    /// `HyperShift`'s role: no nodes.
    HyperShift,
    /// Those without watch: VMs and instances are listed.
    NoWatch,
}

/// The running controllers; they end when this is dropped.
pub struct Controllers {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Controllers {
    /// Starts them with their defaults.
    pub async fn start(fixture: &Fixture, rights: Rights) -> Result<Self> {
        Self::with(fixture, rights, Settings::default()).await
    }

    /// Starts them.
    pub async fn with(fixture: &Fixture, rights: Rights, settings: Settings) -> Result<Self> {
        let user = grant(fixture, rights).await?;
        let reads = InfraReads::new(fixture.infra_as(&user).await?, HCP_NAMESPACE);
        let index = Arc::new(MachineIndex::default());
        let feed = Feed::new(reads.clone(), Arc::clone(&index));
        let guest = fixture.guest_as(GUEST_USER).await?;
        let parts = (index, feed.clone());
        let queue = QueueMetrics::default().queue("Nodes");
        let controller = NodeController::new(settings, guest, reads, parts, NodeMetrics::default(), queue);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = feed.run() => {}
                () = controller.run(stopped) => {}
            }
        });
        Ok(Self { stop, task })
    }

    /// Ends them, as the program does.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        (&mut self.task).await.context("the controllers' task")
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rights {
    /// In a word, for names.
    pub fn word(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::HyperShift => "hypershift",
            Self::NoWatch => "no-watch",
        }
    }

    fn rules(self) -> Value {
        let rule = |resource: &str, verbs: &[&str]| json!({"apiGroups": ["kubevirt.io"], "resources": [resource], "verbs": verbs});
        match self {
            Self::Reference | Self::HyperShift => json!([
                rule("virtualmachines", &["get", "list", "watch"]),
                rule("virtualmachineinstances", &["get", "list", "watch", "update"]),
            ]),
            Self::NoWatch => json!([
                rule("virtualmachines", &["get", "list"]),
                rule("virtualmachineinstances", &["get", "list"]),
            ]),
        }
    }
}

/// Gives the rights in both clusters; returns the user that has them in infra.
async fn grant(fixture: &Fixture, rights: Rights) -> Result<String> {
    let user = format!("bench:ccm-{}", rights.word());
    let name = format!("bench-ccm-{}", rights.word());
    let subjects =
        |user: &str| json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}]);
    let refers =
        |kind: &str, name: &str| json!({"kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name});
    let meta = json!({"name": name});
    let (infra, guest) = (&fixture.infra, &fixture.guest);
    let namespaced = (
        Api::<Role>::namespaced(infra.clone(), HCP_NAMESPACE),
        Api::<RoleBinding>::namespaced(infra.clone(), HCP_NAMESPACE),
    );
    ensure_there(&namespaced.0, &name, json!({"metadata": meta, "rules": rights.rules()})).await?;
    let binding = json!({"metadata": meta, "subjects": subjects(&user), "roleRef": refers("Role", &name)});
    ensure_there(&namespaced.1, &name, binding).await?;
    if matches!(rights, Rights::Reference) {
        let rules = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]);
        cluster_wide(infra, &name, rules, subjects(&user)).await?;
    }
    let rules = json!([
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch", "update", "patch", "delete"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch", "update"]},
    ]);
    cluster_wide(guest, "bench-ccm-nodes", rules, subjects(GUEST_USER)).await?;
    Ok(user)
}

async fn cluster_wide(client: &Client, name: &str, rules: Value, subjects: Value) -> Result<()> {
    let meta = json!({"name": name});
    let cluster_roles: Api<ClusterRole> = Api::all(client.clone());
    ensure_there(&cluster_roles, name, json!({"metadata": meta, "rules": rules})).await?;
    let refers = json!({"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": name});
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    ensure_there(&bindings, name, json!({"metadata": meta, "subjects": subjects, "roleRef": refers})).await
}

async fn ensure_there<K>(api: &Api<K>, name: &str, object: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    if api.get_opt(name).await?.is_none() {
        api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    }
    Ok(())
}
