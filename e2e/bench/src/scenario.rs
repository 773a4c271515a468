//! What the demo shows and the tests prove, written once for both.
//!
//! A scenario drives the clusters as a user would, through their APIs alone; it returns what it saw and fails with the
//! last state if something expected does not happen.

mod chain;
mod cloud_provider;
mod guest_objects;
mod infra_objects;
mod machines;
mod narrator;
mod service_objects;
mod six_steps;
pub mod three_steps;
mod wait;

pub use chain::Chain;
pub use cloud_provider::while_provided;
pub use guest_objects::{DEVICE_PATH, MOUNT_PATH, PodOnVolume, claim, pod};
pub use infra_objects::{
    HotpluggedVolume, data_volumes, hotplugged, virtual_machine_instance_migrations,
    virtual_machine_instances, virtual_machines,
};
pub use machines::{
    CLUSTER_NAME, DATA_PATH_NODE, admit_workers, start_labelled_machine, start_machine, start_worker_machine,
};
pub use narrator::Narrator;
pub use service_objects::{PORT, answering_pod, answering_pod_spec, is_ready, load_balancer};
pub use six_steps::{SixSteps, Step};
pub use three_steps::ThreeSteps;
pub use wait::{Deadline, until, until_gone};

pub use crate::cluster::HCP_NAMESPACE;

/// The guest StorageClass that `deploy/` ships.
pub const STORAGE_CLASS: &str = "kubevirt";
