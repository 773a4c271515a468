//! Virtual machines of the bench: QEMU processes that disks are plugged into, as virt-launcher does, and real workers
//! (Debian kernel, udev, containerd, kubelet) that run in them.
//!
//! Nothing here knows Kubernetes objects of the infra cluster: which disk belongs to which VMI is the simulator's
//! knowledge. Nothing here builds programs: that is [`crate::artifact`]'s.

mod accelerator;
mod block_nodes;
mod command_line;
mod disk;
mod disk_fault;
mod guest;
mod machine;
mod machine_spec;
mod qmp;
mod refresh;
pub mod saved_state;
mod trial_boot;
mod wait;
pub mod worker;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

pub use accelerator::Accelerator;
pub use disk::{Bus, Disk};
pub use disk_fault::DiskFaults;
pub use guest::{Guest, Output};
pub use machine::Machine;
pub use machine_spec::{Boot, MachineSpec};

/// The running machines by `<namespace>/<vmi name>`. Clones name the same registry.
#[derive(Clone, Debug, Default)]
pub struct Machines(Arc<Mutex<BTreeMap<String, Arc<Machine>>>>);

impl Machines {
    /// The machine of that name, if one is registered.
    pub fn get(&self, name: &str) -> Option<Arc<Machine>> {
        self.lock().get(name).cloned()
    }

    /// Registers a machine; returns the one that had the name before.
    pub fn insert(&self, name: String, machine: Arc<Machine>) -> Option<Arc<Machine>> {
        self.lock().insert(name, machine)
    }

    /// Takes a machine out of the registry; it is not stopped.
    pub fn remove(&self, name: &str) -> Option<Arc<Machine>> {
        self.lock().remove(name)
    }

    /// The registered names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Machine>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
