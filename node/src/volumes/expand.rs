//! `NodeExpandVolume`: find the volume, wait until its disk has the size, grow.

use std::{sync::Arc, time::Duration};

use csi_call::{Deadline, LastReport};
use tokio::time::{Instant, sleep, timeout_at};

use super::{FIRST_SCAN_PAUSE, LAST_SCAN, LAST_SCAN_PAUSE, RESCAN_AFTER, Volumes, WAIT_MARGIN};
use crate::{
    device::Disk,
    error::{Error, Result},
    expand::{self, refuse_short},
    mutation,
    request::{Access, ExpandRequest},
    usage::Capacity,
};

/// The longest wait for a disk to grow. It takes seconds where KubeVirt grows plugged disks; where it does not, the disk grows only
/// after a detach, and the call must not hold up the unstage before it.
const GROWTH_WAIT: Duration = Duration::from_secs(20);

impl Volumes {
    /// `NodeExpandVolume`: the size of the volume's disk, once all of it is the volume's.
    pub async fn expand(self: &Arc<Self>, request: ExpandRequest, deadline: Deadline) -> Result<Capacity> {
        if !request.path.is_absolute() {
            return Err(Error::VolumeNotFound { path: request.path });
        }
        let volume = request.volume.clone();
        self.mutate("NodeExpandVolume", &volume, deadline, |volumes, progress| async move {
            let wanted = volumes
                .blocking(deadline, progress.clone(), move |context| {
                    let canonical = |path| context.host.canonical(path);
                    Ok(expand::Wanted {
                        path: canonical(&request.path)?,
                        staging: request.staging.as_deref().map(canonical).transpose()?,
                        required: request.required,
                        block: request.access == Some(Access::Block),
                        read_only: matches!(&request.access, Some(Access::Filesystem { options, .. }) if options.read_only()),
                        volume: request.volume,
                    })
                })
                .await?;
            let (looked_for, located) = (wanted.clone(), progress.clone());
            let disk = volumes
                .blocking(deadline, located, move |context| mutation::locate(context, &looked_for))
                .await?
                .disk;
            volumes.wait_for_growth(disk, wanted.required, deadline, &progress).await?;
            volumes.blocking(deadline, progress, move |context| mutation::expand(context, &wanted)).await
        })
        .await
    }

    /// Waits until the kernel shows that the disk has the size, but not beyond the call's deadline.
    ///
    /// A plugged disk grows seconds after the infra claim: virt-launcher tells QEMU, and QEMU tells the guest.
    async fn wait_for_growth(
        &self,
        disk: Disk,
        required: u64,
        deadline: Deadline,
        progress: &LastReport,
    ) -> Result<()> {
        let begin = Instant::now();
        let end = (begin + self.settings.device_wait.min(GROWTH_WAIT)).min(deadline.answer_by - WAIT_MARGIN);
        let mut rescan_at = Some(begin + RESCAN_AFTER.min(end.saturating_duration_since(begin) / 2));
        let mut pause = FIRST_SCAN_PAUSE;
        let mut seen = disk;
        while let Err(short) = refuse_short(&seen, required) {
            progress.set(short.to_string());
            let now = Instant::now();
            if now >= end {
                return Err(short);
            }
            if rescan_at.is_some_and(|at| now >= at) && self.begin_rescan_of(&seen) {
                rescan_at = None;
            }
            let wake = rescan_at.filter(|at| *at > now).map_or(end, |at| at.min(end));
            sleep(pause.min(wake - now)).await;
            pause = (pause * 2).min(LAST_SCAN_PAUSE);
            let (host, number) = (Arc::clone(&self.host), seen.number);
            let scan = self.scanning_threads.run(deadline.answer_by, move || host.disk(number));
            let Ok(found) = timeout_at(end + LAST_SCAN, scan).await else { return Err(short) };
            seen = match found? {
                Some(found) if found.identity == seen.identity => found,
                other => {
                    let detail = other.map_or_else(
                        || "it is gone".to_owned(),
                        |other| format!("it is now {} with serial {}", other.name, other.identity),
                    );
                    return Err(Error::DiskChanged { name: seen.name, detail });
                }
            };
        }
        Ok(())
    }

    /// Has the kernel ask the disk for its size, in case an announcement was lost; whether it could begin. Nobody waits
    /// for it: a disk that hangs does not answer.
    fn begin_rescan_of(&self, disk: &Disk) -> bool {
        let (host, disk) = (Arc::clone(&self.host), disk.clone());
        let begun = self.disk_rescanning_threads.start(move || {
            if let Err(error) = host.rescan_disk(&disk) {
                tracing::warn!(
                    disk = disk.name,
                    error = error.chain(),
                    "the disk could not be asked for its size"
                );
            }
        });
        begun.unwrap_or_else(|error| {
            tracing::warn!(error = error.chain(), "asking a disk for its size could not begin");
            false
        })
    }
}
