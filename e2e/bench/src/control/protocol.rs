//! The requests and answers of the control socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::turns::Lock;
use crate::{
    bring_up::Fault,
    paths,
    vm::{Disk, DiskFaults},
};

/// The socket inside the sandbox.
pub(super) fn socket() -> PathBuf {
    PathBuf::from(paths::RUNTIME).join("control.sock")
}

/// What can be asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Everything that runs.
    Status,
    /// Waits until the bench is this connection's.
    Lock {
        /// What of it, and whether alone.
        lock: Lock,
        /// Who of those that wait is preferred: whose number is the lowest.
        place: u32,
    },
    /// Makes a simulator inject a fault, until this connection closes.
    Fault(Fault),
    /// Runs a command in a worker through its guest agent.
    Run {
        /// The worker's name.
        worker: String,
        /// Program and arguments.
        argv: Vec<String>,
        /// Standard input, text.
        stdin: Option<String>,
    },
    /// Starts a command in a worker that goes on, its output in a file of the guest.
    Spawn {
        /// The worker's name.
        worker: String,
        /// Program and arguments.
        argv: Vec<String>,
        /// The file, in the guest.
        log: String,
    },
    /// Plugs a disk of this connection's own into a virtual machine; it is taken out when the connection closes.
    PlugDisk {
        /// The VirtualMachine's name in the HCP namespace.
        machine: String,
        /// The disk.
        disk: Disk,
    },
    /// Takes a disk of [`Self::PlugDisk`] out; the guest is not asked.
    UnplugDisk {
        /// The VirtualMachine's name in the HCP namespace.
        machine: String,
        /// The disk's name.
        name: String,
    },
    /// Presses the reset button of a worker's machine, and makes it a node again; answered when it is one.
    Reset {
        /// The worker's name.
        worker: String,
    },
    /// Gives a disk of [`Self::PlugDisk`] other faults, or none.
    SetDiskFaults {
        /// The VirtualMachine's name in the HCP namespace.
        machine: String,
        /// The disk's name.
        name: String,
        /// From now on.
        faults: DiskFaults,
    },
    /// Names of the disks that are plugged into a virtual machine, but those of tests.
    Plugged {
        /// The VirtualMachine's name in the HCP namespace.
        machine: String,
    },
    /// The workers' names.
    Workers,
}

/// The answer to a request.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Done.
    Done,
    /// The turn is this connection's.
    Turn {
        /// The name of the worker that it has alone, if it asked for one.
        worker: Option<String>,
    },
    /// What runs.
    Status(Vec<PartStatus>),
    /// A command's end.
    Output(CommandOutput),
    /// A list of names.
    Names(Vec<String>),
    /// What went wrong, with its causes.
    Failed(String),
}

/// A part of the bench.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartStatus {
    /// Its name, which is also its log file's.
    pub name: String,
    /// Process id inside the sandbox.
    pub pid: u32,
    /// Resident memory in KiB.
    pub rss_kib: u64,
}

/// How a command in a worker ended.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandOutput {
    /// Exit code.
    pub code: i64,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}
