//! Why a request is refused before any cluster is read.

use csi_call::filesystems;

use super::MAX_SERIAL;

/// The request is malformed or asks for what this driver never does. `INVALID_ARGUMENT`, or `OUT_OF_RANGE` for a size
/// that its filesystem cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A required field is empty.
    #[error("{0} is missing in the request")]
    Missing(&'static str),
    /// A field is longer than the CSI specification allows.
    #[error("{field} is longer than the {limit} bytes that CSI allows")]
    TooLong {
        /// Field.
        field: &'static str,
        /// Its limit in bytes.
        limit: usize,
    },
    /// Many nodes and a filesystem (the text of kubevirt/csi-driver, whose e2e tests expect it).
    #[error("non-block volume with RWX access mode is not supported")]
    SharedFilesystem,
    /// An access mode that is not served.
    #[error(
        "access mode {0} is not supported; use a single-node mode, or MULTI_NODE_MULTI_WRITER with a block volume"
    )]
    AccessMode(String),
    /// A parameter that is almost one of ours.
    #[error("unknown parameter {key:?}; it should probably be {meant}")]
    MistypedParameter {
        /// As written.
        key: String,
        /// The parameter that it resembles.
        meant: &'static str,
    },
    /// The older key of the filesystem, in two cases of its letters.
    #[error("parameter {0} is there twice, in two cases of its letters")]
    RepeatedParameter(&'static str),
    /// A parameter that is neither true nor false.
    #[error("parameter {key} is {value:?}; use true or false")]
    Boolean {
        /// The parameter.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A bus that KubeVirt does not hotplug.
    #[error("bus {0:?} is not supported; use scsi or virtio")]
    Bus(String),
    /// A serial that can't be a disk's serial.
    #[error("serial {0:?} in the volume context is not 1 to {MAX_SERIAL} of A-Z a-z 0-9 _ . + -")]
    Serial(String),
    /// A capacity range that nothing satisfies.
    #[error("capacity range is not satisfiable: required {required} bytes, limit {limit} bytes")]
    Capacity {
        /// `required_bytes`.
        required: i64,
        /// `limit_bytes`.
        limit: i64,
    },
    /// The largest size that satisfies the request is below the smallest of its filesystem.
    #[error("{filesystem} needs a volume of {least} bytes at least, but the request allows {limit} at most")]
    TooSmall {
        /// Filesystem.
        filesystem: &'static str,
        /// Its smallest size.
        least: u64,
        /// `limit_bytes`.
        limit: u64,
    },
    /// A filesystem that the node role does not make.
    #[error("filesystem type {0:?} is not supported; use one of {names}", names = filesystems::names())]
    Filesystem(String),
    /// A mount flag that the node role refuses.
    #[error("mount flag {0:?} would change what is mounted")]
    MountFlag(String),
    /// `volume_mount_group` without the capability `VOLUME_MOUNT_GROUP`.
    #[error("volume_mount_group is not supported")]
    MountGroup,
    /// A way to clone that there is not.
    #[error("cloneMethod {0:?} is not supported; use pvc, snapshot or dataSourceRef, or leave it out")]
    CloneMethod(String),
    /// `max_entries` below zero.
    #[error("max_entries is {0}; it must not be negative")]
    MaxEntries(i32),
    /// `mutable_parameters`.
    #[error("mutable parameters are not supported")]
    MutableParameters,
    /// `readonly` without the capability `PUBLISH_READONLY`.
    #[error("read-only publishing is not supported by the controller; mount the volume read-only instead")]
    Readonly,
}
