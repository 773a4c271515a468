//! What each mutating call works with.

use std::{path::Path, time::Duration};

use csi_call::LastReport;

use crate::{
    device::Disk,
    error::{Error, Result},
    host::Host,
    metrics::Metrics,
    mount_table::MountTable,
    path_state::PathState,
    step::Step,
};

/// Major number of the devices of filesystems without a disk.
pub const NO_DEVICE: u64 = 0;

/// The machine, and where to report.
#[derive(Clone, Copy)]
pub struct MutationContext<'a> {
    /// The machine.
    pub host: &'a dyn Host,
    /// The operator allows to format data of an unknown kind.
    pub allow_format_nonzero: bool,
    /// How long an unmounted disk may stay in use before the call gives up.
    pub release_wait: Duration,
    /// Where decisions are counted.
    pub metrics: &'a Metrics,
    /// What is being done; reported to later calls for the volume.
    pub progress: &'a LastReport,
}

impl MutationContext<'_> {
    /// Takes the steps in order; stops at the first that fails.
    pub fn apply(&self, steps: &[Step]) -> Result<()> {
        for step in steps {
            self.progress.set(step.to_string());
            self.host.apply(step)?;
        }
        Ok(())
    }

    /// The top mount at `path` belongs to a disk that is gone, or the path answers as a mount of a lost disk does.
    pub fn is_stale(&self, path: &Path, state: &PathState, mounts: &MountTable) -> Result<bool> {
        let Some(top) = mounts.at(path).pop() else { return Ok(false) };
        let gone = |number| Ok::<_, Error>(self.host.capacity(number)?.is_none());
        Ok(match state {
            PathState::Corrupted(_) => true,
            PathState::Directory => top.number.major != NO_DEVICE && gone(top.number)?,
            PathState::Node(number) => gone(*number)?,
            PathState::Missing | PathState::File { .. } | PathState::Other(_) => false,
        })
    }

    /// Records that the volume is used from these disks, unless that is on record already.
    pub fn record_disks(&self, volume: &str, disks: &[Disk]) -> Result<()> {
        let missing = self.host.disk_record(volume)?.extended(volume, &self.host.boot_id()?, disks);
        self.apply(&missing.map(Step::WriteDiskRecord).into_iter().collect::<Vec<_>>())
    }
}
