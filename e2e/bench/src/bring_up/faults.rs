//! One handle on the fault plans of all simulators, so that a test injects a fault without knowing to which simulator it belongs.

use serde::{Deserialize, Serialize};

use crate::simulator::{
    fault_plan::{FaultPlan, Injected},
    infra_pods, infra_storage, virt_handler,
};

/// A fault of one of the simulators.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Of virt-handler.
    VirtHandler(virt_handler::Fault),
    /// Of the infra nodes' kubelets.
    InfraPods(infra_pods::Fault),
    /// Of the infra storage.
    InfraStorage(infra_storage::Fault),
}

/// A fault in force; dropping it takes the fault away.
#[derive(Debug)]
#[must_use = "dropping it takes the fault away"]
pub enum FaultGuard {
    /// Of virt-handler.
    VirtHandler(Injected<virt_handler::Fault>),
    /// Of the infra nodes' kubelets.
    InfraPods(Injected<infra_pods::Fault>),
    /// Of the infra storage.
    InfraStorage(Injected<infra_storage::Fault>),
}

/// The fault plans of all simulators.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// virt-handler's.
    pub virt_handler: FaultPlan<virt_handler::Fault>,
    /// The infra nodes' kubelets'.
    pub infra_pods: FaultPlan<infra_pods::Fault>,
    /// The infra storage's.
    pub infra_storage: FaultPlan<infra_storage::Fault>,
}

impl Faults {
    /// Puts `fault` in force until the guard is dropped.
    pub fn inject(&self, fault: Fault) -> FaultGuard {
        match fault {
            Fault::VirtHandler(fault) => FaultGuard::VirtHandler(self.virt_handler.inject(fault)),
            Fault::InfraPods(fault) => FaultGuard::InfraPods(self.infra_pods.inject(fault)),
            Fault::InfraStorage(fault) => FaultGuard::InfraStorage(self.infra_storage.inject(fault)),
        }
    }
}
