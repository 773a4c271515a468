//! Values of KubeVirt's API that both programs read: VM and VMI as KubeVirt writes them, the metadata of objects, their
//! names, and what is known of an object.
//!
//! This crate makes no calls and decides nothing. Each program reduces the wire types to the fields that it keeps.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

mod machine;
mod metadata;
mod name;
mod seen;

pub use machine::{
    GROUP, Phase, RunStrategy, VERSION, WireAddVolume, WireBinding, WireCondition, WireDevices, WireDomain,
    WireFirmware, WireInterface, WireMultus, WireNetwork, WireRemoveVolume, WireTemplate, WireVm, WireVmSpec,
    WireVmStatus, WireVmi, WireVmiSpec, WireVmiStatus, WireVolume, WireVolumeRequest, WireVolumeSource,
    WireVolumeStatus,
};
pub use metadata::{Metadata, OwnerReference, null_as_default};
pub use name::{ObjectName, is_dns_label};
pub use seen::Seen;
