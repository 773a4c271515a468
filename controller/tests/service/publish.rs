//! Attaching.

use super::*;
use csi::controller_server::Controller as _;
use fake_infra::Effect;
use serde_json::json;
use serving::Shutdown;

/// The sidecars' `--timeout`.
const SIDECAR_TIMEOUT: Duration = Duration::from_mins(3);
/// The sidecars' `--retry-interval-start`, their default.
const RETRY: Duration = Duration::from_secs(1);
/// external-attacher's own default.
const SHORT: Duration = Duration::from_secs(15);

fn puts(fake: &FakeInfra, what: &str) -> usize {
    fake.calls().iter().filter(|call| call.starts_with("PUT") && call.ends_with(what)).count()
}

#[tokio::test]
async fn publishing_again_is_answered_without_a_second_call() {
    let fake = FakeInfra::settling_after(Duration::from_millis(120));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!(puts(&fake, "addvolume"), 1);
}

/// Publishes without a socket, on which tonic's own timeouts, the client's and the server's, would race with the
/// controller's deadline. With time paused, that deadline passes only when nothing else is left to happen.
async fn publish_directly(controller: &Controller, timeout: Duration) -> Result<(), Status> {
    let mut request = Request::new(csi::ControllerPublishVolumeRequest {
        volume_id: "pvc-1".into(),
        node_id: "infra/vm1".into(),
        volume_capability: Some(capability(false, Mode::SingleNodeWriter)),
        ..Default::default()
    });
    request.set_timeout(timeout);
    controller.controller_publish_volume(request).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_volume_in_the_spec_that_is_not_ready_is_not_attached() {
    let fake = FakeInfra::settling_after(Duration::from_hours(1));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let controller = controller_over(&fake);
    let first = publish_directly(&controller, SIDECAR_TIMEOUT).await;
    assert_fails(first, Code::DeadlineExceeded, "not yet in its VMI");
    // The answer may come before its operation has released the volume.
    tokio::time::sleep(RETRY).await;
    fake.edit("virtualmachineinstances", "vm1", |vmi| {
        vmi["spec"]["volumes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1"}}));
        vmi["status"]["volumeStatus"] = json!([{"name": "pvc-1", "phase": "Pending", "target": "",
            "reason": "FailedPvcNotFound", "message": "PVC ghost not found", "hotplugVolume": {}}]);
    });
    let again = publish_directly(&controller, SIDECAR_TIMEOUT).await;
    assert_fails(again, Code::DeadlineExceeded, "phase Pending, FailedPvcNotFound, PVC ghost not found");
    assert_eq!(puts(&fake, "addvolume"), 1, "a pending addition is not repeated");
}

#[tokio::test]
async fn what_is_absent_or_foreign_is_not_found_and_nothing_is_called() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-2", false);
    fake.volume("pvc-3", true);
    let fixture = Fixture::new(&fake).await;
    for volume in ["fake-vol-id", "pvc-1", "pvc-2", "pvc-../x"] {
        assert_fails(fixture.publish(volume, "infra/vm1").await, Code::NotFound, "invalid volume name");
    }
    assert_fails(fixture.publish("pvc-3", "fake-node-id").await, Code::NotFound, "fake-node-id");
    assert_fails(fixture.publish("pvc-3", "infra/nosuch").await, Code::NotFound, "no such VM");
    assert_fails(fixture.publish("pvc-3", "other/nosuch").await, Code::NotFound, "no such VM");
    assert_eq!(puts(&fake, "addvolume"), 0);
    assert_eq!(fake.holder("pvc-3"), None, "a refused node does not keep the volume");
}

#[tokio::test]
async fn a_failed_observation_is_unavailable() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    for code in [401, 403, 500, 503] {
        fake.fault("GET", Effect::Answer(code, "not now"));
        assert_fails(fixture.publish("pvc-1", "infra/vm1").await, Code::Unavailable, "not now");
    }
    assert_eq!(puts(&fake, "addvolume"), 0);
}

#[tokio::test]
async fn a_halted_vm_is_refused_without_a_call() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.remove("virtualmachineinstances", "vm1");
    fake.edit("virtualmachines", "vm1", |vm| {
        vm["spec"]["runStrategy"] = "Halted".into();
        vm["status"]["printableStatus"] = "Stopped".into();
    });
    let fixture = Fixture::new(&fake).await;
    assert_fails(fixture.publish("pvc-1", "infra/vm1").await, Code::FailedPrecondition, "Stopped");
    assert_eq!(puts(&fake, "addvolume"), 0);
    assert_eq!(fake.holder("pvc-1"), None);
}

#[tokio::test]
async fn a_volume_that_is_deleted_or_failed_is_not_plugged() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fake.edit("datavolumes", "pvc-1", |volume| volume["status"]["phase"] = "Failed".into());
    assert_fails(fixture.publish("pvc-1", "infra/vm1").await, Code::FailedPrecondition, "has failed");
    fake.edit("datavolumes", "pvc-1", |volume| {
        volume["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    });
    assert_fails(fixture.publish("pvc-1", "infra/vm1").await, Code::FailedPrecondition, "being deleted");
    assert_eq!(puts(&fake, "addvolume"), 0);
}

#[tokio::test]
async fn a_volume_without_its_claim_yet_is_waited_for() {
    let fake = FakeInfra::claiming_after(Duration::from_millis(200));
    fake.vm("vm1");
    let fixture = Fixture::new(&fake).await;
    fixture.create(new_volume("pvc-1")).await.unwrap();
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!(fake.plugged_into("pvc-1"), ["vm1"]);
}

/// After these answers the VM is read again, and the volume ends up there once.
#[tokio::test]
async fn answers_that_prove_nothing_are_looked_through() {
    let race = Effect::Answer(422, "the server rejected our request due to an error in our request");
    let effects = [
        race,
        Effect::Answer(500, "unable to patch vm"),
        Effect::Answer(409, "volume with that name already exists"),
        Effect::Answer(503, "error trying to reach service"),
        Effect::LoseReply,
    ];
    for effect in effects {
        let fake = FakeInfra::default();
        fake.vm("vm1");
        fake.volume("pvc-1", true);
        fake.fault("addvolume", effect.clone());
        fake.fault("removevolume", effect);
        let fixture = Fixture::new(&fake).await;
        fixture.publish("pvc-1", "infra/vm1").await.unwrap();
        assert_eq!(fake.plugged_into("pvc-1"), ["vm1"]);
        fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
        assert!(fake.plugged_into("pvc-1").is_empty());
    }
}

#[tokio::test]
async fn an_admission_refusal_is_final_with_its_words() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.fault(
        "addvolume",
        Effect::Answer(422, "admission webhook \"v\" denied the request: too many disks"),
    );
    let fixture = Fixture::new(&fake).await;
    assert_fails(fixture.publish("pvc-1", "infra/vm1").await, Code::FailedPrecondition, "too many disks");
    assert_eq!(puts(&fake, "addvolume"), 1);
}

#[tokio::test]
async fn many_volumes_of_one_vm_go_one_after_another() {
    let mut fake = FakeInfra::settling_after(Duration::from_millis(100));
    fake.work = Duration::from_millis(5);
    fake.vm("vm1");
    let names: Vec<_> = (0..16).map(|n| format!("pvc-{n}")).collect();
    for name in &names {
        fake.volume(name, true);
    }
    let fixture = std::sync::Arc::new(Fixture::new(&fake).await);
    for attach in [true, false] {
        let tasks: Vec<_> = names
            .iter()
            .cloned()
            .map(|name| {
                let fixture = fixture.clone();
                tokio::spawn(async move {
                    if attach {
                        fixture.publish(&name, "infra/vm1").await
                    } else {
                        fixture.unpublish(&name, "infra/vm1").await
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let plugged = names.iter().filter(|name| !fake.plugged_into(name).is_empty()).count();
        assert_eq!(plugged, if attach { 16 } else { 0 });
    }
    assert_eq!(fake.most_hotplugs_at_once(), 1);
    assert_eq!((puts(&fake, "addvolume"), puts(&fake, "removevolume")), (16, 16));
}

#[tokio::test]
async fn two_replicas_never_both_attach_one_volume() {
    for round in 0..20 {
        let fake = FakeInfra::settling_after(Duration::from_millis(round * 7));
        fake.vm("vm1");
        fake.vm("vm2");
        fake.volume("pvc-1", true);
        if round % 3 == 1 {
            fake.fault("PATCH", Effect::Delay(Duration::from_millis(20)));
        }
        if round % 3 == 2 {
            fake.fault("addvolume", Effect::Delay(Duration::from_millis(30)));
        }
        let (one, two) = (Fixture::new(&fake).await, Fixture::new(&fake).await);
        let (first, second) =
            tokio::join!(one.publish("pvc-1", "infra/vm1"), two.publish("pvc-1", "infra/vm2"));
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        let (winner, loser) = if first.is_ok() { ("vm1", second) } else { ("vm2", first) };
        assert_fails(loser, Code::FailedPrecondition, &format!("attached to another VM: infra/{winner}"));
        assert_eq!(fake.plugged_into("pvc-1"), [winner]);
    }
}

#[tokio::test]
async fn without_the_right_to_patch_claims_two_replicas_still_never_both_attach() {
    for round in 0..20 {
        let fake = FakeInfra::settling_after(Duration::from_millis(20));
        fake.vm("vm1");
        fake.vm("vm2");
        fake.volume("pvc-1", true);
        fake.fault("PATCH", Effect::Answer(403, "can't patch"));
        fake.fault("PATCH", Effect::Answer(403, "can't patch"));
        if round % 2 == 1 {
            fake.fault("addvolume", Effect::Delay(Duration::from_millis(round)));
        }
        let (one, two) = (Fixture::new(&fake).await, Fixture::new(&fake).await);
        let (first, second) =
            tokio::join!(one.publish("pvc-1", "infra/vm1"), two.publish("pvc-1", "infra/vm2"));
        assert!(!(first.is_ok() && second.is_ok()));
        let plugged = fake.plugged_into("pvc-1");
        assert_eq!(
            plugged.len(),
            usize::from(first.is_ok() || second.is_ok()),
            "the loser took its own call back"
        );
    }
}

#[tokio::test]
async fn a_volume_that_the_reference_attached_is_known_without_an_annotation() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.vm("vm2");
    fake.volume("pvc-1", true);
    fake.edit("virtualmachines", "vm2", |vm| {
        let volumes = vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
        volumes.push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}}));
    });
    let fixture = Fixture::new(&fake).await;
    assert_fails(
        fixture.publish("pvc-1", "infra/vm1").await,
        Code::FailedPrecondition,
        "another VM: infra/vm2",
    );
    assert_eq!(fake.holder("pvc-1"), None);
    assert_eq!(puts(&fake, "addvolume"), 0);
}

#[tokio::test]
async fn a_holder_that_died_is_replaced_and_one_that_has_the_volume_is_not() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.vm("vm2");
    fake.volume("pvc-1", true);
    let dead = |claim: &mut serde_json::Value| {
        claim["metadata"]["annotations"]["csi.kubevirt.io/holder"] = "infra/vm2".into();
    };
    fake.edit("persistentvolumeclaims", "pvc-1", dead);
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!(fake.holder("pvc-1").as_deref(), Some("infra/vm1"));
    assert_fails(
        fixture.publish("pvc-1", "infra/vm2").await,
        Code::FailedPrecondition,
        "another VM: infra/vm1",
    );
    assert_eq!(fake.plugged_into("pvc-1"), ["vm1"]);
}

#[tokio::test]
async fn a_wrong_holder_does_not_keep_the_volume_from_the_vm_that_has_it() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    fake.edit("persistentvolumeclaims", "pvc-1", |claim| {
        claim["metadata"]["annotations"]["csi.kubevirt.io/holder"] = "infra/vm2".into();
    });
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!(fake.holder("pvc-1").as_deref(), Some("infra/vm1"));
    assert_eq!(puts(&fake, "addvolume"), 1);
}

#[tokio::test]
async fn a_claim_without_annotations_can_be_held() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.edit("persistentvolumeclaims", "pvc-1", |claim| {
        claim["metadata"].as_object_mut().unwrap().remove("annotations");
    });
    Fixture::new(&fake).await.publish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!(fake.holder("pvc-1").as_deref(), Some("infra/vm1"));
}

#[tokio::test]
async fn a_hold_that_was_lost_meanwhile_is_not_answered_with_ok() {
    let fake = FakeInfra::settling_after(Duration::from_millis(300));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = std::sync::Arc::new(Fixture::new(&fake).await);
    let publishing = tokio::spawn({
        let fixture = fixture.clone();
        async move { fixture.publish("pvc-1", "infra/vm1").await }
    });
    while fake.plugged_into("pvc-1").is_empty() {
        tokio::task::yield_now().await;
    }
    fake.edit("persistentvolumeclaims", "pvc-1", |claim| {
        claim["metadata"]["annotations"]["csi.kubevirt.io/holder"] = "infra/vm2".into();
    });
    assert_fails(publishing.await.unwrap(), Code::FailedPrecondition, "infra/vm2");
    assert!(fake.plugged_into("pvc-1").is_empty(), "the own fresh call is taken back");
}

#[tokio::test]
async fn a_second_operation_is_aborted_and_a_caller_that_hangs_up_ends_the_wait() {
    let fake = FakeInfra::settling_after(Duration::from_mins(1));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = std::sync::Arc::new(Fixture::new(&fake).await);
    let publishing = tokio::spawn({
        let fixture = fixture.clone();
        async move { fixture.publish_within("pvc-1", "infra/vm1", Duration::from_secs(30)).await }
    });
    while fake.plugged_into("pvc-1").is_empty() {
        tokio::task::yield_now().await;
    }
    assert_fails(fixture.unpublish("pvc-1", "infra/vm1").await, Code::Aborted, "under way");
    publishing.abort();
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        while matches!(fixture.delete("pvc-1").await, Err(status) if status.code() == Code::Aborted) {
            tokio::task::yield_now().await;
        }
    });
    ended.await.expect("the lock is free soon after the caller hung up");
}

#[tokio::test]
async fn the_shutdown_waits_for_a_call_under_way_but_not_for_the_disk() {
    let fake = FakeInfra::settling_after(Duration::from_mins(1));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.fault("addvolume", Effect::Delay(Duration::from_millis(500)));
    let fixture = std::sync::Arc::new(Fixture::new(&fake).await);
    let publishing = tokio::spawn({
        let fixture = fixture.clone();
        async move { fixture.publish_within("pvc-1", "infra/vm1", Duration::from_secs(30)).await }
    });
    while puts(&fake, "addvolume") == 0 {
        tokio::task::yield_now().await;
    }
    publishing.abort();
    assert!(!fixture.controller.shutdown(Duration::from_millis(100)).await, "the call is under way");
    assert!(fixture.controller.shutdown(Duration::from_secs(5)).await);
    assert_eq!(fake.plugged_into("pvc-1"), ["vm1"]);
}

#[tokio::test]
async fn a_shared_volume_may_be_on_two_nodes() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.vm("vm2");
    let fixture = Fixture::new(&fake).await;
    let mut request = new_volume("pvc-1");
    request.volume_capabilities = vec![capability(true, Mode::MultiNodeMultiWriter)];
    fixture.create(request).await.unwrap();
    for node in ["infra/vm1", "infra/vm2"] {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: "pvc-1".into(),
            node_id: node.into(),
            volume_capability: Some(capability(true, Mode::MultiNodeMultiWriter)),
            ..Default::default()
        };
        fixture.client.clone().controller_publish_volume(request).await.unwrap();
    }
    assert_eq!(fake.plugged_into("pvc-1"), ["vm1", "vm2"]);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_infra_does_not_provide_is_told_in_its_words() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.remove("persistentvolumeclaims", "pvc-1");
    fake.edit("datavolumes", "pvc-1", |volume| {
        volume["status"] = json!({"phase": "Pending", "conditions": [{"type": "Bound", "status": "Unknown",
            "reason": "ErrExceededQuota", "message": "exceeded quota: storage"}]});
    });
    let controller = controller_over(&fake);
    let words = "no infra claim yet (infra storage class infra's default): data volume phase Pending; \
                 ErrExceededQuota: exceeded quota: storage";
    let began = tokio::time::Instant::now();
    assert_fails(publish_directly(&controller, SIDECAR_TIMEOUT).await, Code::Aborted, words);
    assert!(began.elapsed() < SIDECAR_TIMEOUT / 4, "answered long before the time is over");
    tokio::time::sleep(RETRY).await;
    assert_fails(publish_directly(&controller, SHORT).await, Code::DeadlineExceeded, words);
    assert_eq!(puts(&fake, "addvolume"), 0);
}

/// What virt-controller and virt-handler write at the VMI, and virt-controller at the VM.
#[tokio::test(start_paused = true)]
async fn what_kubevirt_could_not_do_is_told_in_its_words() {
    let quota = "Error creating attachment pod pods \"hp-volume-x\" is forbidden: exceeded quota: q, requested: pods=1";
    let policy = "admission webhook \"policy\" denied the request: no";
    let libvirt = "server error. command SyncVMI failed: internal error: No more available PCI slots";
    for (kind, condition, code) in [
        ("virtualmachineinstances", ("Synchronized", "False", "FailedCreate", quota), Code::DeadlineExceeded),
        ("virtualmachines", ("Failure", "True", "HotPlugVolumeError", policy), Code::DeadlineExceeded),
        (
            "virtualmachineinstances",
            ("Synchronized", "False", "SyncFailed", libvirt),
            Code::ResourceExhausted,
        ),
    ] {
        let fake = FakeInfra::settling_after(Duration::from_hours(1));
        fake.vm("vm1");
        fake.volume("pvc-1", true);
        let controller = controller_over(&fake);
        let (kind_of, status, reason, message) = condition;
        fake.edit("virtualmachineinstances", "vm1", |vmi| {
            vmi["spec"]["volumes"]
                .as_array_mut()
                .unwrap()
                .push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1"}}));
            vmi["status"]["volumeStatus"] = json!([{"name": "pvc-1", "phase": "Bound", "target": "",
                "reason": "PVCNotReady", "message": "PVC is in phase Bound", "hotplugVolume": {}}]);
        });
        fake.edit("virtualmachines", "vm1", |vm| {
            let volumes = vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
            volumes.push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}}));
        });
        let before = publish_directly(&controller, SHORT).await.unwrap_err();
        assert!(!before.message().contains("KubeVirt reports"), "{before:?}");
        tokio::time::sleep(RETRY).await;
        fake.edit(kind, "vm1", |object| {
            object["status"]["conditions"] =
                json!([{"type": kind_of, "status": status, "reason": reason, "message": message}]);
        });
        let published = publish_directly(&controller, SIDECAR_TIMEOUT).await;
        assert_fails(published, code, &format!("KubeVirt reports: {reason}: {message}"));
    }
}

/// A blank volume of a class with a CSI provisioner: CDI makes a second claim of the same size.
#[tokio::test(start_paused = true)]
async fn why_an_infra_claim_is_not_bound_reaches_the_guest() {
    let pending = |phase: &str, source: serde_json::Value| {
        let fake = FakeInfra::settling_after(Duration::from_hours(1));
        fake.vm("vm1");
        fake.volume("pvc-1", true);
        fake.edit("persistentvolumeclaims", "pvc-1", |claim| {
            claim["spec"]["dataSourceRef"] =
                json!({"apiGroup": source, "kind": "VolumeImportSource", "name": "x"});
            claim["status"]["phase"] = phase.into();
        });
        fake.edit("virtualmachineinstances", "vm1", |vmi| {
            vmi["spec"]["volumes"]
                .as_array_mut()
                .unwrap()
                .push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1"}}));
            vmi["status"]["volumeStatus"] =
                json!([{"name": "pvc-1", "phase": "Pending", "hotplugVolume": {}}]);
        });
        fake.edit("virtualmachines", "vm1", |vm| {
            let volumes = vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
            volumes.push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}}));
        });
        fake
    };
    let answer = async |fake: &FakeInfra| {
        let controller = controller_over(fake);
        publish_directly(&controller, SIDECAR_TIMEOUT).await
    };
    let refused = pending("Pending", "cdi.kubevirt.io".into());
    let words = "CDI fills the volume through a second claim of the same size, which it has not made \
                 (prime-uid-of-pvc-1): a ResourceQuota of the infra namespace must have room for both";
    assert_fails(answer(&refused).await, Code::DeadlineExceeded, words);
    refused.put(
        "persistentvolumeclaims",
        "prime-uid-of-pvc-1",
        json!({"metadata": {}, "status": {"phase": "Pending"}}),
    );
    assert_fails(answer(&refused).await, Code::DeadlineExceeded, "(PVC prime-uid-of-pvc-1 Pending)");

    let lost = pending("Lost", serde_json::Value::Null);
    assert_fails(answer(&lost).await, Code::DeadlineExceeded, "infra PVC Lost: its PersistentVolume is gone");

    let other = pending("Pending", serde_json::Value::Null);
    let silent = answer(&other).await.unwrap_err();
    assert!(!silent.message().contains("second claim"), "{silent:?}");

    let consumer = pending("Pending", "cdi.kubevirt.io".into());
    consumer.edit("datavolumes", "pvc-1", |volume| volume["status"]["phase"] = "PendingPopulation".into());
    let waits = answer(&consumer).await.unwrap_err();
    assert!(!waits.message().contains("second claim"), "CDI makes it when the volume is used: {waits:?}");
    assert!(consumer.calls().iter().all(|call| !call.contains("/events")), "no call without the right");
}

#[tokio::test(start_paused = true)]
async fn the_warnings_of_an_infra_claim_reach_the_guest_where_events_may_be_listed() {
    let fake = FakeInfra::settling_after(Duration::from_hours(1));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.volume("pvc-2", true);
    fake.edit("persistentvolumeclaims", "pvc-1", |claim| claim["status"]["phase"] = "Pending".into());
    fake.warn(
        "pvc-1",
        "ErrCreatingPVCPrime",
        "persistentvolumeclaims \"prime-x\" is forbidden: exceeded quota: q",
    );
    fake.warn("pvc-2", "ProvisioningFailed", "of another claim");
    fake.edit("virtualmachineinstances", "vm1", |vmi| {
        vmi["spec"]["volumes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1"}}));
        vmi["status"]["volumeStatus"] = json!([{"name": "pvc-1", "phase": "Pending", "hotplugVolume": {}}]);
    });
    fake.edit("virtualmachines", "vm1", |vm| {
        let volumes = vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
        volumes.push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}}));
    });
    *fake.rights.lock().unwrap() = json!({"status": {"incomplete": false, "resourceRules": [
        {"verbs": ["list"], "apiGroups": [""], "resources": ["events"]}]}});
    let tasks = Tasks::default();
    let infra = infra_demanding(&fake, &tasks, BTreeMap::new());
    infra.use_granted(&infra.rights().await.unwrap());
    let controller = controller_using(infra, StorageClassPolicy::default(), &tasks);
    let published = publish_directly(&controller, SIDECAR_TIMEOUT).await;
    let words = "ErrCreatingPVCPrime: persistentvolumeclaims \"prime-x\" is forbidden: exceeded quota: q";
    assert!(!published.as_ref().unwrap_err().message().contains("another claim"));
    assert_fails(published, Code::DeadlineExceeded, words);
    fake.fault("/events", Effect::Answer(403, "no right any more"));
    tokio::time::sleep(RETRY).await;
    let without = publish_directly(&controller, SHORT).await;
    assert_fails(without, Code::DeadlineExceeded, "phase Pending");
}

/// kubevirt/kubevirt#13736: of a VMI that runs, virt-controller says in an event only why it has no attachment pod.
#[tokio::test(start_paused = true)]
async fn the_warnings_of_a_vmi_reach_the_guest_where_events_may_be_listed() {
    const REFUSED: &str =
        "Error creating attachment pod: pods \"hp-volume-x\" is forbidden: exceeded quota: q";
    for (phase, may_list, is_told) in
        [("Bound", true, true), ("Bound", false, false), ("Pending", true, false)]
    {
        let fake = FakeInfra::settling_after(Duration::from_hours(1));
        fake.vm("vm1");
        fake.volume("pvc-1", true);
        fake.warn_about(("virtualmachineinstances", "vm1"), "FailedCreate", REFUSED);
        fake.edit("virtualmachineinstances", "vm1", |vmi| {
            let entry = json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1"}});
            vmi["spec"]["volumes"].as_array_mut().unwrap().push(entry);
            vmi["status"]["volumeStatus"] = json!([{"name": "pvc-1", "phase": phase, "hotplugVolume": {}}]);
        });
        fake.edit("virtualmachines", "vm1", |vm| {
            let volumes = vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
            volumes.push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}}));
        });
        let resource = if may_list { "events" } else { "pods" };
        *fake.rights.lock().unwrap() = json!({"status": {"incomplete": false, "resourceRules": [
            {"verbs": ["list"], "apiGroups": [""], "resources": [resource]}]}});
        let tasks = Tasks::default();
        let infra = infra_demanding(&fake, &tasks, BTreeMap::new());
        infra.use_granted(&infra.rights().await.unwrap());
        let controller = controller_using(infra, StorageClassPolicy::default(), &tasks);
        let status = publish_directly(&controller, SIDECAR_TIMEOUT).await.unwrap_err();
        let told = format!("warnings of the VMI in the last hour: FailedCreate: {REFUSED}");
        assert_eq!(status.message().contains(&told), is_told, "{phase}, {may_list}: {status:?}");
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
}

#[tokio::test]
async fn a_stop_answers_who_merely_waits_and_says_what_was_seen_last() {
    let fake = FakeInfra::settling_after(Duration::from_mins(1));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = std::sync::Arc::new(Fixture::new(&fake).await);
    let publishing = tokio::spawn({
        let fixture = fixture.clone();
        async move { fixture.publish_within("pvc-1", "infra/vm1", Duration::from_secs(30)).await }
    });
    while !fake.calls().last().is_some_and(|call| call.contains("virtualmachineinstances/vm1")) {
        tokio::task::yield_now().await;
    }
    // A second call gets the same report, which proves that the first one has made it.
    let busy = async {
        while !fixture
            .unpublish("pvc-1", "infra/vm1")
            .await
            .unwrap_err()
            .message()
            .contains("not yet in its VMI")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), busy).await.expect("the second call gets the report");
    fixture.controller.close();
    assert_fails(publishing.await.unwrap(), Code::Unavailable, "not yet in its VMI");
    assert!(fixture.controller.shutdown(Duration::from_secs(5)).await);
    assert_eq!(fixture.controller.wedged(), None);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_panics_fails_its_callers_and_ends_the_process_with_an_error_that_names_it() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let shutdown = Shutdown::default();
    let controller = controller_of(&fake, shutdown.tasks());
    fake.fault("addvolume", Effect::Panic("no slot 3"));
    let unanswered = "the operation ended without an answer";
    assert_fails(publish_directly(&controller, SHORT).await, Code::Unavailable, unanswered);
    // While the process ends, no other worker takes the queue.
    assert_fails(publish_directly(&controller, SHORT).await, Code::Unavailable, unanswered);
    assert_eq!(puts(&fake, "addvolume"), 1);
    let ended = tokio::time::timeout(SHORT, shutdown.drained(SHORT)).await.expect("the process ends");
    let error = ended.unwrap_err().to_string();
    assert_eq!(error, "the queue of hotplug changes of VM vm1 panicked: no slot 3");
}

#[tokio::test]
async fn a_read_that_waits_out_pauses_ends_with_the_words_that_asked_for_them() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fake.fault("GET", Effect::Answer(429, "slow down"));
    let short = Duration::from_millis(300);
    let published = fixture.publish_within("pvc-1", "infra/vm1", short).await;
    assert_fails(published, Code::DeadlineExceeded, "slow down");
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
}

#[tokio::test]
async fn a_hotplug_call_that_fails_again_and_again_ends_with_the_infras_words() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    for _ in 0..20 {
        fake.fault("addvolume", Effect::Answer(500, "virt-api is ill"));
    }
    let short = Duration::from_millis(600);
    let published = fixture.publish_within("pvc-1", "infra/vm1", short).await;
    assert_fails(published, Code::DeadlineExceeded, "virt-api is ill");
}
