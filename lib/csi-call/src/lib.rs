//! One operation, as every CSI service of this project runs it. Nothing here is about volumes:
//!
//! - [`deadline`]: when the caller must have its answer;
//! - [`in_flight`]: at most one operation per volume at a time, and what a second caller learns about the first;
//! - [`operation`]: the task that owns an operation, so that a caller that hangs up cancels nothing that is being
//!   changed;
//! - [`identity`]: the CSI Identity service;
//! - [`contract`]: what the controller writes and the node reads, or the other way round;
//! - [`filesystems`], [`mount_flags`]: what of a capability both refuse;
//! - [`log_fields`]: the ids that stand in every log line of an operation.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking"))]

pub mod contract;
pub mod deadline;
pub mod filesystems;
pub mod identity;
pub mod in_flight;
pub mod log_fields;
pub mod mount_flags;
pub mod operation;

pub use deadline::Deadline;
pub use filesystems::Filesystem;
pub use identity::{Identity, Wedged};
pub use in_flight::{Busy, InFlight, LastReport, Lock, Scope};
pub use operation::{Operation, Operations, Unanswered};
