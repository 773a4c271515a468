//! Tests of `plan.rs`, and a small model of virt-controller that shows where the rules lead.

use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::*;

fn vmi(phase: &str, volumes: &[&str], statuses: &Value) -> Vmi {
    let disks: Vec<Value> =
        volumes.iter().map(|v| json!({"name": v, "serial": v, "disk": {"bus": "scsi"}})).collect();
    let volumes: Vec<Value> = volumes.iter().map(|v| json!({"name": v, "dataVolume": {"name": v}})).collect();
    let object: DynamicObject = serde_json::from_value(json!({
        "metadata": {"name": "vm", "namespace": "ns", "uid": "u"},
        "spec": {"domain": {"devices": {"disks": disks}}, "volumes": volumes},
        "status": {"phase": phase, "nodeName": "n", "volumeStatus": statuses},
    }))
    .expect("an object");
    Vmi::read(&object).expect("a VMI")
}

fn status(name: &str, phase: &str, target: &str, pod: &str) -> Value {
    json!({"name": name, "phase": phase, "target": target, "hotplugVolume": {"attachPodUID": pod}})
}

fn alive(plugged: &[&str]) -> Domain {
    Domain::Alive(Alive { plugged: plugged.iter().map(ToString::to_string).collect(), ..Alive::default() })
}

fn volume(name: &str, phase: VolumePhase, target: &str) -> Change {
    Change::Volume { name: name.into(), phase: Some(phase), target: target.into() }
}

fn go(_: Step, _: &str) -> bool {
    true
}

#[test]
fn a_scheduled_vmi_is_started_then_running() {
    let vmi = vmi("Scheduled", &[], &json!([]));
    assert_eq!(acts(&vmi, &Domain::Absent, &mut go), [Act::Start]);
    assert_eq!(changes(&vmi, &Domain::Absent, &mut go), []);
    assert_eq!(acts(&vmi, &alive(&[]), &mut go), []);
    assert_eq!(changes(&vmi, &alive(&[]), &mut go), [Change::Phase(Phase::Running)]);
}

#[test]
fn phases_that_are_not_virt_handlers_are_left_alone() {
    for phase in ["", "Pending", "Scheduling", "Succeeded", "Failed", "Unknown"] {
        let vmi = vmi(phase, &["v"], &json!([status("v", "AttachedToNode", "", "pod")]));
        for domain in [Domain::Absent, Domain::Ended { clean: true }] {
            let what_is_left: &[Act] =
                if vmi.is_final() && domain != Domain::Absent { &[Act::Stop] } else { &[] };
            assert_eq!(acts(&vmi, &domain, &mut go), what_is_left, "{phase}");
            assert_eq!(changes(&vmi, &domain, &mut go), [], "{phase}");
        }
    }
}

#[test]
fn deletion_stops_the_machine_then_succeeds() {
    let mut vmi = vmi("Running", &[], &json!([]));
    vmi.deleting = true;
    assert_eq!(acts(&vmi, &alive(&[]), &mut go), [Act::Stop]);
    assert_eq!(changes(&vmi, &alive(&[]), &mut go), []);
    assert_eq!(changes(&vmi, &Domain::Absent, &mut go), [Change::Phase(Phase::Succeeded)]);
}

#[test]
fn a_machine_that_ends_by_itself() {
    let running = vmi("Running", &[], &json!([]));
    assert_eq!(changes(&running, &Domain::Ended { clean: false }, &mut go), [Change::Phase(Phase::Failed)]);
    assert_eq!(changes(&running, &Domain::Ended { clean: true }, &mut go), [Change::Phase(Phase::Succeeded)]);
    assert_eq!(changes(&running, &Domain::Absent, &mut go), [Change::Phase(Phase::Failed)]);
    let failed = vmi("Failed", &[], &json!([]));
    assert_eq!(acts(&failed, &alive(&[]), &mut go), [Act::Stop], "a final VMI keeps no machine");
}

#[test]
fn a_volume_waits_for_its_pod_then_is_mounted_plugged_ready() {
    let early = vmi("Running", &["v"], &json!([status("v", "AttachedToNode", "", "")]));
    assert_eq!(changes(&early, &alive(&[]), &mut go), []);
    let attached = vmi("Running", &["v"], &json!([status("v", "AttachedToNode", "", "pod")]));
    assert_eq!(acts(&attached, &alive(&[]), &mut go), []);
    assert_eq!(changes(&attached, &alive(&[]), &mut go), [volume("v", VolumePhase::MountedToPod, "")]);
    let mounted = vmi("Running", &["v"], &json!([status("v", "MountedToPod", "", "pod")]));
    assert_eq!(acts(&mounted, &alive(&[]), &mut go), [Act::Plug("v".into())]);
    assert_eq!(changes(&mounted, &alive(&["v"]), &mut go), [volume("v", VolumePhase::Ready, "sda")]);
    let ready = vmi("Running", &["v"], &json!([status("v", "Ready", "sda", "pod")]));
    assert_eq!(acts(&ready, &alive(&["v"]), &mut go), []);
    assert_eq!(changes(&ready, &alive(&["v"]), &mut go), []);
}

#[test]
fn ready_survives_a_change_of_attachment_pod() {
    let vmi = vmi("Running", &["v"], &json!([status("v", "Ready", "sda", "")]));
    assert_eq!(changes(&vmi, &alive(&["v"]), &mut go), []);
}

#[test]
fn a_removed_volume_keeps_its_status_until_the_machine_lets_go() {
    let vmi = vmi("Running", &[], &json!([status("v", "Ready", "sda", "pod")]));
    assert_eq!(acts(&vmi, &alive(&["v"]), &mut go), [Act::Unplug("v".into())]);
    assert_eq!(changes(&vmi, &alive(&["v"]), &mut go), []);
    assert_eq!(changes(&vmi, &alive(&[]), &mut go), [volume("v", VolumePhase::UnMountedFromPod, "")]);
}

#[test]
fn a_target_goes_with_its_disk_even_when_the_phase_does_not() {
    let gone = vmi("Running", &[], &json!([status("v", "Ready", "sda", "pod")]));
    let no_target = Change::Volume { name: "v".into(), phase: None, target: String::new() };
    let mut hold_unmount = |step, _: &str| step != Step::Unmount;
    assert_eq!(changes(&gone, &alive(&[]), &mut hold_unmount), std::slice::from_ref(&no_target));
    let lost = vmi("Running", &["v"], &json!([status("v", "Ready", "sda", "pod")]));
    assert_eq!(acts(&lost, &alive(&[]), &mut go), [Act::Plug("v".into())]);
    assert_eq!(changes(&lost, &alive(&[]), &mut go), [no_target]);
}

#[test]
fn sata_disks_never_attach() {
    let mut vmi = vmi("Running", &["v"], &json!([status("v", "MountedToPod", "", "pod")]));
    vmi.spec.domain.devices.disks[0].disk = Some(super::super::vmi::Target { bus: "sata".into() });
    assert_eq!(acts(&vmi, &alive(&[]), &mut go), []);
}

#[test]
fn a_held_volume_does_not_hold_its_neighbour() {
    let both = json!([status("a", "AttachedToNode", "", "pod"), status("b", "AttachedToNode", "", "pod")]);
    let vmi = vmi("Running", &["a", "b"], &both);
    let mut hold_a = |step, volume: &str| !(step == Step::Mount && volume == "a");
    assert_eq!(changes(&vmi, &alive(&[]), &mut hold_a), [volume("b", VolumePhase::MountedToPod, "")]);
}

#[test]
fn targets_are_distinct_and_kept() {
    let statuses = json!([
        {"name": "root", "target": ""},
        status("a", "Ready", "sdb", "pod"), status("b", "MountedToPod", "", "pod"), status("c", "MountedToPod", "", "pod"),
    ]);
    let vmi = vmi("Running", &["root", "a", "b", "c"], &statuses);
    let targets: Vec<String> = changes(&vmi, &alive(&["a", "b", "c"]), &mut go)
        .into_iter()
        .filter_map(|change| match change {
            Change::Volume { target, .. } => Some(target),
            Change::Phase(_) => None,
        })
        .collect();
    assert_eq!(targets, ["sda", "sdc", "sdd"]);
    assert_eq!(
        [letters(0), letters(25), letters(26), letters(701), letters(702)],
        ["a", "z", "aa", "zz", "aaa"]
    );
}

#[test]
fn rwo_claims_forbid_migration_in_virt_handlers_words() {
    let info = |mode: &str| json!([{"name": "v", "persistentVolumeClaimInfo": {"accessModes": [mode]}}]);
    assert_eq!(not_migratable(&vmi("Running", &["v"], &info("ReadWriteMany"))), None);
    assert_eq!(
        not_migratable(&vmi("Running", &["v"], &info("ReadWriteOnce"))).as_deref(),
        Some(
            "cannot migrate VMI: PVC v is not shared, live migration requires that all PVCs must be shared \
             (using ReadWriteMany access mode)"
        )
    );
    assert!(
        not_migratable(&vmi("Running", &["v"], &json!([])))
            .is_some_and(|why| why.contains("Unable to determine"))
    );
}

/// From every status that virt-controller can leave, with the disk plugged or not, repeating the plan comes to rest, and
/// at rest the disk is plugged exactly if the spec wants it.
#[test]
fn every_start_comes_to_rest_where_the_spec_says() {
    for phase in
        ["", "Pending", "Bound", "AttachedToNode", "MountedToPod", "Ready", "Detaching", "UnMountedFromPod"]
    {
        for (wanted, was_plugged) in [(true, true), (true, false), (false, true), (false, false)] {
            let spec: &[&str] = if wanted { &["v"] } else { &[] };
            let mut plugged: BTreeSet<String> = was_plugged.then(|| "v".to_owned()).into_iter().collect();
            let (mut phase_now, mut target) =
                (phase.to_owned(), if was_plugged { "sda" } else { "" }.to_owned());
            let mut rounds = 0;
            loop {
                let vmi = vmi("Running", spec, &json!([status("v", &phase_now, &target, "pod")]));
                let domain = Domain::Alive(Alive { plugged: plugged.clone(), ..Alive::default() });
                let todo = acts(&vmi, &domain, &mut go);
                for act in &todo {
                    match act {
                        Act::Plug(v) => assert!(plugged.insert(v.clone()), "plugged twice"),
                        Act::Unplug(v) => assert!(plugged.remove(v), "unplugged twice"),
                        Act::Start | Act::Stop => panic!("not about disks"),
                    }
                }
                let domain = Domain::Alive(Alive { plugged: plugged.clone(), ..Alive::default() });
                let written = changes(&vmi, &domain, &mut go);
                for change in &written {
                    let Change::Volume { phase, target: t, .. } = change else { panic!("not about disks") };
                    if let Some(phase) = phase {
                        phase_now = format!("{phase:?}");
                    }
                    target.clone_from(t);
                }
                if todo.is_empty() && written.is_empty() {
                    break;
                }
                rounds += 1;
                assert!(rounds < 10, "no rest from {phase} wanted={wanted} plugged={was_plugged}");
            }
            let detaching = matches!(phase, "Detaching" | "UnMountedFromPod") && !was_plugged;
            assert_eq!(plugged.contains("v"), wanted && !detaching, "{phase} {wanted} {was_plugged}");
        }
    }
}

#[test]
fn a_plugged_disk_grows_as_long_as_it_is_wanted_and_its_claim_is_known() {
    let mut known = status("v", "Ready", "sda", "pod");
    known["persistentVolumeClaimInfo"] = json!({"claimName": "v", "capacity": {"storage": "1Gi"}});
    let statuses = json!([known, status("unknown", "Ready", "sdb", "pod")]);
    let both = vmi("Running", &["v", "unknown"], &statuses);
    let names = |vmi: &Vmi, domain: &Domain| {
        growing(vmi, domain).map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&both, &alive(&["v", "unknown"])), ["v"]);
    assert!(names(&both, &alive(&["unknown"])).is_empty(), "it is not plugged");
    assert!(names(&both, &Domain::Absent).is_empty());
    assert!(names(&vmi("Running", &[], &statuses), &alive(&["v"])).is_empty(), "it is being unplugged");
    assert!(names(&vmi("Scheduled", &["v"], &statuses), &alive(&["v"])).is_empty());
    let deleted = Vmi { deleting: true, ..both };
    assert!(names(&deleted, &alive(&["v"])).is_empty());
}
