//! What every test begins with: a turn with the bench, clients of both clusters, a guest namespace of its own.

use std::{
    path::PathBuf,
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use bench::{
    control::{self, Client as Control, Lock},
    paths::{self, Run},
    report::{Figures, Timings},
    scenario::{
        Deadline, HCP_NAMESPACE, data_volumes, start_machine, until, until_gone, virtual_machine_instances,
        virtual_machines,
    },
    simulator::infra_storage,
};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

/// The containerDisk image of a virtual machine in which no guest runs: disks are plugged all the same.
pub const EMPTY_IMAGE: &str = "bench.local/empty";
/// virt-controller's account: virt-api takes changes of a VMI's status from KubeVirt's own accounts only.
pub const KUBEVIRT: &str = "system:serviceaccount:kubevirt:kubevirt-controller";

/// What a test works with. Its turn with the bench ends when it is dropped.
pub struct Fixture {
    /// The connection to the bench; its lock and faults live as long.
    pub control: Control,
    /// Administrator of the infra cluster.
    pub infra: Client,
    /// Administrator of the guest cluster.
    pub guest: Client,
    /// The worker that this test has alone.
    own_worker: Option<String>,
    /// A short unique word for names of this test, a legal label.
    pub word: String,
    /// The run folder.
    pub run: PathBuf,
    /// The table of measured figures.
    pub figures: Figures,
    /// The table of how long each test took.
    pub timings: Timings,
}

impl Fixture {
    /// Waits for a turn with the bench; `place` is the test's in the suite.
    pub async fn new(name: &str, lock: Lock, place: u32) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let control = Control::connect().await?;
        let own_worker = control.lock(lock, place).await?;
        let run = PathBuf::from(std::env::var_os(control::RUN_VARIABLE).context("BENCH_RUN is not set")?);
        let test = name.rsplit("::").next().unwrap_or(name).replace('_', "-");
        let short: String = test.chars().take(24).collect();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = Run::open(run.clone())?;
        Ok(Self {
            control,
            own_worker,
            infra: client("infra", None).await?,
            guest: client("tenant", None).await?,
            word: format!("{}-{}-{number}", short.trim_end_matches('-'), std::process::id()),
            timings: Timings::of_run(&folder),
            figures: Figures::of_run(&folder),
            run,
        })
    }

    /// The worker that this test has alone: of tests with [`Lock::OneWorker`].
    pub fn worker(&self) -> Result<&str> {
        self.own_worker.as_deref().context("this test has no worker alone: its lock is not OneWorker")
    }

    /// A client of the infra cluster as another user.
    pub async fn infra_as(&self, user: &str) -> Result<Client> {
        client("infra", Some(user)).await
    }

    /// Creates the guest namespace of this test.
    pub async fn guest_namespace(&self) -> Result<String> {
        let namespaces: Api<Namespace> = Api::all(self.guest.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": self.word}}))?;
        namespaces.create(&PostParams::default(), &object).await?;
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::namespaced(self.guest.clone(), &self.word);
        until("the namespace's default ServiceAccount", Deadline::Reaction, async || {
            Ok(accounts.get_opt("default").await?.map(|_| ()).ok_or_else(|| "absent".to_owned()))
        })
        .await?;
        Ok(self.word.clone())
    }

    /// Creates a VirtualMachine in which no guest runs, and waits until its instance is Running.
    pub async fn empty_machine(&self, name: &str) -> Result<()> {
        start_machine(&self.infra, name, EMPTY_IMAGE).await
    }

    /// Deletes a VirtualMachine and waits until its instance is gone.
    pub async fn delete_machine(&self, name: &str) -> Result<()> {
        virtual_machines(&self.infra, HCP_NAMESPACE).delete(name, &DeleteParams::default()).await?;
        let instances = virtual_machine_instances(&self.infra, HCP_NAMESPACE);
        until_gone(&instances, name, "instance", Deadline::MachineStart).await
    }

    /// The image file behind a volume: what infra storage wrote for the PV its claim is bound to.
    pub async fn image_of(&self, volume: &str) -> Result<PathBuf> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.infra.clone(), HCP_NAMESPACE);
        let data_volumes = data_volumes(&self.infra, HCP_NAMESPACE);
        let (name, mode) = until(&format!("the infra volume of {volume}"), Deadline::PodStart, async || {
            let Some(data_volume) = data_volumes.get_opt(volume).await? else {
                return Ok(Err("absent".to_owned()));
            };
            let phase = data_volume.data["status"]["phase"].as_str().unwrap_or_default().to_owned();
            let claim = claims.get_opt(volume).await?.and_then(|claim| claim.spec).unwrap_or_default();
            Ok(match claim.volume_name {
                Some(name) if phase == "Succeeded" => Ok((name, claim.volume_mode)),
                bound => Err(format!("DataVolume {phase}, claim bound to {bound:?}")),
            })
        })
        .await?;
        Ok(infra_storage::image(&Run::open(self.run.clone())?.volumes(), &name, mode.as_deref()))
    }
}

/// A client of one of the clusters, as its administrator or as a user that the administrator impersonates.
async fn client(context: &str, user: Option<&str>) -> Result<Client> {
    let file = paths::kubeconfig();
    let kubeconfig = Kubeconfig::read_from(&file).with_context(|| format!("read {}", file.display()))?;
    let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.auth_info.impersonate = user.map(str::to_owned);
    Ok(Client::try_from(config)?)
}

/// The value of an environment variable, if it is set.
pub fn setting<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(name: &str) -> Result<Option<T>> {
    let value = std::env::var(name).ok().map(|value| value.parse()).transpose();
    value.with_context(|| format!("the environment variable {name} can't be parsed"))
}
