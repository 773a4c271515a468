//! What the operator may choose, and where the kernel's own trees are. Nothing here is read from a file or an environment.

use std::path::PathBuf;
use std::time::Duration;

/// How long a call waits for a disk that the controller says is attached. Hotplug shows within half a second
/// (measured on QEMU); the kubelet gives a call 2 minutes, and the answer must leave before that.
const DEVICE_WAIT: Duration = Duration::from_secs(90);

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
    /// Where the kernel's trees are mounted.
    pub paths: HostPaths,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self { allow_format_nonzero: false, device_wait: DEVICE_WAIT, paths: HostPaths::default() }
    }
}

/// Mount points of the kernel's trees; tests put trees of their own in their place.
#[derive(Debug, Clone)]
pub struct HostPaths {
    /// sysfs.
    pub sys: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
    /// procfs.
    pub proc: PathBuf,
}

impl Default for HostPaths {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into(), proc: "/proc".into() }
    }
}
