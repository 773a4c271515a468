//! Node ids whose namespace is not the VM's: Cluster API's annotation names the namespace of its own objects.

use super::*;
use serde_json::json;

/// The namespace of the Cluster API objects, where the VMs are in another one.
const ELSEWHERE: &str = "clusters-foo/vm1";

/// Plugs the volume in as kubevirt/csi-driver leaves it: without the holder annotation.
fn plug(fake: &FakeInfra, vm: &str, volume: &str) {
    let entry = json!({"name": volume, "dataVolume": {"name": volume, "hotpluggable": true}});
    fake.edit("virtualmachines", vm, |vm| {
        vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap().push(entry.clone());
    });
    fake.edit("virtualmachineinstances", vm, |vmi| {
        vmi["spec"]["volumes"].as_array_mut().unwrap().push(entry.clone());
        vmi["status"]["volumeStatus"] = json!([{"name": volume, "phase": "Ready", "target": "sda",
            "hotplugVolume": {"attachPodName": "p"}}]);
    });
}

fn infra_with(vms: &[&str]) -> FakeInfra {
    let fake = FakeInfra::default();
    for vm in vms {
        fake.vm(vm);
    }
    fake.volume("pvc-1", true);
    fake
}

#[tokio::test]
async fn a_volume_is_attached_to_the_vm_of_the_infra_namespace_and_detached_from_it() {
    let fake = infra_with(&["vm1"]);
    let fixture = Fixture::new(&fake).await;
    for node in [ELSEWHERE, "infra/vm1", "a.b/vm1"] {
        fixture.publish("pvc-1", node).await.unwrap();
        assert_eq!(fake.plugged_into("pvc-1"), ["vm1"]);
        assert_eq!(
            fake.holder("pvc-1").as_deref(),
            Some("infra/vm1"),
            "the holder is named by its own namespace"
        );
        // Another namespace before the same name is the same VM: a Node's annotation may be corrected meanwhile.
        fixture.publish("pvc-1", "corrected/vm1").await.unwrap();
        fixture.unpublish("pvc-1", node).await.unwrap();
        assert!(fake.plugged_into("pvc-1").is_empty());
        assert_eq!(fake.holder("pvc-1"), None);
    }
    assert!(fake.calls().iter().all(|call| !call.contains("clusters-foo")), "no other namespace is called");
}

#[tokio::test]
async fn what_kubevirt_csi_driver_attached_under_such_an_id_is_detached() {
    let fake = infra_with(&["vm1"]);
    plug(&fake, "vm1", "pvc-1");
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", ELSEWHERE).await.unwrap();
    fixture.unpublish("pvc-1", ELSEWHERE).await.unwrap();
    assert!(fake.plugged_into("pvc-1").is_empty());
    fixture.unpublish("pvc-1", ELSEWHERE).await.unwrap();
    fixture.delete("pvc-1").await.unwrap();
}

#[tokio::test]
async fn a_volume_for_one_node_stays_with_one_vm_whatever_the_namespaces() {
    let fake = infra_with(&["vm1", "vm2"]);
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", ELSEWHERE).await.unwrap();
    for node in ["clusters-foo/vm2", "infra/vm2"] {
        assert_fails(
            fixture.publish("pvc-1", node).await,
            Code::FailedPrecondition,
            "volume is attached to another VM: infra/vm1",
        );
        // A detach from the VM that does not have it must leave it where it is.
        fixture.unpublish("pvc-1", node).await.unwrap();
        assert_eq!(fake.plugged_into("pvc-1"), ["vm1"]);
    }
}

#[tokio::test]
async fn two_ids_of_one_vm_are_one_operation_at_a_time() {
    let fake = FakeInfra::settling_after(Duration::from_hours(1));
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    let first = fixture.publish("pvc-1", "infra/vm1");
    let second = async {
        // The first has the volume as soon as it has made a call.
        while fake.calls().is_empty() {
            tokio::task::yield_now().await;
        }
        fixture.publish("pvc-1", ELSEWHERE).await
    };
    tokio::select! {
        answer = first => panic!("the first does not end: {answer:?}"),
        answer = second => assert_fails(answer, Code::Aborted, "has been under way"),
    }
}
