//! The faults that virt-handler can inject, and into which VMIs and volumes.

use serde::{Deserialize, Serialize};

use super::{plan::Step, vmi::Vmi};
use crate::simulator::fault_plan::{HeldStep, selects};

/// The faults that virt-handler can inject.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A step comes late, or not at all.
    Hold(HeldStep<Step, Selector>),
    /// Disks plugged from now on answer EIO when these sectors (512 bytes each) are read.
    ReadErrors {
        /// The sectors.
        sectors: Vec<u64>,
        /// Of which disks.
        #[serde(default)]
        at: Selector,
    },
}

/// Which VMIs and volumes a fault is about; what is absent selects all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selector {
    /// The VMI's namespace.
    pub namespace: Option<String>,
    /// The VMI's name.
    pub vm: Option<String>,
    /// The volume's name.
    pub volume: Option<String>,
}

impl Selector {
    pub(super) fn selects(&self, vmi: &Vmi, volume: &str) -> bool {
        selects(self.namespace.as_deref(), &vmi.namespace)
            && selects(self.vm.as_deref(), &vmi.name)
            && selects(self.volume.as_deref(), volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::fault_plan::Hold;

    #[test]
    fn faults_are_plain_json() {
        let fault: Fault =
            serde_json::from_str(r#"{"hold": {"step": "ready", "hold": {"millis": 500}}}"#).expect("a fault");
        let vmi = Vmi::default();
        assert!(
            matches!(&fault, Fault::Hold(held) if held.step == Step::Ready && held.hold == Hold::Millis(500) && held.at.selects(&vmi, "v"))
        );
        let one = Selector { volume: Some("v".into()), ..Selector::default() };
        assert!(one.selects(&vmi, "v") && !one.selects(&vmi, "w"));
        assert!(serde_json::from_str::<Selector>(r#"{"volumes": "v"}"#).is_err());
    }
}
