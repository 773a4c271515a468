//! What the operator may choose, and where the kernel's own trees are. Nothing here is read from a file or an
//! environment.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a call waits for a disk that the controller reports as attached. A hotplugged disk shows within half a
/// second (measured on QEMU); the kubelet gives a call 2 minutes, and the answer must leave before that.
const DEVICE_WAIT: Duration = Duration::from_secs(90);

/// How long a disk may stay in use after its last mount is gone: the kernel ends a filesystem after umount(2) when
/// another mount namespace is just being torn down.
const RELEASE_WAIT: Duration = Duration::from_secs(5);

/// Where each known installer mounts the driver's folder on the worker, `/var/lib/kubelet/plugins/csi.kubevirt.io`.
const PLUGIN_FOLDER: &str = "/csi";
/// The folder of records in the driver's folder.
pub const DISK_RECORDS: &str = "disk-records";

/// The operator's choices for one node.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Format a disk that carries no signature although some of its bytes are not zero.
    ///
    /// Off by default: such bytes may be data of an unknown kind. Needed where the infra storage hands out volumes
    /// that it did not zero (CDI does not zero blank block volumes).
    pub allow_format_nonzero: bool,
    /// Longest wait for a disk to appear, within the call's own deadline.
    pub device_wait: Duration,
    /// How long NodeUnstageVolume waits for a disk that is unmounted and still in use.
    pub release_wait: Duration,
    /// Where the kernel's trees and the driver's own folder are.
    pub paths: HostPaths,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            allow_format_nonzero: false,
            device_wait: DEVICE_WAIT,
            release_wait: RELEASE_WAIT,
            paths: HostPaths::default(),
        }
    }
}

/// Where the kernel's trees and the driver's own folder are; tests put others in their place.
#[derive(Debug, Clone)]
pub struct HostPaths {
    /// sysfs.
    pub sys: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
    /// procfs.
    pub proc: PathBuf,
    /// The version of the running kernel.
    pub kernel_release: PathBuf,
    /// The records of volumes' disks. A folder of the worker, not of the container: it must survive a restart of both.
    pub disk_records: PathBuf,
}

impl Default for HostPaths {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            proc: "/proc".into(),
            kernel_release: "/proc/sys/kernel/osrelease".into(),
            disk_records: Path::new(PLUGIN_FOLDER).join(DISK_RECORDS),
        }
    }
}
