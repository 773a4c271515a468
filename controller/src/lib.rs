//! CSI Controller and Identity: guest volumes become `DataVolumes` of the infra cluster, hotplugged into the worker
//! VMs.
//!
//! Every RPC goes the same way: `service` reads the wire, `request` validates it, a short loop observes the infra
//! cluster, asks a pure planner for the next step and carries it out. The planners are `attach` (is the disk there, may
//! it be added), `expand` (is the claim large enough, may it grow) over `claim_size`, `volume` (names, objects,
//! compatibility), `content` and `clone_method` (copies), `snapshot` and `storage_class_policy`. `error` has every error with its
//! gRPC code.
//!
//! From the bottom up, and no file uses one above it: `keys`; `request`, `storage_class_policy`, `attach`, `claim_size`;
//! `content`, `clone_method`, `expand`; `volume`; `snapshot`; `error`, `metrics`; `controller_operation`, `node_id`, `usable`;
//! `view`, `holder`, `take_snapshot`; `vm_queue`; `clone`, `hotplug`; one file for each RPC; `answer`; `service`.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

mod answer;
mod attach;
mod claim_size;
mod clone;
mod clone_method;
mod content;
mod controller_operation;
mod create;
mod create_snapshot;
mod delete;
mod delete_snapshot;
mod error;
mod expand;
mod expand_volume;
mod holder;
mod hotplug;
mod infra_reasons;
pub mod keys;
mod list_snapshots;
mod metrics;
mod moved;
mod node_id;
mod publish;
mod request;
mod serial;
mod service;
mod snapshot;
mod storage_class_policy;
mod take_snapshot;
mod unpublish;
mod usable;
mod validate;
mod view;
mod vm_queue;
mod volume;

pub use error::Error;
pub use service::{Controller, ControllerSettings};
pub use storage_class_policy::{PolicyError, StorageClassPolicy};
