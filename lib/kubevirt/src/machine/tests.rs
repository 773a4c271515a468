use super::*;
use rstest::rstest;
use serde_json::{Value, json};

fn vm(value: Value) -> WireVm {
    serde_json::from_value(value).unwrap()
}

fn vmi(value: Value) -> WireVmi {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_vm_keeps_what_either_program_reads() {
    let vm = vm(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "vm1", "uid": "u", "resourceVersion": "7", "managedFields": [{"manager": "x"}]},
        "spec": {"runStrategy": "Always", "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
            "hostname": "worker-1",
            "domain": {"cpu": {"cores": 2}, "firmware": {"uuid": "5d307ca9", "bootloader": {}}},
            "volumes": [
                {"name": "root", "containerDisk": {"image": "x"}},
                {"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}},
                {"name": "other", "persistentVolumeClaim": {"claimName": "pvc-2"}},
            ]}}},
        "status": {"printableStatus": "Running", "volumeRequests": [
            {"addVolumeOptions": {"name": "pvc-3", "volumeSource": {"dataVolume": {"name": "pvc-3"}}}},
            {"removeVolumeOptions": {"name": "pvc-1"}},
        ]},
    }));
    assert_eq!((vm.metadata.name.as_str(), vm.metadata.resource_version.as_str()), ("vm1", "7"));
    let template = vm.spec.template.spec;
    assert_eq!(template.hostname.as_deref(), Some("worker-1"));
    assert_eq!(template.domain.firmware, Some(WireFirmware { uuid: "5d307ca9".into() }));
    let source = |name: &str, claim_name: &str, hotpluggable| {
        Some(WireVolumeSource { name: name.into(), claim_name: claim_name.into(), hotpluggable })
    };
    let volumes = [
        WireVolume { name: "root".into(), ..WireVolume::default() },
        WireVolume { name: "pvc-1".into(), data_volume: source("pvc-1", "", true), ..WireVolume::default() },
        WireVolume {
            name: "other".into(),
            persistent_volume_claim: source("", "pvc-2", false),
            ..WireVolume::default()
        },
    ];
    assert_eq!(template.volumes, volumes);
    let [add, remove] = vm.status.volume_requests.as_slice() else { panic!("there are two") };
    let added = add.add_volume_options.as_ref().unwrap();
    assert_eq!(
        (added.name.as_str(), &added.volume_source.data_volume),
        ("pvc-3", &source("pvc-3", "", false))
    );
    assert_eq!(add.remove_volume_options, None);
    assert_eq!(remove.remove_volume_options, Some(WireRemoveVolume { name: "pvc-1".into() }));
}

#[test]
fn a_vmi_keeps_what_either_program_reads() {
    let vmi = vmi(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {
            "name": "vm1", "labels": {"l": "1"}, "annotations": {"a": "2"}, "deletionTimestamp": "2026-11-29T00:00:00Z",
            "ownerReferences": [{"kind": "VirtualMachine", "name": "vm1", "controller": true}],
        },
        "spec": {
            "networks": [{"name": "default", "pod": {}}, {"name": "lan", "multus": {"networkName": "hcp/lan"}}],
            "volumes": [{"name": "root", "containerDisk": {"image": "x"}}],
        },
        "status": {
            "phase": "Running", "nodeName": "infra-1",
            "conditions": [{"type": "Ready", "status": "True", "reason": "x"}],
            "interfaces": [{"name": "default", "ipAddress": "10.0.0.7", "ipAddresses": ["10.0.0.7", "fd00::7"], "mac": "x"}],
            "volumeStatus": [
                {"name": "pvc-1", "phase": "Ready", "target": "sda", "hotplugVolume": {"attachPodName": "p"}},
                {"name": "x", "phase": "HotplugVolumeFailed", "reason": "R", "message": "m",
                 "persistentVolumeClaimInfo": {"claimName": "pvc-2"}},
            ],
        },
    }));
    let metadata = vmi.metadata;
    assert_eq!((metadata.labels["l"].as_str(), metadata.annotations["a"].as_str()), ("1", "2"));
    assert!(metadata.deletion_timestamp.is_some() && metadata.owner_references[0].controller);
    let [pod, lan] = vmi.spec.networks.as_slice() else { panic!("there are two") };
    assert!(pod.pod.is_some() && lan.pod.is_none());
    assert_eq!((&pod.multus, &lan.multus), (&None, &Some(WireMultus { network_name: "hcp/lan".into() })));
    let status = vmi.status;
    assert_eq!((status.phase, status.node_name.as_deref()), (Phase::Running, Some("infra-1")));
    let [ready] = status.conditions.as_slice() else { panic!("there is one") };
    assert_eq!((ready.kind.as_str(), ready.status.as_str(), ready.reason.as_str()), ("Ready", "True", "x"));
    assert_eq!(status.interfaces[0].ip_addresses, ["10.0.0.7", "fd00::7"]);
    let [ready, failed] = status.volume_status.as_slice() else { panic!("there are two") };
    assert!(ready.hotplug_volume.is_some() && failed.hotplug_volume.is_none());
    assert_eq!((ready.target.as_str(), failed.target.as_str()), ("sda", ""));
    assert_eq!((failed.reason.as_str(), failed.message.as_str()), ("R", "m"));
    assert_eq!(failed.persistent_volume_claim_info.as_ref().unwrap().claim_name, "pvc-2");
}

/// Go writes a nil slice or map as `null`, and leaves out what is empty. An object that KubeVirt has only just admitted
/// has no status.
#[rstest]
#[case::nothing(json!({}))]
#[case::sections(json!({"metadata": {}, "spec": {}, "status": {}}))]
#[case::null_sections(json!({"metadata": null, "spec": null, "status": null}))]
#[case::null_template(json!({"spec": {"runStrategy": null, "running": null, "template": null}}))]
#[case::null_template_spec(json!({"spec": {"template": {"metadata": null, "spec": null}}}))]
#[case::null_lists(json!({
    "metadata": {"labels": null, "annotations": null, "ownerReferences": null},
    "spec": {"template": {"spec": {"hostname": null, "domain": null, "networks": null, "volumes": null}}},
    "status": {"printableStatus": null, "volumeRequests": null},
}))]
fn a_vm_without_a_field_is_read(#[case] value: Value) {
    assert_eq!(vm(value), WireVm::default());
}

#[rstest]
#[case::nothing(json!({}))]
#[case::sections(json!({"metadata": {}, "spec": {}, "status": {}}))]
#[case::null_sections(json!({"metadata": null, "spec": null, "status": null}))]
#[case::null_firmware(json!({"spec": {"domain": {"firmware": null}}}))]
#[case::null_lists(json!({
    "metadata": {"labels": null, "annotations": null, "ownerReferences": null},
    "spec": {"hostname": null, "domain": null, "networks": null, "volumes": null},
    "status": {"phase": null, "nodeName": null, "interfaces": null, "conditions": null, "activePods": null, "volumeStatus": null},
}))]
fn a_vmi_without_a_field_is_read(#[case] value: Value) {
    assert_eq!(vmi(value), WireVmi::default());
}

#[test]
fn an_item_with_nulls_is_as_an_empty_one() {
    let request = json!({"addVolumeOptions": {"name": null, "volumeSource": null}, "removeVolumeOptions": {"name": null}});
    let vm = vm(
        json!({"status": {"volumeRequests": [request, {"addVolumeOptions": null, "removeVolumeOptions": null}]}}),
    );
    let set = WireVolumeRequest {
        add_volume_options: Some(WireAddVolume::default()),
        remove_volume_options: Some(WireRemoveVolume::default()),
    };
    assert_eq!(vm.status.volume_requests, [set, WireVolumeRequest::default()]);

    let source = json!({"name": null, "claimName": null, "hotpluggable": null});
    let vmi = vmi(json!({
        "spec": {
            "domain": {"firmware": {"uuid": null}},
            "networks": [{"name": null, "pod": null, "multus": null}, {"multus": {"networkName": null}}],
            "volumes": [{"name": null, "dataVolume": null, "persistentVolumeClaim": null}, {"dataVolume": source}],
        },
        "status": {
            "interfaces": [{"name": null, "ipAddress": null, "ipAddresses": null}],
            "conditions": [{"type": null, "status": null, "reason": null, "message": null}],
            "volumeStatus": [{"name": null, "phase": null, "reason": null, "message": null, "target": null,
                "hotplugVolume": null, "persistentVolumeClaimInfo": null}],
        },
    }));
    assert_eq!(vmi.spec.domain.firmware, Some(WireFirmware::default()));
    let multus = WireNetwork { multus: Some(WireMultus::default()), ..WireNetwork::default() };
    assert_eq!(vmi.spec.networks, [WireNetwork::default(), multus]);
    let sourced = WireVolume { data_volume: Some(WireVolumeSource::default()), ..WireVolume::default() };
    assert_eq!(vmi.spec.volumes, [WireVolume::default(), sourced]);
    assert_eq!(vmi.status.interfaces, [WireInterface::default()]);
    assert_eq!(vmi.status.conditions, [WireCondition::default()]);
    assert_eq!(vmi.status.volume_status, [WireVolumeStatus::default()]);
}

/// virt-controller 1.9: `setActivePods` and, once `allPodsDeleted`, the removal of the finalizer.
#[rstest]
#[case::recorded(json!(["other"]), json!({"phase": "Failed", "activePods": {}}), true)]
#[case::never_written(json!(null), json!({"phase": "Succeeded", "activePods": null}), true)]
#[case::a_completed_pod(json!([]), json!({"phase": "Succeeded", "activePods": {"u": "node-1"}}), false)]
#[case::a_pod_without_a_node(json!([]), json!({"phase": "Failed", "activePods": {"u": ""}}), false)]
#[case::not_recorded_yet(json!(["kubevirt.io/foregroundDeleteVirtualMachine"]), json!({"phase": "Failed"}), false)]
#[case::by_the_older_name(json!(["foregroundDeleteVirtualMachine"]), json!({"phase": "Failed"}), false)]
#[case::running(json!([]), json!({"phase": "Running"}), false)]
#[case::starting(json!([]), json!({}), false)]
#[case::unknown(json!([]), json!({"phase": "WaitingForSync"}), false)]
fn pods_are_gone_only_where_virt_controller_has_recorded_it(
    #[case] finalizers: Value,
    #[case] status: Value,
    #[case] gone: bool,
) {
    assert_eq!(vmi(json!({"metadata": {"finalizers": finalizers}, "status": status})).pods_are_gone(), gone);
}

#[rstest]
#[case(json!({"runStrategy": "Always"}), RunStrategy::Always)]
#[case(json!({"runStrategy": "Halted"}), RunStrategy::Halted)]
#[case(json!({"runStrategy": "RerunOnFailure"}), RunStrategy::RerunOnFailure)]
#[case(json!({"runStrategy": "Manual"}), RunStrategy::Other)]
#[case(json!({"runStrategy": "Once"}), RunStrategy::Other)]
#[case(json!({"runStrategy": "Surprise"}), RunStrategy::Other)]
#[case::the_strategy_counts(json!({"runStrategy": "Surprise", "running": true}), RunStrategy::Other)]
#[case::even_an_empty_one(json!({"runStrategy": "", "running": true}), RunStrategy::Other)]
#[case::unless_it_is_null(json!({"runStrategy": null, "running": true}), RunStrategy::Always)]
#[case(json!({"running": true}), RunStrategy::Always)]
#[case(json!({"running": false}), RunStrategy::Halted)]
#[case(json!({"running": null}), RunStrategy::Other)]
#[case(json!({}), RunStrategy::Other)]
fn strategies(#[case] spec: Value, #[case] strategy: RunStrategy) {
    assert_eq!(vm(json!({"spec": spec, "status": null})).spec.strategy(), strategy);
}

#[rstest]
#[case(json!({}), Phase::Starting)]
#[case(json!({"phase": null}), Phase::Starting)]
#[case(json!({"phase": ""}), Phase::Starting)]
#[case(json!({"phase": "Pending"}), Phase::Starting)]
#[case(json!({"phase": "Scheduling"}), Phase::Starting)]
#[case(json!({"phase": "Scheduled"}), Phase::Starting)]
#[case(json!({"phase": "Running"}), Phase::Running)]
#[case(json!({"phase": "Succeeded"}), Phase::Succeeded)]
#[case(json!({"phase": "Failed"}), Phase::Failed)]
#[case(json!({"phase": "Unknown"}), Phase::Unknown("Unknown".into()))]
#[case(json!({"phase": "WaitingForSync"}), Phase::Unknown("WaitingForSync".into()))]
#[case(json!({"phase": "Surprise"}), Phase::Unknown("Surprise".into()))]
fn phases(#[case] status: Value, #[case] phase: Phase) {
    assert_eq!(vmi(json!({"status": status})).status.phase, phase);
}
