//! The infra cluster as one guest may see it.
//!
//! This crate holds partial types of the objects that a guest's storage consists of (`DataVolume`, claim,
//! `VolumeSnapshot`, `VirtualMachine`, `VirtualMachineInstance`), every call that may be made on them, the guard that tells our volumes
//! from foreign ones, and the paced polling that stands in for a watch. It decides nothing about volumes: its caller
//! plans which call to make, and when.
//!
//! It makes only calls that `HyperShift`'s role grants: `DataVolumes` get, create, delete (never list); VMs and VMIs
//! get, list; the VM subresources addvolume and removevolume, and the VMI's removevolume; claims get, patch;
//! `VolumeSnapshots` get, create, delete. Where an operator also grants `watch` on VMIs or `list` on `VolumeSnapshots`,
//! it uses that; nothing depends on it.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

mod census;
mod claim;
mod claims;
mod coalesce;
mod data_volume;
mod events;
mod guest_guard;
mod hotplug;
mod infra;
mod json_patch;
mod list;
mod machine;
mod metrics;
mod objects;
mod quantity;
mod reader;
mod rights;
mod shared_reads;
mod snapshots;
mod vmi_watch;
mod volume_snapshot;
mod volumes;
mod wait;

pub use cluster::{CALL_DEADLINE, Class, Error, Failure, MAX_RETRY_AFTER, Right, Rights, WriteRate};
pub use kubevirt::{Metadata, ObjectName, Phase, RunStrategy, is_dns_label};

pub use census::Census;
pub use claim::{Claim, ClaimResources, ClaimSpec, ClaimStatus};
pub use claims::{refuses_expansion, resize_ops};
pub use data_volume::{
    Condition, DataVolume, DataVolumeSource, KEEP_AFTER_COMPLETION, NewDataVolume, NewSource,
};
pub use guest_guard::{Foreign, ForeignSnapshot, GuardError, Guarded, GuestGuard, MAX_PREFIX_LENGTH, Owned};
pub use hotplug::HotplugDisk;
pub use infra::{ConnectError, Infra, InfraSettings};
pub use json_patch::{PatchOp, annotation_path, label_path};
pub use machine::{
    VirtualMachine, VirtualMachineInstance, Volume, VolumePhase, VolumeRequest, VolumeSource, VolumeStatus,
};
pub use quantity::{Quantity, parse_quantity};
pub use rights::{
    DELETE_CLAIMS, LIST_EVENTS, LIST_SNAPSHOTS, REQUIRED_RIGHTS, UNPLUG_FROM_VMI, WATCH_INSTANCES,
};
pub use shared_reads::{ReadResult, VmReads};
pub use volume_snapshot::{NewVolumeSnapshot, VolumeSnapshot};
pub use wait::VmiWait;
