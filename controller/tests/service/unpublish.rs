//! Detaching.

use super::*;
use csi::controller_server::Controller as _;
use serde_json::json;

#[tokio::test]
async fn what_is_not_attached_is_detached_already() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    for (volume, node) in
        [("pvc-1", "infra/vm1"), ("pvc-1", "infra/gone"), ("pvc-9", "infra/vm1"), ("fake-vol-id", "x")]
    {
        fixture.unpublish(volume, node).await.unwrap();
    }
    assert!(fake.calls().iter().all(|call| !call.starts_with("PUT")));
}

#[tokio::test]
async fn a_vm_that_is_gone_is_waited_for_until_its_instance_is() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    fake.remove("virtualmachines", "vm1");
    assert_fails(fixture.unpublish("pvc-1", "infra/vm1").await, Code::Aborted, "not gone yet");
    fake.remove("virtualmachineinstances", "vm1");
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
}

/// KubeVirt keeps the VMI of a VM with runStrategy Once or Manual, and takes nothing out of it.
#[tokio::test]
async fn a_vmi_that_has_ended_keeps_its_volume_until_its_pods_are_gone_and_the_error_says_so() {
    fn deleted(fake: &FakeInfra) {
        fake.remove("virtualmachineinstances", "vm1");
    }
    fn without_pods(fake: &FakeInfra) {
        fake.pods_are_gone("vm1");
    }
    for (strategy, phase, end) in [
        ("Once", "Succeeded", deleted as fn(&FakeInfra)),
        ("Manual", "Failed", without_pods),
        ("Once", "Succeeded", without_pods),
    ] {
        let fake = FakeInfra::default();
        fake.vm("vm1");
        fake.vm("vm2");
        fake.volume("pvc-1", true);
        let fixture = Fixture::new(&fake).await;
        fixture.publish("pvc-1", "infra/vm1").await.unwrap();
        fake.edit("virtualmachines", "vm1", |vm| {
            vm["spec"]["runStrategy"] = strategy.into();
            vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap().clear();
        });
        fake.edit("virtualmachineinstances", "vm1", |vmi| vmi["status"]["phase"] = phase.into());
        let mut request = Request::new(csi::ControllerUnpublishVolumeRequest {
            volume_id: "pvc-1".into(),
            node_id: "infra/vm1".into(),
            ..Default::default()
        });
        // Without a socket, on which tonic's own timeout races with the controller's.
        request.set_timeout(Duration::from_secs(2));
        let unpublished = fixture.controller.controller_unpublish_volume(request).await;
        assert_fails(
            unpublished.map(drop),
            Code::DeadlineExceeded,
            "delete the completed virt-launcher pod (kubectl delete pod -l vm.kubevirt.io/name=<VM>), or delete the VMI",
        );
        let elsewhere = fixture.publish("pvc-1", "infra/vm2").await;
        assert_fails(elsewhere, Code::FailedPrecondition, "volume is attached to another VM: infra/vm1");
        assert_fails(fixture.delete("pvc-1").await, Code::FailedPrecondition, "attached to infra/vm1");
        end(&fake);
        fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
        fixture.publish("pvc-1", "infra/vm2").await.unwrap();
        fixture.unpublish("pvc-1", "infra/vm2").await.unwrap();
        fixture.delete("pvc-1").await.unwrap();
    }
}

/// virt-controller has recorded that the pods of the ended VMI are gone while its VM still has the volume.
#[tokio::test]
async fn a_volume_of_an_ended_vmi_is_taken_out_of_its_vm_before_it_counts_as_detached() {
    let fake = FakeInfra::settling_after(Duration::from_hours(1));
    fake.vm("vm1");
    fake.vm("vm2");
    fake.volume("pvc-1", true);
    fake.edit("virtualmachines", "vm1", |vm| {
        vm["spec"]["runStrategy"] = "Once".into();
        let volumes = vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
        volumes.push(json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}}));
    });
    fake.plug_into_vmi("vm1", "pvc-1");
    fake.edit("virtualmachineinstances", "vm1", |vmi| vmi["status"]["phase"] = "Failed".into());
    fake.pods_are_gone("vm1");
    let fixture = Fixture::new(&fake).await;
    let elsewhere = fixture.publish("pvc-1", "infra/vm2").await;
    assert_fails(elsewhere, Code::FailedPrecondition, "volume is attached to another VM: infra/vm1");
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    assert!(fake.plugged_into("pvc-1").is_empty());
}

/// With the gate HotplugVolumes a volume can be plugged into a VMI alone.
#[tokio::test]
async fn a_volume_that_only_the_vmi_has_is_unplugged_there() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.plug_into_vmi("vm1", "pvc-1");
    let fixture = Fixture::new(&fake).await;
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    let puts: Vec<_> = fake.calls().into_iter().filter(|call| call.starts_with("PUT")).collect();
    assert!(
        matches!(puts.as_slice(), [put] if put.ends_with("/virtualmachineinstances/vm1/removevolume")),
        "{puts:?}"
    );
}

/// Where KubeVirt refuses that (1.9 with the gate DeclarativeHotplugVolumes), the wait goes on, and ends with its reason.
#[tokio::test]
async fn a_volume_of_the_vmi_alone_that_kubevirt_does_not_unplug_is_told_in_its_words() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.plug_into_vmi("vm1", "pvc-1");
    fake.fault(
        "virtualmachineinstances/vm1/removevolume",
        fake_infra::Effect::Answer(400, "VMI infra/vm1 is owned by a VM"),
    );
    let controller = controller_over(&fake);
    let mut request = Request::new(csi::ControllerUnpublishVolumeRequest {
        volume_id: "pvc-1".into(),
        node_id: "infra/vm1".into(),
        ..Default::default()
    });
    request.set_timeout(Duration::from_secs(9));
    let unpublished = controller.controller_unpublish_volume(request).await.map(drop);
    assert_fails(unpublished, Code::DeadlineExceeded, "VMI infra/vm1 is owned by a VM");
    let puts = fake.calls().iter().filter(|call| call.starts_with("PUT")).count();
    assert_eq!(puts, 1, "once in one request");
}

#[tokio::test]
async fn a_foreign_volume_that_only_the_vmi_has_is_never_unplugged() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", false);
    fake.plug_into_vmi("vm1", "pvc-1");
    let fixture = Fixture::new(&fake).await;
    let unpublished = fixture.unpublish("pvc-1", "infra/vm1").await;
    assert_fails(unpublished, Code::FailedPrecondition, "invalid volume name");
    assert!(fake.calls().iter().all(|call| !call.starts_with("PUT")));
}

#[tokio::test]
async fn no_node_means_all_nodes() {
    let fake = FakeInfra::settling_after(Duration::from_millis(20));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    fixture.unpublish("pvc-1", "").await.unwrap();
    assert!(fake.plugged_into("pvc-1").is_empty());
    assert_eq!(fake.holder("pvc-1"), None);
}

#[tokio::test]
async fn a_volume_whose_data_volume_is_gone_is_still_detached() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    fake.remove("datavolumes", "pvc-1");
    fake.remove("persistentvolumeclaims", "pvc-1");
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    assert!(fake.plugged_into("pvc-1").is_empty());
}

#[tokio::test]
async fn a_foreign_volume_is_never_unplugged() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", false);
    fake.volume("root-disk", true);
    fake.edit("virtualmachines", "vm1", |vm| {
        let volumes = vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
        for name in ["pvc-1", "root-disk"] {
            volumes.push(json!({"name": name, "dataVolume": {"name": name, "hotpluggable": true}}));
        }
    });
    let fixture = Fixture::new(&fake).await;
    for volume in ["pvc-1", "root-disk"] {
        // Without a node, too, the guest is not told which VM has what is not its own.
        for node in ["infra/vm1", "", "fake-node-id", "elsewhere/vm1"] {
            let answer = fixture.unpublish(volume, node).await;
            assert_fails(answer, Code::FailedPrecondition, "invalid volume name");
        }
    }
    assert!(fake.calls().iter().all(|call| !call.starts_with("PUT")));
}

#[tokio::test]
async fn a_volume_is_detached_only_when_its_status_is_gone() {
    let fake = FakeInfra::settling_after(Duration::from_millis(250));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    let vmi = fake.get("virtualmachineinstances", "vm1").unwrap();
    assert_eq!(vmi["status"]["volumeStatus"], json!([]));
}
