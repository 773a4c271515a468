//! A whole controller pod of the test's own, from real parts in the place of the installed one: the driver, the sidecars
//! with the arguments of the installed Deployment, a fault proxy between the driver and infra, and one
//! between the sidecars and the driver's socket. A sidecar that ends is started again, as kubelet would.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bench::{
    bring_up::CONTROLLER,
    command::goal::Plan,
    paths::RUNTIME,
    scenario::{Deadline, HCP_NAMESPACE, until},
    supervise::{Process, ProcessSpec, Supervisor},
};
use fault_proxy::{Address, Faults, GrpcProxy, KubeProxy};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Secret},
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    controller_process::{Controller, service_account_kubeconfig},
    fixture::Fixture,
};

/// The sidecars: container, which is also the program's name, and the Secret with its guest kubeconfig under `value`.
const SIDECARS: [(&str, &str); 4] = [
    ("csi-provisioner", "kubevirt-csi-provisioner-kubeconfig"),
    ("csi-attacher", "kubevirt-csi-attacher-kubeconfig"),
    ("csi-resizer", "kubevirt-csi-resizer-kubeconfig"),
    ("csi-snapshotter", "kubevirt-csi-snapshotter-kubeconfig"),
];

/// The label of the installed controller's pods.
const POD_LABEL: &str = "app=kubevirt-csi-driver";

/// Pause before a sidecar is started again; kubelet's first one is of this order.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Sets the host name, which identifies a sidecar in a lease, then becomes the program: as in a pod.
const AS_HOST: &str = "echo \"$0\" > /proc/sys/kernel/hostname; exec \"$@\"";

/// How a stack differs from the installed pod.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether the sidecars elect a leader; else they act at once.
    pub election: bool,
    /// The sidecars' `--timeout`, where it is not the Deployment's.
    pub timeout: Option<&'static str>,
}

/// A running stack; it ends when it is dropped.
pub struct Stack {
    /// Its host name: the identity in a lease.
    pub host: String,
    controller: Controller,
    infra: KubeProxy,
    socket: GrpcProxy,
    sidecars: Vec<Sidecar>,
}

/// A process that is started again when it ends.
struct Sidecar {
    current: Arc<Mutex<Process>>,
    keeper: AbortOnDropHandle<()>,
}

impl Stack {
    /// Starts a stack named after the test and `suffix`.
    pub async fn start(fixture: &Fixture, suffix: &str, options: &Options) -> Result<Self> {
        let host = format!("{}-{suffix}", fixture.word);
        let infra = KubeProxy::start(&service_account_kubeconfig(fixture).await?).await?;
        let controller = Controller::behind(fixture, suffix, &infra).await?;
        let front = PathBuf::from(RUNTIME).join(format!("{host}-csi.sock"));
        let real = Address::Unix(controller.socket().to_owned());
        let socket = GrpcProxy::start(Address::Unix(front.clone()), real).await?;
        let mut sidecars = Vec::new();
        for (name, secret) in SIDECARS {
            let spec = sidecar(fixture, name, secret, &host, &front, options).await?;
            sidecars.push(Sidecar::start(&fixture.run.join("logs"), spec)?);
        }
        Ok(Self { host, controller, infra, socket, sidecars })
    }

    /// The faults between the driver and infra.
    pub fn infra(&self) -> &Faults {
        self.infra.faults()
    }

    /// The faults between the sidecars and the driver.
    pub fn socket(&self) -> &Faults {
        self.socket.faults()
    }

    /// SIGKILL to all its processes, as when its node dies.
    pub async fn kill(self) {
        for sidecar in &self.sidecars {
            sidecar.keeper.abort();
            let process = sidecar.process();
            process.kill().await;
        }
        self.controller.kill().await;
    }

    /// Checks that the driver lives: its process, and its `/livez`.
    pub async fn ensure_alive(&self) -> Result<()> {
        ensure!(self.controller.is_alive(), "expected the driver's process to run, saw it ended");
        let (code, said) = self.controller.get("/livez").await?;
        ensure!(code == 200, "expected 200 from /livez, saw {code}: {said}");
        Ok(())
    }
}

impl Sidecar {
    fn start(logs: &Path, spec: ProcessSpec) -> Result<Self> {
        let supervisor = Supervisor::new(logs.to_owned());
        let current = Arc::new(Mutex::new(supervisor.start(&spec)?));
        let kept = Arc::clone(&current);
        let keeper = tokio::spawn(async move {
            loop {
                let process = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
                process.exited().await;
                tokio::time::sleep(RESTART_PAUSE).await;
                match supervisor.start(&spec) {
                    Ok(process) => *kept.lock().unwrap_or_else(PoisonError::into_inner) = process,
                    Err(error) => return eprintln!("{} is not started again: {error:#}", spec.name),
                }
            }
        });
        Ok(Self { current, keeper: AbortOnDropHandle::new(keeper) })
    }

    fn process(&self) -> Process {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.keeper.abort();
        self.process().signal(nix::sys::signal::Signal::SIGKILL);
    }
}

/// Scales the installed controller to zero while `body` runs, and restores it whatever the result. The test has the bench
/// alone.
pub async fn instead_of_installed<F>(fixture: &Fixture, body: F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let deployments: Api<Deployment> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let replicas = deployments.get(CONTROLLER).await?.spec.replicas.unwrap_or(1);
    let result = match scale(fixture, 0).await {
        Ok(()) => body.await,
        Err(error) => Err(error),
    };
    let back = scale(fixture, replicas).await.context("put the installed controller back");
    result.and(back)
}

async fn scale(fixture: &Fixture, replicas: i32) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch(CONTROLLER, &PatchParams::default(), &patch).await?;
    let pods: Api<Pod> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let labelled = ListParams::default().labels(POD_LABEL);
    until(&format!("{replicas} installed controllers"), Deadline::PodStart, async || {
        let status = deployments.get(CONTROLLER).await?.status.unwrap_or_default();
        let available = status.available_replicas.unwrap_or_default();
        let there = pods.list(&labelled).await?.items.len();
        let wanted = usize::try_from(replicas)?;
        Ok(if available == replicas && there == wanted {
            Ok(())
        } else {
            Err(format!("{available} available, {there} pods"))
        })
    })
    .await
}

async fn sidecar(
    fixture: &Fixture,
    name: &str,
    secret: &str,
    host: &str,
    socket: &Path,
    options: &Options,
) -> Result<ProcessSpec> {
    let secrets: Api<Secret> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let data = secrets.get(secret).await?.data.unwrap_or_default();
    let kubeconfig = PathBuf::from(RUNTIME).join(format!("{host}-{name}.kubeconfig"));
    std::fs::write(&kubeconfig, &data.get("value").context("a Secret without kubeconfig")?.0)?;
    let deployments: Api<Deployment> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
    let pod = deployments.get(CONTROLLER).await?.spec.template.spec;
    let containers = pod.context("a Deployment without pods")?.containers;
    let container = containers.into_iter().find(|container| container.name == name);
    let args = container.and_then(|container| container.args).with_context(|| format!("no {name}"))?;
    let args = args.into_iter().filter(|arg| options.election || !arg.starts_with("--leader-election"));
    let args = args.map(|arg| match arg.split_once('=') {
        Some(("--csi-address", _)) => format!("--csi-address={}", socket.display()),
        Some(("--kubeconfig", _)) => format!("--kubeconfig={}", kubeconfig.display()),
        Some(("--timeout", given)) => format!("--timeout={}", options.timeout.unwrap_or(given)),
        _ => arg,
    });
    let wrapper = ["unshare", "--uts", "sh", "-c", AS_HOST, host];
    Ok(ProcessSpec {
        name: format!("test-{host}-{name}"),
        wrapper: wrapper.map(str::to_owned).into(),
        program: Plan::read(&fixture.run)?.artifacts.programs.path(name)?.to_path_buf(),
        args: args.collect(),
        ..ProcessSpec::default()
    })
}
