//! Pods whose images are programs of the bench: really run, one process per container.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{Stream, future::join_all};
use http::Uri;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{
    container::{Activity, ContainerRun, ContainerState, Restart, Shared, asked, asked_within, reference},
    image::Images,
    options::Options,
    simulated::{containers, image},
    volume::Volumes,
};
use crate::{
    paths::RUNTIME,
    simulator::{
        event::{Kind, Recorder},
        fault_plan,
    },
};

/// Until volumes that could not be set up are tried again.
const VOLUME_RETRY: Duration = Duration::from_secs(1);

/// The pods that run here.
pub(super) struct Programs {
    shared: Arc<Shared>,
    images: Images,
    runs: Mutex<BTreeMap<String, PodRun>>,
    nudge: Arc<watch::Sender<()>>,
}

/// The state of a pod: its containers in the order of its spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodState {
    pub inits: Vec<ContainerState>,
    pub containers: Vec<ContainerState>,
    /// All init containers have succeeded.
    pub initialized: bool,
    /// All containers have ended for good.
    pub over: bool,
}

struct PodRun {
    state: Arc<watch::Sender<PodState>>,
    stop: watch::Sender<Option<Duration>>,
    _task: AbortOnDropHandle<()>,
}

impl Programs {
    /// Runs nothing yet.
    ///
    /// # Errors
    /// When the API server's URL has no host or port.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let url: Uri =
            options.infra.url.parse().with_context(|| format!("{} is no URL", options.infra.url))?;
        let (host, port) =
            (url.host().context("the URL has no host")?, url.port_u16().context("the URL has no port")?);
        let platform = vec![
            ("KUBERNETES_SERVICE_HOST".to_owned(), host.to_owned()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()),
        ];
        let shared = Shared {
            client: options.infra.client.clone(),
            supervisor: options.supervisor.clone(),
            container_init: options.container_init.clone(),
            events: Recorder::new("kubelet"),
            platform,
        };
        Ok(Self {
            shared: Arc::new(shared),
            images: options.images.clone(),
            runs: Mutex::default(),
            nudge: Arc::new(watch::Sender::new(())),
        })
    }

    /// One item whenever the state of a container changes.
    pub(super) fn changes(&self) -> impl Stream<Item = ()> + Send + use<> {
        fault_plan::changes(self.nudge.subscribe())
    }

    /// Whether the pod has been started.
    pub(super) fn knows(&self, pod: &Pod) -> bool {
        self.runs().contains_key(&pod.uid().unwrap_or_default())
    }

    /// Starts the pod unless it is started; returns its state.
    pub(super) fn run(&self, pod: &Pod) -> Option<PodState> {
        let uid = pod.uid()?;
        let mut runs = self.runs();
        let run = runs.entry(uid).or_insert_with(|| self.start(pod));
        Some(run.state.borrow().clone())
    }

    /// Asks the pod to stop within `grace`; returns whether it has stopped.
    pub(super) fn stop(&self, pod: &Pod, grace: Duration) -> bool {
        let runs = self.runs();
        let Some(run) = runs.get(&pod.uid().unwrap_or_default()) else { return true };
        run.stop.send_if_modified(|asked| asked.replace(grace).is_none());
        run.state.borrow().over
    }

    /// Kills what runs for pods that are not among `living` (UIDs).
    pub(super) fn sweep(&self, living: &BTreeSet<String>) {
        self.runs().retain(|uid, _| living.contains(uid));
    }

    fn start(&self, pod: &Pod) -> PodRun {
        let uid = pod.uid().unwrap_or_default();
        let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
        let state = Arc::new(watch::Sender::new(PodState {
            inits: vec![ContainerState::default(); inits.len()],
            containers: vec![ContainerState::default(); containers(pod).len()],
            ..PodState::default()
        }));
        let (stop, asked) = watch::channel(None);
        let task = PodTask {
            shared: Arc::clone(&self.shared),
            images: self.images.clone(),
            pod: pod.clone(),
            folder: Folder(Path::new(RUNTIME).join("pods").join(uid)),
            state: Arc::clone(&state),
            nudge: Arc::clone(&self.nudge),
        };
        PodRun { state, stop, _task: AbortOnDropHandle::new(tokio::spawn(task.run(asked))) }
    }

    fn runs(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, PodRun>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct PodTask {
    shared: Arc<Shared>,
    images: Images,
    pod: Pod,
    folder: Folder,
    state: Arc<watch::Sender<PodState>>,
    nudge: Arc<watch::Sender<()>>,
}

/// Which list of containers an index is about.
#[derive(Clone, Copy)]
enum List {
    Inits,
    Containers,
}

impl PodTask {
    async fn run(self, mut stop: watch::Receiver<Option<Duration>>) {
        let mut volumes = Volumes::new(self.shared.client.clone(), &self.pod, self.folder.0.join("volumes"));
        if self.bring_up(&mut volumes, &mut stop).await && self.initialize(&stop).await {
            self.change(|state| state.initialized = true);
            let containers = containers(&self.pod).iter().enumerate();
            let all = join_all(
                containers.map(|(index, c)| self.container(c, List::Containers, index, stop.clone())),
            );
            tokio::select! { _ = all => {}, () = volumes.keep() => {} }
        }
        self.change(|state| state.over = true);
    }

    /// Sets the volumes up, however long it takes; false when the pod goes before.
    async fn bring_up(&self, volumes: &mut Volumes, stop: &mut watch::Receiver<Option<Duration>>) -> bool {
        while let Err(error) = volumes.bring_up().await {
            let message = format!("{error:#}");
            let words = (Kind::Warning, "FailedMount", message.as_str());
            self.shared.events.tell(&self.shared.client, &reference(&self.pod), words).await;
            if asked_within(stop, VOLUME_RETRY).await {
                return false;
            }
        }
        true
    }

    /// Runs the init containers one after the other; false when one fails for good, or the pod goes before.
    async fn initialize(&self, stop: &watch::Receiver<Option<Duration>>) -> bool {
        let inits =
            self.pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
        for (index, container) in inits.iter().enumerate() {
            self.container(container, List::Inits, index, stop.clone()).await;
            let well = matches!(&self.state.borrow().inits[index].now, Activity::Terminated(ended) if ended.code == 0);
            if !well || stop.borrow().is_some() {
                return false;
            }
        }
        true
    }

    async fn container(
        &self,
        container: &Container,
        list: List,
        index: usize,
        mut stop: watch::Receiver<Option<Duration>>,
    ) {
        let report = |change: &mut dyn FnMut(&mut ContainerState)| {
            self.change(|state| {
                change(match list {
                    List::Inits => &mut state.inits[index],
                    List::Containers => &mut state.containers[index],
                });
            });
        };
        let Some(found) = image(container, &self.images) else {
            let image = container.image.as_deref().unwrap_or_default();
            let message = format!("the bench has no image {image}; map it to a program");
            report(&mut |state| {
                state.now = Activity::Waiting { reason: "ErrImagePull", message: message.clone() }
            });
            asked(&mut stop).await;
            return;
        };
        let of_pod =
            self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
        let restart = match (list, of_pod) {
            (_, "Never") => Restart::Never,
            (List::Inits, _) | (_, "OnFailure") => Restart::OnFailure,
            _ => Restart::Always,
        };
        let run = ContainerRun {
            shared: Arc::clone(&self.shared),
            pod: self.pod.clone(),
            container: container.clone(),
            image: found.clone(),
            folder: self.folder.0.clone(),
            restart,
            report,
        };
        run.run(&mut stop).await;
    }

    fn change(&self, change: impl FnOnce(&mut PodState)) {
        self.state.send_modify(change);
        self.nudge.send_replace(());
    }
}

/// A pod's folder; it goes with the pod.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("remove {}: {error}", self.0.display());
        }
    }
}
