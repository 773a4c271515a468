//! The CSI Node service: finds the hotplugged disk in the worker, formats only what is proved blank, mounts it and
//! publishes it to pods.
//!
//! It runs inside the VM and communicates with the kubelet (gRPC), the kernel and the distribution's own filesystem
//! programs. It never calls the infra cluster, and of the guest API it needs one read, which the caller supplies as a
//! [`NodeIdentitySource`].
//!
//! Every mutating call is *observe → plan → act*, repeated until the plan is empty: [`stage`] and [`publish`] plan,
//! [`host`] observes and acts, [`mutation`] is the loop, and [`volumes`] gives each call its lock, its thread and its
//! deadline.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap fails the test"))]

pub mod context;
pub mod device;
pub mod device_number;
pub mod disk_record;
pub mod error;
pub mod expand;
pub mod filesystem;
pub mod host;
pub mod linux;
mod metrics;
#[cfg(test)]
mod model;
pub mod mount_options;
pub mod mount_table;
pub mod mutation;
pub mod node_id;
pub mod origin;
mod own_signature;
pub mod path_state;
mod pool;
pub mod probe;
pub mod publish;
mod release;
pub mod request;
mod service;
mod settings;
pub mod stage;
pub mod stats;
pub mod step;
mod unstage;
pub mod usage;
pub mod volumes;

pub use error::{Error, Result};
pub use metrics::Metrics;
pub use node_id::{NodeIdentitySource, NodeObject};
pub use service::Node;
pub use settings::{DISK_RECORDS, HostPaths, NodeSettings};
