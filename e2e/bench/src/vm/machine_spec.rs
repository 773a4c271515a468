//! What a machine is started with.

use std::{net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::artifact::worker_image::WorkerImage;

/// The serial of the disk that is the driver's image. No UUID, so no volume can be mistaken for it.
pub(super) const DRIVER_SERIAL: &str = "bench-driver";

/// That disk in the guest.
pub(super) const DRIVER_DISK: &str = "/dev/disk/by-id/virtio-bench-driver";

/// What a machine runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Boot {
    /// No kernel and a stopped processor: disks plug and unplug, nobody reads them.
    Nothing,
    /// A worker.
    Worker {
        /// What it boots from.
        image: WorkerImage,
        /// The network card's address, `52:54:00:77:00:0b`.
        mac: String,
        /// Its address on the worker network.
        address: Ipv4Addr,
        /// An existing tap device ([`crate::sandbox::network::add_tap`]).
        tap: String,
        /// A saved state to resume instead of booting ([`super::saved_state::ensure`]).
        state: Option<PathBuf>,
    },
}

/// A machine to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Unique in the bench; the process is called `vm-<name>`.
    pub name: String,
    /// Memory in MiB. A worker needs [`super::saved_state::WORKER_MEMORY_MIB`], a machine without guest 16.
    pub memory_mib: u32,
    /// What it runs.
    pub boot: Boot,
}
