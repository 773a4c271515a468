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
async fn a_vmi_that_has_ended_keeps_its_volume_until_it_is_deleted_and_the_error_says_so() {
    for (strategy, phase) in [("Once", "Succeeded"), ("Manual", "Failed")] {
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
        assert_fails(unpublished.map(drop), Code::DeadlineExceeded, "delete the VMI");
        let elsewhere = fixture.publish("pvc-1", "infra/vm2").await;
        assert_fails(elsewhere, Code::FailedPrecondition, "volume is attached to another VM: infra/vm1");
        fake.remove("virtualmachineinstances", "vm1");
        fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
        fixture.publish("pvc-1", "infra/vm2").await.unwrap();
    }
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
