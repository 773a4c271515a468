//! The guest's Nodes: each is recognised as one of the VMs, initialised, kept true, and deleted with its VM.

pub mod address;
pub mod announcer;
pub mod backends;
pub mod controller;
pub mod init;
pub mod lifecycle;
pub mod metrics;
pub mod place;
pub mod recognise;
mod writes;

pub(crate) use writes::NodeWrites;
