//! Values of KubeVirt's API that both programs read: VM and VMI as KubeVirt writes them, the metadata of objects, their
//! names, what is known of an object, and whose a VM is.
//!
//! This crate makes no calls. Each program reduces the wire types to the fields that it keeps.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

mod machine;
mod metadata;
mod name;
pub mod provider_id;
mod seen;
mod vm_guest;

pub use machine::{
    GROUP, Phase, RunStrategy, VERSION, WireAddVolume, WireBinding, WireCondition, WireDevices, WireDomain,
    WireFirmware, WireInterface, WireMigratedVolume, WireMultus, WireNetwork, WireRemoveVolume, WireTemplate,
    WireVm, WireVmSpec, WireVmStatus, WireVmi, WireVmiSpec, WireVmiStatus, WireVolume, WireVolumeRequest,
    WireVolumeSource, WireVolumeStatus,
};
pub use metadata::{Metadata, OwnerReference, null_as_default};
pub use name::{ObjectName, is_dns_label};
pub use seen::Seen;
pub use vm_guest::{Labelled, NotThisGuest, VmGuest};
