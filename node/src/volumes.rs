//! The course of a call: its lock, the wait for its disk, a thread for what blocks, and an answer in time.
//!
//! A mutating call runs in a task of its own, which owns the volume's lock: a caller that goes away cancels nothing,
//! and the next call sees the result.

mod expand;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use csi_call::{Deadline, InFlight, LastReport, Operation, Operations, Scope};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    context::MutationContext,
    device::{Disk, Found, Serial, find},
    error::{Error, Result},
    host::Host,
    metrics::{Metrics, Work},
    mutation::{self, Published},
    pool::Pool,
    publish,
    request::{Access, PublishRequest, RemoveRequest, StageRequest, StatsRequest},
    settings::NodeSettings,
    stage,
    stats::{self, Stats},
};

/// Mutating calls that run at once; each may be a mkfs. Only after a restart of the node do more come at a time.
const MUTATING_THREADS: usize = 16;
/// Reads of sysfs at once; they are short, and only a kernel in trouble holds one up.
const SCANNING_THREADS: usize = 4;
/// Disks that are asked for their size at once. One that hangs takes its thread until it answers.
const DISK_RESCANNING_THREADS: usize = 4;
/// Measurements at once. Each may hang as long as its disk does, and only one runs per volume.
const MEASURING_THREADS: usize = 16;
/// A measurement that takes longer is given up: the kubelet repeats the call every minute.
const MEASURE_LIMIT: Duration = Duration::from_secs(10);

/// First pause between two reads of the disks.
const FIRST_SCAN_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LAST_SCAN_PAUSE: Duration = Duration::from_secs(1);
/// The SCSI hosts are asked to scan after this time, and again at this interval: an announcement may have been lost.
const RESCAN_AFTER: Duration = Duration::from_secs(5);
/// The wait for a disk ends this long before the answer is due, so that the answer can report what was seen, and reaches the caller in
/// time also from a node whose processors are busy.
const WAIT_MARGIN: Duration = Duration::from_secs(1);
/// How much of that margin the last scan may take.
const LAST_SCAN: Duration = Duration::from_millis(250);

/// All volumes of this node.
pub struct Volumes {
    host: Arc<dyn Host>,
    settings: NodeSettings,
    metrics: Metrics,
    operations: Operations,
    measuring: InFlight,
    mutating_threads: Pool,
    scanning_threads: Pool,
    rescanning_thread: Pool,
    disk_rescanning_threads: Pool,
    measuring_threads: Pool,
}

impl Volumes {
    /// On this machine.
    pub fn new(host: Arc<dyn Host>, settings: NodeSettings, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            host,
            settings,
            metrics,
            operations: Operations::default(),
            measuring: InFlight::default(),
            mutating_threads: Pool::new("volume", MUTATING_THREADS),
            scanning_threads: Pool::new("scan", SCANNING_THREADS),
            rescanning_thread: Pool::new("rescan", 1),
            disk_rescanning_threads: Pool::new("disk-rescan", DISK_RESCANNING_THREADS),
            measuring_threads: Pool::new("measure", MEASURING_THREADS),
        })
    }

    /// Waits for the operations that run, but not longer than `grace`. True: all have ended.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.operations.shutdown(grace).await
    }

    /// What runs, for the metrics.
    pub(crate) fn work(&self) -> Work {
        let pools = [
            &self.mutating_threads,
            &self.scanning_threads,
            &self.rescanning_thread,
            &self.disk_rescanning_threads,
            &self.measuring_threads,
        ];
        Work { in_flight: self.operations.in_flight().clone(), pools: pools.map(Pool::clone).into() }
    }

    /// `NodeStageVolume`.
    pub async fn stage(self: &Arc<Self>, request: StageRequest, deadline: Deadline) -> Result<()> {
        let volume = request.volume.clone();
        self.mutate("NodeStageVolume", &volume, deadline, |volumes, progress| async move {
            let disk = volumes.wait_for_disk(&request.serial, deadline, &progress).await?;
            match request.capability.access {
                Access::Block => {
                    let (volume, staging) = (request.volume, request.staging);
                    volumes
                        .blocking(deadline, progress, move |context| {
                            mutation::stage_block(context, &volume, &disk, &staging)
                        })
                        .await
                }
                Access::Filesystem { filesystem, options } => {
                    let (volume, serial, staging) = (request.volume, request.serial, request.staging);
                    let origin = request.origin;
                    let wanted = stage::Wanted { volume, serial, staging, filesystem, options, origin };
                    volumes.stage_filesystem(deadline, progress, wanted, disk).await
                }
            }
        })
        .await
    }

    /// `NodePublishVolume`.
    pub async fn publish(self: &Arc<Self>, request: PublishRequest, deadline: Deadline) -> Result<()> {
        let volume = request.volume.clone();
        self.mutate("NodePublishVolume", &volume, deadline, |volumes, progress| async move {
            match request.capability.access.clone() {
                Access::Block => volumes.publish_block(deadline, progress, request).await,
                Access::Filesystem { .. } => volumes.publish_filesystem(deadline, progress, request).await,
            }
        })
        .await
    }

    /// `NodeUnpublishVolume`.
    pub async fn unpublish(self: &Arc<Self>, request: RemoveRequest, deadline: Deadline) -> Result<()> {
        let RemoveRequest { volume, path } = request;
        let name = volume.clone();
        self.mutate("NodeUnpublishVolume", &volume, deadline, |volumes, progress| async move {
            volumes
                .blocking(deadline, progress, move |context| {
                    mutation::unpublish(context, &name, &context.host.canonical(&path)?)
                })
                .await
        })
        .await
    }

    /// `NodeUnstageVolume`.
    pub async fn unstage(self: &Arc<Self>, request: RemoveRequest, deadline: Deadline) -> Result<()> {
        let RemoveRequest { volume, path } = request;
        let name = volume.clone();
        self.mutate("NodeUnstageVolume", &volume, deadline, |volumes, progress| async move {
            volumes
                .blocking(deadline, progress, move |context| {
                    mutation::unstage(context, &name, &context.host.canonical(&path)?)
                })
                .await
        })
        .await
    }

    /// `NodeGetVolumeStats`. Not a mutating call: it takes no volume's lock, and one that hangs blocks only itself.
    pub async fn stats(self: &Arc<Self>, request: StatsRequest, deadline: Deadline) -> Result<Stats> {
        let key = request.path.to_string_lossy().into_owned();
        let hung = || Error::Hung { what: format!("volume {} at {key}", request.volume) };
        let measured = self.measuring.lock("NodeGetVolumeStats", &key, Scope::Volume, deadline);
        let Ok(lock) = measured else { return Err(hung()) };
        let answer_by = deadline.answer_by.min(Instant::now() + MEASURE_LIMIT);
        let (host, path) = (Arc::clone(&self.host), request.path.clone());
        let job = move || {
            let result = stats::measure(host.as_ref(), &path);
            drop(lock);
            result
        };
        timeout_at(answer_by, self.measuring_threads.run(answer_by, job))
            .await
            .unwrap_or_else(|_| Err(hung()))
    }

    async fn publish_block(
        &self,
        deadline: Deadline,
        progress: LastReport,
        request: PublishRequest,
    ) -> Result<()> {
        let disk = self.wait_for_disk(&request.serial, deadline, &progress).await?;
        self.blocking(deadline, progress, move |context| {
            let source = publish::Source::Node { path: context.host.node_path(&disk), number: disk.number };
            let target = context.host.canonical(&request.target)?;
            let (read_only, exclusive) = (request.read_only, request.capability.exclusive);
            let wanted = publish::Wanted { source, target, read_only, staged_read_only: false, exclusive };
            mutation::publish_block(context, &request.volume, &wanted, &disk)
        })
        .await
    }

    /// Publishes what is staged. The kubelet may take a volume for staged that is not: kubevirt/csi-driver mounted
    /// nothing at the staging path. It is staged here then, by the same rules.
    async fn publish_filesystem(
        &self,
        deadline: Deadline,
        progress: LastReport,
        request: PublishRequest,
    ) -> Result<()> {
        let Some(staging) = request.staging.clone() else { return Err(Error::StagingPathMissing) };
        let Access::Filesystem { filesystem, options } = request.capability.access.clone() else {
            return Err(Error::StagingPathMissing);
        };
        let (volume, serial) = (request.volume.clone(), request.serial.clone());
        let staged_read_only = options.read_only();
        let origin = request.origin;
        let wanted = stage::Wanted { volume, serial, staging, filesystem, options, origin };
        let bind = |request: PublishRequest| {
            move |context: MutationContext<'_>| {
                let staging = request.staging.as_ref().ok_or(Error::StagingPathMissing)?;
                let wanted = publish::Wanted {
                    source: publish::Source::Staging(context.host.canonical(staging)?),
                    target: context.host.canonical(&request.target)?,
                    read_only: request.read_only,
                    staged_read_only,
                    exclusive: request.capability.exclusive,
                };
                mutation::publish_filesystem(context, &wanted, &request.serial)
            }
        };
        if self.blocking(deadline, progress.clone(), bind(request.clone())).await? == Published::Done {
            return Ok(());
        }
        tracing::info!(staging = %wanted.staging.display(), "publishing a volume that is not staged, so staging it first");
        let disk = self.wait_for_disk(&wanted.serial, deadline, &progress).await?;
        self.stage_filesystem(deadline, progress.clone(), wanted, disk).await?;
        match self.blocking(deadline, progress, bind(request)).await? {
            Published::Done => Ok(()),
            Published::NotStaged => Err(Error::NotSettled("staging before publishing")),
        }
    }

    async fn stage_filesystem(
        &self,
        deadline: Deadline,
        progress: LastReport,
        wanted: stage::Wanted,
        disk: Disk,
    ) -> Result<()> {
        self.blocking(deadline, progress, move |context| {
            let staging: PathBuf = context.host.canonical(&wanted.staging)?;
            mutation::stage_filesystem(context, &stage::Wanted { staging, ..wanted }, &disk)
        })
        .await
    }

    /// Runs a mutating operation in a task that owns the volume's lock, and answers by the deadline whatever becomes of
    /// it.
    async fn mutate<T, W, F>(
        self: &Arc<Self>,
        rpc: &'static str,
        volume: &str,
        deadline: Deadline,
        work: W,
    ) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(Arc<Self>, LastReport) -> F,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let lock = self.operations.in_flight().lock(rpc, volume, Scope::Volume, deadline)?;
        let operation = Operation::new(deadline, Some(&lock));
        let work = work(Arc::clone(self), operation.last_report().clone());
        self.operations.run(&operation, Some(lock), work).await
    }

    /// Runs what blocks on a thread for mutating calls.
    async fn blocking<T, J>(&self, deadline: Deadline, progress: LastReport, job: J) -> Result<T>
    where
        T: Send + 'static,
        J: FnOnce(MutationContext<'_>) -> Result<T> + Send + 'static,
    {
        let (host, metrics) = (Arc::clone(&self.host), self.metrics.clone());
        let NodeSettings { allow_format_nonzero, release_wait, .. } = self.settings;
        self.mutating_threads
            .run(deadline.answer_by, move || {
                let (metrics, progress) = (&metrics, &progress);
                job(MutationContext {
                    host: host.as_ref(),
                    allow_format_nonzero,
                    release_wait,
                    metrics,
                    progress,
                })
            })
            .await
    }

    /// Searches for the disk until it is there, but not beyond the call's deadline.
    async fn wait_for_disk(
        &self,
        serial: &Serial,
        deadline: Deadline,
        progress: &LastReport,
    ) -> Result<Disk> {
        let begin = Instant::now();
        let end = (begin + self.settings.device_wait).min(deadline.answer_by - WAIT_MARGIN);
        let mut pause = FIRST_SCAN_PAUSE;
        let mut rescan_at = begin + RESCAN_AFTER;
        let mut last_seen: Option<String> = None;
        let not_found =
            |seen| Err(Error::DiskNotFound { serial: serial.to_string(), waited: begin.elapsed(), seen });
        let result = loop {
            let host = Arc::clone(&self.host);
            let scan = self.scanning_threads.run(deadline.answer_by, move || host.disks());
            // On a busy node a scan may take longer than is left. What the one before has shown is the answer then.
            let disks = match last_seen.take() {
                None => scan.await?,
                Some(seen) => match timeout_at(end + LAST_SCAN, scan).await {
                    Ok(disks) => disks?,
                    Err(_) => break not_found(seen),
                },
            };
            let seen = match find(&disks, serial) {
                Found::One(disk) => break Ok(*disk),
                Found::Ambiguous(names) => {
                    break Err(Error::DiskAmbiguous { serial: serial.to_string(), names: names.join(", ") });
                }
                Found::NotYet(seen) => seen,
            };
            progress.set(format!("waiting for the disk with serial {serial}; {seen}"));
            let now = Instant::now();
            if now >= end {
                break not_found(seen);
            }
            if now >= rescan_at {
                rescan_at = now + RESCAN_AFTER;
                self.begin_rescan();
            }
            last_seen = Some(seen);
            sleep(pause.min(end - now)).await;
            pause = (pause * 2).min(LAST_SCAN_PAUSE);
        };
        self.metrics.observe_device_wait(begin.elapsed());
        result
    }

    /// Asks the SCSI hosts to scan for new disks, as a last resort; the next looks show what it finds. Nobody waits for it, since it
    /// takes seconds for each host that has no disks, and one for the whole node is enough.
    fn begin_rescan(&self) {
        let host = Arc::clone(&self.host);
        let begun = self.rescanning_thread.start(move || {
            if let Err(error) = host.rescan() {
                tracing::warn!(
                    error = error.chain(),
                    "the SCSI hosts could not be asked to scan for new disks"
                );
            }
        });
        if let Err(error) = begun {
            tracing::warn!(error = error.chain(), "the scan for new disks could not begin");
        }
    }
}
