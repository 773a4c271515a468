//! CSI Controller and Identity: guest volumes become `DataVolumes` of the infra cluster, hotplugged into the worker VMs.
//!
//! Every RPC goes the same way: `service` reads the wire, `request` validates it, a short loop observes the infra cluster,
//! asks a pure planner what is next, and does that one thing. The planners are `attach` (is the disk there, may it be added),
//! `volume` (names, objects, compatibility) and `storage_class_policy`. What can go wrong, and its gRPC code, is in `error`.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

mod attach;
mod create;
mod delete;
mod error;
mod holder;
mod identity;
pub mod key;
mod operation;
mod publish;
mod request;
mod service;
mod storage_class_policy;
mod unpublish;
mod view;
mod vm_queue;
mod volume;
mod waits;

pub use error::Error;
pub use identity::{Identity, Wedged};
pub use service::{Controller, Settings};
pub use storage_class_policy::{PolicyError, StorageClassPolicy};
