//! One container of a program's pod: started, probed, started again when it ends, stopped when its pod goes.
//!
//! Times as kubelet has them: the first restart at once, then after 10 s, 20 s, … 5 min; the count restarts after ten minutes
//! without a failure (`pkg/kubelet/kubelet.go`, `MaxCrashLoopBackOff`).

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use kube::{Client, ResourceExt};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::sync::watch;

use super::{
    environment::invocation,
    image::Image,
    probe::Prober,
    root::{Mount, Plan},
    simulated::now,
    sources::SourceNames,
    volume::Volumes,
};
use crate::{
    simulator::event::{Kind, Recorder},
    supervise::{Process, ProcessSpec, Supervisor},
};

/// kubelet's first and longest back-off, and the time without a failure after which the back-off is reset.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_mins(5);
const BACKOFF_RESET: Duration = Duration::from_mins(10);
/// Until a container is tried again whose environment could not be computed.
const CONFIGURATION_RETRY: Duration = Duration::from_secs(1);
/// The grace of a container that is killed for its liveness, when its pod does not say.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// A shell's convention for the exit code of a process that a signal ended.
const SIGNAL_CODE: i32 = 128;

/// What containers share.
pub(super) struct Shared {
    pub client: Client,
    pub supervisor: Supervisor,
    /// The command that ends in [`super::root::enter`].
    pub container_init: Vec<String>,
    pub events: Recorder,
    /// What kubelet itself adds to an environment.
    pub platform: Vec<(String, String)>,
}

/// The state of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ContainerState {
    pub now: Activity,
    pub last: Option<Termination>,
    pub restarts: i32,
    pub ready: bool,
    pub started: bool,
}

/// What a container does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// It does not run, for a reason.
    Waiting { reason: &'static str, message: String },
    /// It runs, since when.
    Running(String),
    /// It has ended and is not started again.
    Terminated(Termination),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Termination {
    pub code: i32,
    pub since: String,
    pub until: String,
}

impl Default for Activity {
    fn default() -> Self {
        Self::Waiting { reason: "ContainerCreating", message: String::new() }
    }
}

/// When a container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    fn again(self, code: i32) -> bool {
        self == Self::Always || (self == Self::OnFailure && code != 0)
    }
}

/// A container to run.
pub(super) struct ContainerRun<R> {
    pub shared: Arc<Shared>,
    pub pod: Pod,
    pub container: Container,
    pub image: Image,
    /// The pod's folder in the sandbox's tmpfs.
    pub folder: PathBuf,
    pub restart: Restart,
    /// Receives its state.
    pub report: R,
}

impl<R: Fn(&mut dyn FnMut(&mut ContainerState)) + Send + Sync> ContainerRun<R> {
    /// Runs the container until it has ended for good, or until `stop` asks with a grace period.
    pub(super) async fn run(&self, stop: &mut watch::Receiver<Option<Duration>>) {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            let ended = match self.launch().await {
                Ok(process) => Some(self.attend(process, stop).await),
                Err(error) => {
                    self.wait("CreateContainerConfigError", &format!("{error:#}"));
                    None
                }
            };
            let over = stop.borrow().is_some()
                || ended.as_ref().is_some_and(|ended| !self.restart.again(ended.code));
            if let Some(ended) = ended {
                self.change(|state| state.now = Activity::Terminated(ended.clone()));
                if !over {
                    self.change(|state| state.last = Some(ended.clone()));
                    let delay = backoff.next(begun.elapsed());
                    if !delay.is_zero() {
                        self.wait("CrashLoopBackOff", &self.backoff_message(delay));
                    }
                    if asked_within(stop, delay).await {
                        return;
                    }
                    self.change(|state| state.restarts += 1);
                    continue;
                }
            }
            if over || asked_within(stop, CONFIGURATION_RETRY).await {
                return;
            }
        }
    }

    async fn launch(&self) -> Result<Process> {
        let sources = SourceNames::of_container(&self.container).read(&self.shared.client, &self.pod).await?;
        let (platform, path) = (&self.shared.platform, self.image.search_path());
        let invocation = invocation(&self.pod, &self.container, &sources, platform, path)?;
        let plan = self.write_plan()?;
        let mut wrapper = self.shared.container_init.clone();
        wrapper.push(plan.display().to_string());
        self.shared.supervisor.start(&ProcessSpec {
            name: self.process_name(),
            wrapper,
            program: self.image.program(&self.container).to_path_buf(),
            args: invocation.args,
            env: invocation.env,
            clear_env: true,
        })
    }

    /// `<app>-<container>`, or with the pod's name when another pod of that app runs here.
    fn process_name(&self) -> String {
        let labels = self.pod.labels();
        let app = labels.get("app").or_else(|| labels.get("app.kubernetes.io/name")).cloned();
        let name = format!("{}-{}", app.unwrap_or_else(|| self.pod.name_any()), self.container.name);
        if self.shared.supervisor.alive().iter().any(|process| process.name() == name) {
            return format!("{}-{}", self.pod.name_any(), self.container.name);
        }
        name
    }

    fn write_plan(&self) -> Result<PathBuf> {
        let folder = self.folder.join("containers").join(&self.container.name);
        let root = folder.join("root");
        std::fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
        let of_pod = self.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let of_container = self.container.security_context.as_ref();
        let id = |own: Option<i64>, pods: Option<i64>| own.or(pods).and_then(|id| u32::try_from(id).ok());
        let plan = Plan {
            hostname: self.pod.name_any(),
            root,
            image: self.image.root().map(PathBuf::from),
            mounts: self.mounts()?,
            read_only: of_container.and_then(|context| context.read_only_root_filesystem) == Some(true),
            working_directory: self.container.working_dir.as_ref().map(PathBuf::from),
            user: id(of_container.and_then(|c| c.run_as_user), of_pod.and_then(|c| c.run_as_user)),
            group: id(of_container.and_then(|c| c.run_as_group), of_pod.and_then(|c| c.run_as_group)),
        };
        let path = folder.join("plan.json");
        std::fs::write(&path, serde_json::to_vec(&plan)?)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn mounts(&self) -> Result<Vec<Mount>> {
        let mounts = self.container.volume_mounts.iter().flatten();
        let mut all = Vec::new();
        for mount in mounts {
            let volume = Volumes::path(&self.folder.join("volumes"), &mount.name);
            let source = match mount.sub_path.as_deref().filter(|path| !path.is_empty()) {
                None => volume,
                Some(path) => volume.join(path),
            };
            anyhow::ensure!(source.exists(), "volume {} has no {}", mount.name, source.display());
            let writable = super::volume::volumes_of(&self.pod)
                .iter()
                .any(|volume| volume.name == mount.name && volume.empty_dir.is_some());
            let read_only = mount.read_only == Some(true) || !writable;
            all.push(Mount { source, target: Path::new("/").join(&mount.mount_path), read_only });
        }
        Ok(all)
    }

    /// Watches a process until it has ended: by itself, because the pod goes, or because it is no longer alive.
    async fn attend(&self, process: Process, stop: &mut watch::Receiver<Option<Duration>>) -> Termination {
        let process = KilledOnDrop(process);
        let since = now();
        self.change(|state| {
            state.now = Activity::Running(since.clone());
            state.started = self.container.startup_probe.is_none();
            state.ready = state.started && self.container.readiness_probe.is_none();
        });
        let status = tokio::select! {
            status = process.0.exited() => status,
            grace = asked(stop) => process.0.stop(grace).await,
            () = self.probe_until_dead() => {
                self.tell("Killing", &format!("Container {} failed liveness probe, will be restarted", self.container.name)).await;
                process.0.stop(self.grace()).await
            }
        };
        self.change(|state| {
            state.ready = false;
            state.started = false;
        });
        Termination { code: exit_code(status), since, until: now() }
    }

    /// The startup probe first, then readiness and liveness; returns when the container has to be killed.
    async fn probe_until_dead(&self) {
        if let Some(mut startup) = self.prober("startup") {
            if !verdict(&mut startup).await {
                return;
            }
            self.change(|state| {
                state.started = true;
                state.ready = self.container.readiness_probe.is_none();
            });
        }
        let readiness = async {
            let Some(mut readiness) = self.prober("readiness") else { return std::future::pending().await };
            tokio::time::sleep(readiness.initial_delay).await;
            loop {
                if let Some(ready) = readiness.probe().await {
                    self.change(|state| state.ready = ready);
                }
                tokio::time::sleep(readiness.period).await;
            }
        };
        let liveness = async {
            let Some(mut liveness) = self.prober("liveness") else { return std::future::pending().await };
            tokio::time::sleep(liveness.initial_delay).await;
            while liveness.probe().await != Some(false) {
                tokio::time::sleep(liveness.period).await;
            }
        };
        tokio::select! { () = readiness => {}, () = liveness => {} }
    }

    fn prober(&self, kind: &str) -> Option<Prober> {
        let probe = match kind {
            "startup" => self.container.startup_probe.as_ref(),
            "readiness" => self.container.readiness_probe.as_ref(),
            _ => self.container.liveness_probe.as_ref(),
        };
        match Prober::new(&self.container, probe?) {
            Ok(prober) => Some(prober),
            Err(error) => {
                tracing::warn!(pod = self.pod.name_any(), container = self.container.name, kind, "{error:#}");
                None
            }
        }
    }

    fn grace(&self) -> Duration {
        let seconds = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DEFAULT_GRACE, Duration::from_secs)
    }

    fn change(&self, change: impl Fn(&mut ContainerState)) {
        (self.report)(&mut |state| change(state));
    }

    fn wait(&self, reason: &'static str, message: &str) {
        self.change(|state| state.now = Activity::Waiting { reason, message: message.to_owned() });
    }

    fn backoff_message(&self, delay: Duration) -> String {
        let (seconds, name) = (delay.as_secs(), &self.container.name);
        format!("back-off {seconds}s restarting failed container={name} pod={}", self.pod.name_any())
    }

    async fn tell(&self, reason: &str, message: &str) {
        let words = (Kind::Normal, reason, message);
        self.shared.events.tell(&self.shared.client, &reference(&self.pod), words).await;
    }
}

/// A pod as events name it.
pub(super) fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: pod.namespace(),
        name: Some(pod.name_any()),
        uid: pod.uid(),
        ..ObjectReference::default()
    }
}

/// Waits until `stop` asks; the grace that it gives.
pub(super) async fn asked(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    match stop.wait_for(Option::is_some).await {
        Ok(grace) => grace.unwrap_or_default(),
        // The sender is gone: the simulator ends.
        Err(_) => Duration::ZERO,
    }
}

/// Whether `stop` asks within `time`.
pub(super) async fn asked_within(stop: &mut watch::Receiver<Option<Duration>>, time: Duration) -> bool {
    tokio::time::timeout(time, asked(stop)).await.is_ok()
}

async fn verdict(prober: &mut Prober) -> bool {
    tokio::time::sleep(prober.initial_delay).await;
    loop {
        if let Some(verdict) = prober.probe().await {
            return verdict;
        }
        tokio::time::sleep(prober.period).await;
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| SIGNAL_CODE + signal)).unwrap_or(SIGNAL_CODE)
}

/// A container ends with every process that it has started: its process leads a group of its own. And none outlives the
/// kubelet that runs it.
struct KilledOnDrop(Process);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // ESRCH: nothing is left of it.
        killpg(Pid::from_raw(self.0.pid().cast_signed()), Signal::SIGKILL).ok();
    }
}

/// The delays between restarts.
#[derive(Debug, Default)]
struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The delay after a container ran for `lived`.
    fn next(&mut self, lived: Duration) -> Duration {
        if lived >= BACKOFF_RESET {
            self.next = Duration::ZERO;
        }
        let delay = self.next;
        self.next = if delay.is_zero() { FIRST_BACKOFF } else { (delay * 2).min(LONGEST_BACKOFF) };
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_come_as_from_a_kubelet() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let delays: Vec<u64> = (0..8).map(|_| backoff.next(short).as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.next(BACKOFF_RESET).as_secs(), 0);
        assert_eq!(backoff.next(short).as_secs(), 10);
    }

    #[test]
    fn who_is_started_again() {
        assert!(Restart::Always.again(0) && Restart::OnFailure.again(1));
        assert!(!Restart::OnFailure.again(0) && !Restart::Never.again(1));
    }

    #[test]
    fn a_signal_has_an_exit_code() {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
    }
}
