//! What happens to a Node that is not ready. Pure.
//!
//! A Node is deleted in two cases only, both proved by reads that succeeded: its VM has neither a `VirtualMachine` nor
//! a `VirtualMachineInstance` any more; or it was never initialised, kubelet has stopped reporting, and no VM of the
//! namespace is its machine. If the VM exists and is stopped, the Node gets the shutdown taint and stays, with
//! everything that depends on it.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use k8s_openapi::api::core::v1::Taint;

use crate::{
    guest::nodes::{GuestNode, NO_SCHEDULE, Ready, SHUTDOWN_TAINT},
    nodes::recognise::VmState,
};

/// What is known of a Node's VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeVm {
    /// It is one of our VMs, in this state.
    Vm(VmState),
    /// It has none: every VM was read, and none is its machine.
    NoVm,
    /// It is another provider's, or nothing is known.
    Undecided,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing.
    Leave,
    /// Write these taints, the whole list: the shutdown taint was added or removed.
    Taint(Vec<Taint>),
    /// Delete the Node, if live reads right before show the same.
    Delete,
}

/// What to do with `node`.
pub fn plan(node: &GuestNode, node_vm: NodeVm) -> Step {
    if node.deleting {
        return Step::Leave;
    }
    let tainted = node.has_taint(SHUTDOWN_TAINT);
    match (node.ready, node_vm) {
        (Ready::True, NodeVm::Vm(_)) if tainted => Step::Taint(node.taints_without(SHUTDOWN_TAINT)),
        (Ready::False | Ready::Unknown, NodeVm::Vm(VmState::Gone)) => Step::Delete,
        (Ready::False | Ready::Unknown, NodeVm::Vm(VmState::ShutDown)) if !tainted => {
            Step::Taint(shut_down(node))
        }
        // Kubelet registers a Node as not ready, so `Unknown` means that kubelet did report once.
        (Ready::Unknown, NodeVm::NoVm) if node.is_uninitialized() => Step::Delete,
        (Ready::True | Ready::False | Ready::Unknown, NodeVm::Vm(_) | NodeVm::NoVm | NodeVm::Undecided) => {
            Step::Leave
        }
    }
}

fn shut_down(node: &GuestNode) -> Vec<Taint> {
    let taint = Taint { key: SHUTDOWN_TAINT.into(), effect: NO_SCHEDULE.into(), ..Taint::default() };
    node.taints.iter().cloned().chain([taint]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        guest::nodes::UNINITIALIZED_TAINT,
        infra::machines::{Vm, Vmi},
        nodes::recognise::vm_state,
    };
    use kubevirt::{Phase, RunStrategy, Seen};
    use proptest::prelude::*;
    use rstest::rstest;
    use std::sync::Arc;

    const UNINIT: &[&str] = &[UNINITIALIZED_TAINT];
    const SHUT: &[&str] = &[SHUTDOWN_TAINT];

    fn node(ready: Ready, taints: &[&str]) -> GuestNode {
        let taint = |key: &&str| Taint { key: (*key).into(), effect: NO_SCHEDULE.into(), ..Taint::default() };
        GuestNode { ready, taints: taints.iter().map(taint).collect(), ..GuestNode::default() }
    }

    fn keys(step: &Step) -> Option<Vec<&str>> {
        match step {
            Step::Taint(taints) => Some(taints.iter().map(|taint| taint.key.as_str()).collect()),
            Step::Leave | Step::Delete => None,
        }
    }

    #[rstest]
    #[case::running(Ready::True, &[], NodeVm::Vm(VmState::Exists), Step::Leave)]
    #[case::booting(Ready::False, &[], NodeVm::Vm(VmState::Exists), Step::Leave)]
    #[case::restarting(Ready::Unknown, &[], NodeVm::Vm(VmState::Exists), Step::Leave)]
    #[case::unknown(Ready::Unknown, &[], NodeVm::Vm(VmState::Unknown), Step::Leave)]
    #[case::tainted_already(Ready::Unknown, SHUT, NodeVm::Vm(VmState::ShutDown), Step::Leave)]
    #[case::starting_again(Ready::False, SHUT, NodeVm::Vm(VmState::Exists), Step::Leave)]
    #[case::gone(Ready::Unknown, &[], NodeVm::Vm(VmState::Gone), Step::Delete)]
    #[case::gone_at_once(Ready::False, &[], NodeVm::Vm(VmState::Gone), Step::Delete)]
    #[case::gone_but_ready(Ready::True, &[], NodeVm::Vm(VmState::Gone), Step::Leave)]
    #[case::gone_before_initialised(Ready::False, UNINIT, NodeVm::Vm(VmState::Gone), Step::Delete)]
    #[case::nobodys_and_silent(Ready::Unknown, UNINIT, NodeVm::NoVm, Step::Delete)]
    #[case::nobodys_and_booting(Ready::False, UNINIT, NodeVm::NoVm, Step::Leave)]
    #[case::nobodys_and_initialised(Ready::Unknown, &[], NodeVm::NoVm, Step::Leave)]
    #[case::foreign(Ready::Unknown, UNINIT, NodeVm::Undecided, Step::Leave)]
    #[case::foreign_and_ready(Ready::True, SHUT, NodeVm::Undecided, Step::Leave)]
    fn steps(#[case] ready: Ready, #[case] taints: &[&str], #[case] node_vm: NodeVm, #[case] expected: Step) {
        assert_eq!(plan(&node(ready, taints), node_vm), expected);
        let deleting = GuestNode { deleting: true, ..node(ready, taints) };
        assert_eq!(plan(&deleting, node_vm), Step::Leave);
    }

    #[test]
    fn the_shutdown_taint_comes_and_goes_without_touching_others() {
        let stopped = plan(&node(Ready::Unknown, &["other"]), NodeVm::Vm(VmState::ShutDown));
        assert_eq!(keys(&stopped), Some(vec!["other", SHUTDOWN_TAINT]));
        let back = plan(&node(Ready::True, &["other", SHUTDOWN_TAINT]), NodeVm::Vm(VmState::Exists));
        assert_eq!(keys(&back), Some(vec!["other"]));
    }

    fn reads<T: Clone + std::fmt::Debug + 'static>(shown: Vec<T>) -> impl Strategy<Value = Seen<Arc<T>>> {
        let present = prop::sample::select(shown).prop_map(|shown| Seen::Present(Arc::new(shown)));
        prop_oneof![Just(Seen::Unseen), Just(Seen::Absent), present]
    }

    fn vms() -> Vec<Vm> {
        let strategies =
            [RunStrategy::Always, RunStrategy::RerunOnFailure, RunStrategy::Halted, RunStrategy::Other];
        let with = |strategy: RunStrategy, status: &str| Vm {
            strategy,
            printable_status: status.into(),
            ..Vm::default()
        };
        strategies.into_iter().flat_map(|s| [with(s, "Stopped"), with(s, "Starting")]).collect()
    }

    fn vmis() -> Vec<Vmi> {
        let unknown = Phase::Unknown("Unknown".into());
        let phases = [Phase::Starting, Phase::Running, Phase::Succeeded, Phase::Failed, unknown];
        phases.into_iter().map(|phase| Vmi { phase, ..Vmi::default() }).collect()
    }

    proptest! {
        /// Neither a failed read nor anything unknown leads to a deletion; after a plan was carried out nothing is left
        /// to do.
        #[test]
        fn only_proved_absence_deletes(
            vm in reads(vms()), vmi in reads(vmis()),
            ready in prop::sample::select(vec![Ready::True, Ready::False, Ready::Unknown]),
            taints in prop::sample::subsequence(vec!["other", UNINITIALIZED_TAINT, SHUTDOWN_TAINT], 0..=3),
        ) {
            let mut node = node(ready, &taints);
            let node_vm = NodeVm::Vm(vm_state(&vm, &vmi));
            match plan(&node, node_vm) {
                Step::Delete => prop_assert!(vm == Seen::Absent && vmi == Seen::Absent && ready != Ready::True),
                Step::Taint(taints) => {
                    node.taints = taints;
                    prop_assert_eq!(plan(&node, node_vm), Step::Leave);
                }
                Step::Leave => {}
            }
            prop_assert_ne!(plan(&node, NodeVm::Undecided), Step::Delete);
        }
    }
}
