//! A live migration as both virt-handlers write it into the VMI. Pure: no clock, no client, no machine.
//!
//! Follows `pkg/virt-handler/migration-{source,target}.go` of KubeVirt 1.9.0 (`updateStatus`, `ackMigrationCompletion`,
//! `finalizeMigration`); what comes before (target pod, hand-off to the target node) and after is virt-controller's own. The
//! machine's process stays where it is: all infra nodes of the bench are one host.
//!
//! What it does not do: aborting, failing, decentralized migrations, dedicated CPUs, and the progress in between.

use std::net::IpAddr;

use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::vmi::Vmi;

/// Label with which virt-controller gives the VMI to the target's virt-handler.
const TARGET_LABEL: &str = "kubevirt.io/migrationTargetNodeName";
/// Label that names the node on which the machine runs.
const NODE_LABEL: &str = "kubevirt.io/nodeName";
/// The port of libvirt's own migration protocol, which the target's proxy stands for.
const LIBVIRT_PORT: &str = "49152";

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The target listens.
    Listen,
    /// The source begins.
    Begin,
    /// The target has the machine, running.
    Detect,
    /// The VMI is the target's now.
    HandOver,
    /// The target has finished what was left to do.
    Complete,
}

/// The next stage of a migration, and the node whose virt-handler writes it.
pub(super) fn next(vmi: &Vmi) -> Option<(Stage, &str)> {
    let state = vmi.status.migration_state.as_ref()?;
    let target = state.target_node.as_str();
    if state.completed || state.failed || vmi.deleting || vmi.is_final() || target.is_empty() {
        return None;
    }
    if state.end_timestamp.is_some() {
        return Some((Stage::Complete, target));
    }
    if vmi.labels.get(TARGET_LABEL).map(String::as_str) != Some(target) {
        return None;
    }
    Some(match state {
        state if state.target_node_address.is_empty() => (Stage::Listen, target),
        state if state.start_timestamp.is_none() => (Stage::Begin, &state.source_node),
        state if state.target_node_domain_ready_timestamp.is_none() => (Stage::Detect, target),
        _ => (Stage::HandOver, target),
    })
}

/// Writes a stage; `now` is RFC 3339, `host` the target node's address.
pub(super) fn write(object: &mut DynamicObject, vmi: &Vmi, stage: Stage, host: IpAddr, now: &str) {
    let target = vmi.status.migration_state.as_ref().map_or("", |state| &state.target_node).to_owned();
    let status = &mut object.data["status"];
    let migration = &mut status["migrationState"];
    match stage {
        Stage::Listen => {
            migration["targetNodeAddress"] = json!(host);
            migration["targetDirectMigrationNodePorts"] = json!({LIBVIRT_PORT: 0});
        }
        Stage::Begin => migration["startTimestamp"] = now.into(),
        Stage::Detect => {
            migration["targetNodeDomainDetected"] = true.into();
            migration["targetNodeDomainReadyTimestamp"] = now.into();
        }
        Stage::HandOver => {
            migration["endTimestamp"] = now.into();
            status["nodeName"] = json!(target);
            status["evacuationNodeName"] = Value::Null;
            status["launcherContainerImageVersion"] = Value::Null;
            status["migrationTransport"] = "Unix".into();
            object.metadata.labels.get_or_insert_default().insert(NODE_LABEL.to_owned(), target);
        }
        Stage::Complete => migration["completed"] = true.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    /// A VMI that virt-controller handed to the target's virt-handler.
    fn handed_off() -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": {"name": "vm", "namespace": "ns", "labels": {TARGET_LABEL: "b", NODE_LABEL: "a"}},
            "status": {"phase": "Running", "nodeName": "a", "migrationState": {"migrationUid": "u",
                "sourceNode": "a", "targetNode": "b", "targetPod": "p"}},
        }))
        .expect("an object")
    }

    #[test]
    fn the_machine_is_the_sources_until_it_is_handed_over() {
        let mut object = handed_off();
        let mut stages = Vec::new();
        loop {
            let vmi = Vmi::read(&object).expect("a VMI");
            let Some((stage, node)) = next(&vmi) else { break };
            let node = node.to_owned();
            write(&mut object, &vmi, stage, [10, 99, 0, 1].into(), NOW);
            stages.push((
                stage,
                node,
                object.data["status"]["nodeName"].as_str().unwrap_or_default().to_owned(),
            ));
        }
        let expected = [
            (Stage::Listen, "b", "a"),
            (Stage::Begin, "a", "a"),
            (Stage::Detect, "b", "a"),
            (Stage::HandOver, "b", "b"),
            (Stage::Complete, "b", "b"),
        ];
        let seen: Vec<_> = stages.iter().map(|(stage, by, on)| (*stage, by.as_str(), on.as_str())).collect();
        assert_eq!(seen, expected);
        assert_eq!(object.metadata.labels.expect("labels")[NODE_LABEL], "b");
    }

    #[test]
    fn nothing_is_written_of_what_is_not_handed_off_or_over() {
        let cases: [fn(&mut Value); 3] = [
            |status| status["migrationState"]["failed"] = true.into(),
            |status| status["phase"] = "Succeeded".into(),
            |status| status["migrationState"]["targetNode"] = "c".into(),
        ];
        for change in cases {
            let mut object = handed_off();
            change(&mut object.data["status"]);
            assert_eq!(next(&Vmi::read(&object).expect("a VMI")), None);
        }
    }
}
