//! The controller as others install it: their Deployment, ConfigMap, Role and guest rights with all sidecars, in the place of the
//! installed one. The pod is Ready and stays so, and with those rights a volume is made, snapshotted, expanded in its pod, restored
//! and deleted, as far as the installer has the sidecars for it.
//!
//! The manifests beside this file have the shape of each installer's own; what they leave out and why is said in them.

use anyhow::{Context, Result, ensure};
use bench::{
    audit::{AuditLog, Mark},
    bring_up::TENANT_NAMESPACE,
    control::Lock::Workers,
    scenario::{Deadline, HCP_NAMESPACE, until, until_gone},
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ContainerStatus, Node, Pod, Secret},
    storage::v1::CSINode,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::Kubeconfig,
};
use libtest_mimic::Trial;
use serde_json::json;

use crate::{
    fixture::Fixture,
    guest_claims::{
        Claims, GROWN, GROWN_KIB, SIZE, SIZE_KIB, Source, has_grown, has_size_of_source, workers,
    },
    provider::{access, administrator, kubectl_with},
    snapshots::{CLAIM, taken, volume_snapshots},
    stack::instead_of_installed,
    trial::{name, trial},
};

/// What stands for an installation's names in the manifests.
const PLACEHOLDER: &str = "INSTALLATION";

/// The sidecars' account in the guest, and its rights.
const GUEST: &str = include_str!("installers/guest.yaml");

/// The key of a kubeconfig in its Secret.
const KUBECONFIG_KEY: &str = "kubeconfig";

/// The annotation by which Cluster API names the namespace of a Node's Machine, and a namespace that has no VMs.
const MACHINE_NAMESPACE: &str = "cluster.x-k8s.io/cluster-namespace";
const MACHINES: &str = "machines";

/// The label of the node plugin's pods.
const PLUGIN_LABEL: &str = "app=kubevirt-csi-driver";

const SNAPSHOT: &str = "snapshot";
const POD: &str = "writer";
const RESTORED: &str = "restored";
const READER: &str = "reader";

/// Who installs the controller.
struct Installer {
    name: &'static str,
    /// The infra half.
    infra: &'static str,
    /// The infra class of the test's volumes.
    class: &'static str,
    sidecars: Sidecars,
    /// Whether the Nodes name another namespace than that of the VMs.
    is_elsewhere: bool,
    is_short: bool,
}

/// The sidecars that an installer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sidecars {
    /// All four.
    All,
    /// csi-provisioner and csi-attacher.
    ToAttach,
}

impl Sidecars {
    /// The containers of the pod, the driver's included.
    fn containers(self) -> usize {
        match self {
            Self::All => 5,
            Self::ToAttach => 3,
        }
    }
}

const INSTALLERS: [Installer; 6] = [
    Installer {
        name: "hypershift",
        infra: include_str!("installers/hypershift-infra.yaml"),
        class: "block-immediate",
        sidecars: Sidecars::All,
        is_elsewhere: false,
        is_short: true,
    },
    Installer {
        name: "upstream",
        infra: include_str!("installers/upstream-infra.yaml"),
        class: "filesystem-rwo",
        sidecars: Sidecars::All,
        is_elsewhere: false,
        is_short: false,
    },
    Installer {
        name: "kubermatic",
        infra: include_str!("installers/kubermatic-infra.yaml"),
        class: "block-immediate",
        sidecars: Sidecars::All,
        is_elsewhere: false,
        is_short: false,
    },
    Installer {
        name: "kubeone",
        infra: include_str!("installers/kubeone-infra.yaml"),
        class: "block-immediate",
        sidecars: Sidecars::ToAttach,
        is_elsewhere: false,
        is_short: false,
    },
    Installer {
        name: "cozystack",
        infra: include_str!("installers/cozystack-infra.yaml"),
        class: "block-wffc",
        sidecars: Sidecars::All,
        is_elsewhere: false,
        is_short: false,
    },
    Installer {
        name: "capk",
        infra: include_str!("installers/capk-infra.yaml"),
        class: "block-rwo",
        sidecars: Sidecars::All,
        is_elsewhere: true,
        is_short: false,
    },
];

/// A trial for each installer.
pub fn trials() -> Vec<Trial> {
    INSTALLERS
        .into_iter()
        .map(|installer| {
            let name = name(module_path!(), &format!("a_volumes_life_as_{}_installs_it", installer.name));
            let is_short = installer.is_short;
            trial(name, Workers, move |fixture| as_installed(fixture, installer)).with_ignored_flag(!is_short)
        })
        .collect()
}

async fn as_installed(fixture: Fixture, installer: Installer) -> Result<()> {
    Box::pin(instead_of_installed(&fixture, async {
        let installation = Installation::new(&fixture, &installer);
        let result = async {
            if installer.is_elsewhere {
                machines_are_in(&fixture, MACHINES).await?;
            }
            installation.install().await.context("install")?;
            let pod = installation.is_ready().await?;
            a_volumes_life(&fixture, &installer).await?;
            installation.stayed(&pod).await
        };
        let result = result.await;
        let removed = installation.remove().await.context("remove the installation");
        let restored =
            if installer.is_elsewhere { machines_are_in(&fixture, HCP_NAMESPACE).await } else { Ok(()) };
        result.and(removed).and(restored)
    }))
    .await
}

/// Makes all Nodes name another namespace of their Machines, and waits until each driver has registered with it: the driver reads
/// its Node once in its life.
async fn machines_are_in(fixture: &Fixture, namespace: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(fixture.guest.clone());
    let csi_nodes: Api<CSINode> = Api::all(fixture.guest.clone());
    let pods: Api<Pod> = Api::namespaced(fixture.guest.clone(), TENANT_NAMESPACE);
    for worker in fixture.control.workers().await? {
        let annotation = Patch::Merge(json!({"metadata": {"annotations": {MACHINE_NAMESPACE: namespace}}}));
        nodes.patch(&worker, &PatchParams::default(), &annotation).await?;
        let plugin = ListParams::default().labels(PLUGIN_LABEL).fields(&format!("spec.nodeName={worker}"));
        for pod in pods.list(&plugin).await?.items {
            pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
        }
        let wanted = format!("{namespace}/{worker}");
        until(&format!("the node id {wanted}"), Deadline::PodStart, async || {
            let drivers = csi_nodes.get(&worker).await?.spec.drivers;
            let ids: Vec<String> = drivers.into_iter().map(|driver| driver.node_id).collect();
            Ok(if ids.contains(&wanted) { Ok(()) } else { Err(format!("{ids:?}")) })
        })
        .await?;
    }
    Ok(())
}

/// A claim is written, snapshotted, expanded in its pod, restored from the snapshot; all is deleted.
async fn a_volumes_life(fixture: &Fixture, installer: &Installer) -> Result<()> {
    let parameters = [("infraStorageClassName", installer.class)];
    let (claims, mode) = Claims::with_content(fixture, "ext4", &parameters).await?;
    let (first, last) = workers(fixture).await?;
    let volume = claims.create(CLAIM, mode).await?;
    claims.start(POD, CLAIM, &first, mode, true).await?;
    let before = claims.finds_written(POD).await?.kib;
    if installer.sidecars == Sidecars::All {
        is_copied(fixture, &claims, mode, before, &last).await?;
    }
    claims.end(POD).await?;
    claims.start(READER, CLAIM, &last, mode, false).await?;
    claims.finds_written(READER).await.context("the volume on another worker")?;
    claims.end(READER).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

/// A snapshot is taken of the running pod's claim, the claim is expanded, and the snapshot is restored.
async fn is_copied(
    fixture: &Fixture,
    claims: &Claims<'_>,
    mode: &str,
    before: u64,
    worker: &str,
) -> Result<()> {
    let infra_snapshot = taken(fixture, SNAPSHOT).await?;
    claims.request(CLAIM, GROWN).await?;
    let growth = GROWN_KIB - SIZE_KIB;
    claims.finds(POD, "a larger disk", |found| has_grown(before, growth, found.kib)).await?;
    claims.has_capacity(CLAIM, GROWN).await?;

    let restored = claims.create_from(Source::Snapshot(SNAPSHOT), RESTORED, SIZE, mode).await?;
    claims.start(READER, RESTORED, worker, mode, false).await?;
    let found = claims.finds_written(READER).await?;
    ensure!(has_size_of_source(before, found.kib), "expected a restored disk of {before} KiB, saw {found:?}");
    claims.end(READER).await?;
    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    snapshots.delete(SNAPSHOT, &DeleteParams::default()).await?;
    until_gone(&snapshots, SNAPSHOT, "VolumeSnapshot", Deadline::PodStart).await?;
    let infra = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    until_gone(&infra, &infra_snapshot, "infra VolumeSnapshot", Deadline::PodStart).await?;
    claims.delete(RESTORED, &restored).await
}

/// An installation under the test's name.
struct Installation<'a> {
    fixture: &'a Fixture,
    infra: String,
    guest: String,
    containers: usize,
    secrets: Api<Secret>,
    pods: Api<Pod>,
}

impl<'a> Installation<'a> {
    fn new(fixture: &'a Fixture, installer: &Installer) -> Self {
        Self {
            fixture,
            containers: installer.sidecars.containers(),
            infra: installer.infra.replace(PLACEHOLDER, &fixture.word),
            guest: GUEST.replace(PLACEHOLDER, &fixture.word),
            secrets: Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE),
            pods: Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE),
        }
    }

    /// The account that both halves call themselves, with its infra kubeconfig's Secret.
    fn secret_names(&self) -> [String; 2] {
        [self.fixture.word.clone(), format!("{}-infra", self.fixture.word)]
    }

    async fn install(&self) -> Result<()> {
        let Self { fixture, .. } = self;
        kubectl_with(fixture, &administrator("tenant"), &["apply"], &self.guest).await?;
        let [guest_secret, infra_secret] = self.secret_names();
        let account = (TENANT_NAMESPACE, &*fixture.word);
        self.keep(&guest_secret, access(&fixture.guest, "tenant", account, None).await?).await?;
        let in_namespace = ["apply", "--namespace", HCP_NAMESPACE];
        kubectl_with(fixture, &administrator("infra"), &in_namespace, &self.infra).await?;
        // A pod whose Secret comes late waits for it, as kubelet has it.
        let account = (HCP_NAMESPACE, &*fixture.word);
        self.keep(&infra_secret, access(&fixture.infra, "infra", account, None).await?).await
    }

    async fn keep(&self, name: &str, kubeconfig: Kubeconfig) -> Result<()> {
        let secret = json!({
            "metadata": {"name": name},
            "stringData": {KUBECONFIG_KEY: serde_json::to_string(&kubeconfig)?},
        });
        self.secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
        Ok(())
    }

    /// Waits until the pod is Ready; its name.
    async fn is_ready(&self) -> Result<String> {
        let deployments: Api<Deployment> = Api::namespaced(self.fixture.infra.clone(), HCP_NAMESPACE);
        until("the installation to be available", Deadline::PodStart, async || {
            let status = deployments.get(&self.fixture.word).await?.status.unwrap_or_default();
            Ok(if status.available_replicas == Some(1) { Ok(()) } else { Err(self.states().await?) })
        })
        .await?;
        let [pod] = &self.all().await?[..] else { anyhow::bail!("expected one pod of the installation") };
        let name = pod.metadata.name.clone().context("a pod without a name")?;
        ensure!(
            containers(pod).len() == self.containers,
            "expected {} containers, saw {}",
            self.containers,
            self.states().await?
        );
        Ok(name)
    }

    /// Checks that the same pod is Ready, that none of its containers ended, and that infra refused the driver nothing.
    async fn stayed(&self, pod: &str) -> Result<()> {
        let now = self.pods.get(pod).await.context("the pod of the installation")?;
        let all_stayed = containers(&now).iter().all(|status| status.ready && status.restart_count == 0);
        ensure!(all_stayed, "expected all containers to stay ready, saw {}", self.states().await?);
        let log = AuditLog::at(self.fixture.run.join("logs/infra-audit.log"), self.fixture.infra.clone());
        let account = format!("system:serviceaccount:{HCP_NAMESPACE}:{}", self.fixture.word);
        let calls = log.since(Mark::START).await?.of_user(&account);
        ensure!(!calls.is_empty(), "expected infra calls of {account}, saw none");
        let denied = calls.denied();
        ensure!(denied.is_empty(), "expected no refused call, saw {:?}", denied.by_kind());
        Ok(())
    }

    async fn remove(&self) -> Result<()> {
        let Self { fixture, .. } = self;
        let in_namespace = ["delete", "--namespace", HCP_NAMESPACE, "--ignore-not-found"];
        kubectl_with(fixture, &administrator("infra"), &in_namespace, &self.infra).await?;
        until("the pods of the installation to be gone", Deadline::PodStart, async || {
            Ok(if self.all().await?.is_empty() { Ok(()) } else { Err(self.states().await?) })
        })
        .await?;
        for name in self.secret_names() {
            gone(self.secrets.delete(&name, &DeleteParams::default()).await)?;
        }
        kubectl_with(fixture, &administrator("tenant"), &["delete", "--ignore-not-found"], &self.guest).await
    }

    async fn all(&self) -> Result<Vec<Pod>> {
        let labelled = ListParams::default().labels(&format!("app={}", self.fixture.word));
        Ok(self.pods.list(&labelled).await?.items)
    }

    /// What the containers do, for errors.
    async fn states(&self) -> Result<String> {
        let pods = self.all().await?;
        let states = pods.iter().flat_map(containers).map(|status| {
            format!("{} ready: {}, restarts: {}", status.name, status.ready, status.restart_count)
        });
        Ok(states.collect::<Vec<_>>().join("; "))
    }
}

fn containers(pod: &Pod) -> &[ContainerStatus] {
    pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default()
}

/// A deletion's result, where the object may be gone already.
fn gone<T>(result: kube::Result<T>) -> Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => Ok(result.map(drop)?),
    }
}
