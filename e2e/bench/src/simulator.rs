//! Stand-ins for the few parts that have no place on one machine: virt-handler, the kubelets of the infra nodes, the
//! infra storage system, the infra load balancer and its speakers. Each is one module that knows a client and a fault plan. The stand-in for node-driver-registrar
//! is a program of its own, `e2e/go/registrar`, because it runs in the guest.
//!
//! A simulator follows the rules of the part it stands for and has no feature that this part lacks; where it does less,
//! its module says so. What is decided sits in pure functions (`plan.rs` and the like), the rest carries it out.

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

mod event;
pub mod fault_plan;
pub mod infra_load_balancer;
pub mod infra_pods;
pub mod infra_speaker;
pub mod infra_storage;
pub mod quantity;
mod queue;
pub mod virt_handler;

/// Label of a launcher pod: its VMI's UID.
const CREATED_BY_LABEL: &str = "kubevirt.io/created-by";

/// How often what runs is compared with the objects that exist; only forced deletions need it.
const SWEEP_PERIOD: Duration = Duration::from_secs(5);

/// A running simulator; dropping it stops its tasks. What it has written to the cluster stays.
#[derive(Debug)]
#[must_use = "dropping it stops the simulator"]
pub struct Running {
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Running {
    fn new(tasks: Vec<AbortOnDropHandle<()>>) -> Self {
        Self { _tasks: tasks }
    }
}
