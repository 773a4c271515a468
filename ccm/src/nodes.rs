//! The guest's Nodes: the CCM recognises each as one of the VMs, initialises it, keeps it up to date, and deletes it
//! when its VM is gone.

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
