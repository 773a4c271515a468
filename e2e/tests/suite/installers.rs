//! The controller as others install it: their Deployment, ConfigMap, Role and guest rights with all sidecars, in the place of the
//! installed one. The pod is Ready and stays so, and with those rights a volume is made, snapshotted, expanded in its pod, restored
//! and deleted.
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
    core::v1::{ContainerStatus, Pod, Secret},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
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

/// The driver and its four sidecars.
const CONTAINERS: usize = 5;

const SNAPSHOT: &str = "snapshot";
const POD: &str = "writer";
const RESTORED: &str = "restored";
const READER: &str = "reader";

/// Who installs the controller: the name, the infra half, the infra class of the test's volumes, and whether it is in the short list.
struct Installer {
    name: &'static str,
    infra: &'static str,
    class: &'static str,
    is_short: bool,
}

const INSTALLERS: [Installer; 3] = [
    Installer {
        name: "hypershift",
        infra: include_str!("installers/hypershift-infra.yaml"),
        class: "block-immediate",
        is_short: true,
    },
    Installer {
        name: "upstream",
        infra: include_str!("installers/upstream-infra.yaml"),
        class: "filesystem-rwo",
        is_short: false,
    },
    Installer {
        name: "kubermatic",
        infra: include_str!("installers/kubermatic-infra.yaml"),
        class: "block-immediate",
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
        let installation = Installation::new(&fixture, installer.infra);
        let result = async {
            installation.install().await.context("install")?;
            let pod = installation.is_ready().await?;
            a_volumes_life(&fixture, installer.class).await?;
            installation.stayed(&pod).await
        };
        let result = result.await;
        let removed = installation.remove().await.context("remove the installation");
        result.and(removed)
    }))
    .await
}

/// A claim is written, snapshotted, expanded in its pod, restored from the snapshot; all is deleted.
async fn a_volumes_life(fixture: &Fixture, class: &str) -> Result<()> {
    let (claims, mode) = Claims::with_content(fixture, "ext4", &[("infraStorageClassName", class)]).await?;
    let (first, last) = workers(fixture).await?;
    let volume = claims.create(CLAIM, mode).await?;
    claims.start(POD, CLAIM, &first, mode, true).await?;
    let before = claims.finds_written(POD).await?.kib;

    let infra_snapshot = taken(fixture, SNAPSHOT).await?;
    claims.request(CLAIM, GROWN).await?;
    let growth = GROWN_KIB - SIZE_KIB;
    claims.finds(POD, "a larger disk", |found| has_grown(before, growth, found.kib)).await?;
    claims.has_capacity(CLAIM, GROWN).await?;

    let restored = claims.create_from(Source::Snapshot(SNAPSHOT), RESTORED, SIZE, mode).await?;
    claims.start(READER, RESTORED, &last, mode, false).await?;
    let found = claims.finds_written(READER).await?;
    ensure!(has_size_of_source(before, found.kib), "expected a restored disk of {before} KiB, saw {found:?}");
    claims.end(POD).await?;
    claims.end(READER).await?;

    let snapshots = volume_snapshots(&fixture.guest, &fixture.word);
    snapshots.delete(SNAPSHOT, &DeleteParams::default()).await?;
    until_gone(&snapshots, SNAPSHOT, "VolumeSnapshot", Deadline::PodStart).await?;
    let infra = volume_snapshots(&fixture.infra, HCP_NAMESPACE);
    until_gone(&infra, &infra_snapshot, "infra VolumeSnapshot", Deadline::PodStart).await?;
    claims.delete(RESTORED, &restored).await?;
    claims.delete(CLAIM, &volume).await?;
    claims.finish().await
}

/// An installation under the test's name.
struct Installation<'a> {
    fixture: &'a Fixture,
    infra: String,
    guest: String,
    secrets: Api<Secret>,
    pods: Api<Pod>,
}

impl<'a> Installation<'a> {
    fn new(fixture: &'a Fixture, infra: &str) -> Self {
        Self {
            fixture,
            infra: infra.replace(PLACEHOLDER, &fixture.word),
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
            containers(pod).len() == CONTAINERS,
            "expected {CONTAINERS} containers, saw {}",
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
