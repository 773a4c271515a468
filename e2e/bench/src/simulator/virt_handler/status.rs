//! Writes planned changes into a VMI object as virt-handler words them. Pure; everything else in the object stays.
//!
//! Reasons and messages: constants and `updateHotplugVolumeStatus` of `pkg/virt-handler/{controller,vm}.go`, 1.9.0.

use serde_json::{Map, Value, json};

use super::{
    plan::{Alive, Change, Phase, VolumePhase, migrates_blocks, not_migratable},
    vmi::Vmi,
};
use crate::simulator::event::Kind;

/// `status.selinuxContext` on a node without `SELinux`. While it is empty virt-controller renders no attachment pod.
const NO_SELINUX: &str = "none";
/// The machine type that the bench's machines are.
const MACHINE_TYPE: &str = "q35";

/// An event that goes with a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlannedEvent {
    /// Normal or warning.
    pub kind: Kind,
    /// The event's reason.
    pub reason: &'static str,
    /// The event's message.
    pub message: String,
}

impl Phase {
    /// As in `status.phase`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    fn event(self) -> PlannedEvent {
        let (kind, reason, message) = match self {
            Self::Running => (Kind::Normal, "Started", "VirtualMachineInstance started."),
            Self::Succeeded => (Kind::Normal, "Stopped", "The VirtualMachineInstance was shut down."),
            Self::Failed => (Kind::Warning, "Stopped", "The VirtualMachineInstance crashed."),
        };
        PlannedEvent { kind, reason, message: message.to_owned() }
    }
}

impl VolumePhase {
    /// As in `volumeStatus[].phase`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MountedToPod => "MountedToPod",
            Self::Ready => "Ready",
            Self::UnMountedFromPod => "UnMountedFromPod",
        }
    }

    fn event(self, volume: &str) -> PlannedEvent {
        let (reason, message) = match self {
            Self::MountedToPod => {
                ("VolumeMountedToPod", format!("Volume {volume} has been mounted in virt-launcher pod"))
            }
            Self::Ready => ("VolumeReady", format!("Successfully attach hotplugged volume {volume} to VM")),
            Self::UnMountedFromPod => (
                "VolumeUnMountedFromPod",
                format!("Volume {volume} has been unmounted from virt-launcher pod"),
            ),
        };
        PlannedEvent { kind: Kind::Normal, reason, message }
    }
}

/// Writes `changes`, and what virt-handler keeps true in every update, into `object`'s status; `now` is RFC 3339.
/// `failure` is what went wrong with the machine. Returns the events to write after the object, and whether
/// anything differs at all.
pub(super) fn apply(
    object: &mut Value,
    vmi: &Vmi,
    changes: &[Change],
    alive: Option<&Alive>,
    failure: Option<&str>,
    now: &str,
) -> (Vec<PlannedEvent>, bool) {
    let status = object_at(object, "status");
    let before = status.clone();
    let mut events = Vec::new();
    for change in changes {
        events.push(match change {
            Change::Phase(phase) => {
                set_phase(status, vmi, *phase, alive, now);
                Some(phase.event())
            }
            Change::Volume { name, phase, target } => set_volume(status, name, *phase, target),
        });
    }
    if !vmi.is_final() && alive.is_some() {
        standing(status, vmi, alive.is_some_and(|alive| alive.agent));
    }
    if !vmi.is_final() {
        set_failure(status, failure);
        events.push(failure.map(|failure| PlannedEvent {
            kind: Kind::Warning,
            reason: "SyncFailed",
            message: failure.to_owned(),
        }));
    }
    let differs = *status != before;
    (events.into_iter().flatten().collect(), differs)
}

/// What holds for every VMI whose machine runs.
fn standing(status: &mut Map<String, Value>, vmi: &Vmi, agent: bool) {
    status.insert("selinuxContext".into(), NO_SELINUX.into());
    status.insert("machine".into(), json!({"type": MACHINE_TYPE}));
    let method = if migrates_blocks(vmi) { "BlockMigration" } else { "LiveMigration" };
    status.insert("migrationMethod".into(), method.into());
    set_condition(
        status,
        &match not_migratable(vmi) {
            None => condition("LiveMigratable", true),
            Some(why) => {
                let mut unable = condition("LiveMigratable", false);
                unable["reason"] = "DisksNotLiveMigratable".into();
                unable["message"] = why.into();
                unable
            }
        },
    );
    set_condition(status, &condition("StorageLiveMigratable", true));
    if agent {
        set_condition(status, &condition("AgentConnected", true));
    }
}

fn set_phase(status: &mut Map<String, Value>, vmi: &Vmi, phase: Phase, alive: Option<&Alive>, now: &str) {
    status.insert("phase".into(), phase.name().into());
    let transitions = status.entry("phaseTransitionTimestamps").or_insert_with(|| json!([]));
    if let Some(list) = transitions.as_array_mut() {
        list.push(json!({"phase": phase.name(), "phaseTransitionTimestamp": now}));
    }
    if let (Phase::Running, Some(alive)) = (phase, alive) {
        status.insert("interfaces".into(), interfaces(vmi, alive));
    }
}

/// `status.interfaces` of a machine.
pub(super) fn interfaces(vmi: &Vmi, alive: &Alive) -> Value {
    let name = vmi.spec.networks.first().map_or("default", |network| network.name.as_str());
    let source = if alive.agent { "domain, guest-agent" } else { "domain" };
    match &alive.addresses {
        Some((addresses, mac)) => json!([{
            "name": name, "ipAddress": addresses.first(), "ipAddresses": addresses, "mac": mac,
            "infoSource": source, "linkState": "up", "queueCount": 1,
        }]),
        None => json!([{"name": name, "infoSource": source, "linkState": "up", "queueCount": 1}]),
    }
}

fn set_volume(
    status: &mut Map<String, Value>,
    name: &str,
    phase: Option<VolumePhase>,
    target: &str,
) -> Option<PlannedEvent> {
    let volumes = status.get_mut("volumeStatus")?.as_array_mut()?;
    let volume = volumes.iter_mut().find(|volume| volume["name"] == name)?;
    volume["target"] = target.into();
    let phase = phase?;
    let event = phase.event(name);
    let news = volume["phase"] != phase.name();
    volume["phase"] = phase.name().into();
    volume["reason"] = event.reason.into();
    volume["message"] = event.message.clone().into();
    news.then_some(event)
}

/// Condition Synchronized is there, and False, as long as the machine can't be brought where the spec wants it
/// (`CheckFailure` of `pkg/controller`).
fn set_failure(status: &mut Map<String, Value>, failure: Option<&str>) {
    if let Some(failure) = failure {
        let mut failed = condition("Synchronized", false);
        failed["reason"] = "Synchronizing with the Domain failed.".into();
        failed["message"] = failure.into();
        set_condition(status, &failed);
    } else if let Some(list) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        list.retain(|condition| condition["type"] != "Synchronized");
    }
}

/// A condition without reason and times, as virt-handler writes it.
fn condition(kind: &str, holds: bool) -> Value {
    json!({
        "type": kind, "status": if holds { "True" } else { "False" }, "lastProbeTime": null, "lastTransitionTime": null,
    })
}

/// Replaces the condition of the same type by `wanted`. An equal condition is left as it is.
fn set_condition(status: &mut Map<String, Value>, wanted: &Value) {
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = conditions.as_array_mut() else { return };
    let same =
        |a: &Value, b: &Value| ["type", "status", "reason", "message"].iter().all(|key| a[*key] == b[*key]);
    match list.iter_mut().find(|condition| condition["type"] == wanted["type"]) {
        Some(present) if same(present, wanted) => {}
        Some(present) => *present = wanted.clone(),
        None => list.push(wanted.clone()),
    }
}

fn object_at<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value[key].is_object() {
        value[key] = json!({});
    }
    value[key].as_object_mut().expect("made an object just above")
}

#[cfg(test)]
mod tests {
    use kube::api::DynamicObject;

    use super::*;

    fn vmi(body: &Value) -> Vmi {
        let mut whole = body.clone();
        whole["metadata"] = json!({"name": "vm", "namespace": "ns"});
        Vmi::read(&serde_json::from_value::<DynamicObject>(whole).expect("an object")).expect("a VMI")
    }

    #[test]
    fn unknown_fields_stay_and_a_second_write_changes_nothing() {
        let mut body = json!({
            "spec": {"volumes": [{"name": "v", "dataVolume": {"name": "dv"}}], "new": 1},
            "status": {"phase": "Running", "future": {"a": 1}, "conditions": [{"type": "Ready", "status": "True"}],
                "volumeStatus": [{"name": "v", "phase": "MountedToPod", "size": 7, "hotplugVolume": {"attachPodUID": "p"},
                    "persistentVolumeClaimInfo": {"accessModes": ["ReadWriteOnce"]}}]},
        });
        let view = vmi(&body);
        let ready =
            [Change::Volume { name: "v".into(), phase: Some(VolumePhase::Ready), target: "sda".into() }];
        let (events, differs) = apply(&mut body, &view, &ready, Some(&Alive::default()), None, "t");
        assert!(differs);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].reason, "VolumeReady");
        assert_eq!(body["status"]["future"]["a"], 1);
        assert_eq!(body["spec"]["new"], 1);
        let volume = &body["status"]["volumeStatus"][0];
        assert_eq!(
            (&volume["size"], &volume["target"], &volume["phase"]),
            (&json!(7), &json!("sda"), &json!("Ready"))
        );
        assert_eq!(volume["message"], "Successfully attach hotplugged volume v to VM");
        assert_eq!(body["status"]["selinuxContext"], "none");
        let conditions = body["status"]["conditions"].as_array().expect("a list");
        assert_eq!(conditions.len(), 3);
        assert_eq!(conditions[1]["reason"], "DisksNotLiveMigratable");

        let view = vmi(&body);
        assert_eq!(apply(&mut body, &view, &[], Some(&Alive::default()), None, "t"), (vec![], false));
    }

    #[test]
    fn a_running_machine_shows_its_address() {
        let mut body = json!({"spec": {"networks": [{"name": "pod"}]}, "status": {"phase": "Scheduled"}});
        let view = vmi(&body);
        let addresses = ["10.77.0.11", "fd00:10:77::11"].map(|address| address.parse().expect("an address"));
        let addresses = Some((addresses.into(), "52:54:00:77:00:0b".to_owned()));
        let alive = Alive { addresses, agent: true, ..Alive::default() };
        apply(&mut body, &view, &[Change::Phase(Phase::Running)], Some(&alive), None, "2026-01-01T00:00:00Z");
        let interface = &body["status"]["interfaces"][0];
        assert_eq!(interface["name"], "pod");
        assert_eq!(interface["ipAddress"], "10.77.0.11");
        assert_eq!(interface["ipAddresses"][1], "fd00:10:77::11");
        assert_eq!(interface["mac"], "52:54:00:77:00:0b");
        assert_eq!(body["status"]["phaseTransitionTimestamps"][0]["phase"], "Running");
    }

    #[test]
    fn an_ended_machine_only_changes_the_phase() {
        let mut body = json!({"status": {"phase": "Running", "conditions": []}});
        let view = vmi(&body);
        let (events, differs) = apply(&mut body, &view, &[Change::Phase(Phase::Failed)], None, None, "t");
        assert!(differs);
        assert_eq!(events[0].message, "The VirtualMachineInstance crashed.");
        assert_eq!(body["status"]["conditions"], json!([]));
    }

    #[test]
    fn a_failure_shows_until_it_is_over() {
        let mut body = json!({"status": {"phase": "Running"}});
        let view = vmi(&body);
        let (events, differs) = apply(&mut body, &view, &[], None, Some("no such image"), "t");
        assert!(differs);
        assert_eq!((events[0].reason, events[0].message.as_str()), ("SyncFailed", "no such image"));
        assert_eq!(body["status"]["conditions"][0]["message"], "no such image");
        let (events, differs) = apply(&mut body, &view, &[], None, None, "t");
        assert_eq!((events, differs, &body["status"]["conditions"]), (vec![], true, &json!([])));
    }
}
