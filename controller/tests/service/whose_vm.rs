//! A volume goes only into a VM that may be this guest's, and only under a serial that is its own.

use rstest::rstest;
use serde_json::json;

use super::*;

const CLUSTER: &str = "cluster.x-k8s.io/cluster-name";

fn scene(vm_labels: serde_json::Value, instance_labels: serde_json::Value) -> FakeInfra {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.edit("virtualmachines", "vm1", |vm| vm["metadata"]["labels"] = vm_labels);
    fake.edit("virtualmachineinstances", "vm1", |vmi| vmi["metadata"]["labels"] = instance_labels);
    fake
}

fn hotplugs(fake: &FakeInfra) -> usize {
    fake.calls().iter().filter(|call| call.contains("addvolume")).count()
}

fn attachment(serial: Option<&str>, mode: Mode) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: "pvc-1".into(),
        node_id: "infra/vm1".into(),
        volume_capability: Some(capability(mode == Mode::MultiNodeMultiWriter, mode)),
        volume_context: serial.map(|serial| ("serial".to_owned(), serial.to_owned())).into_iter().collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_vm_that_says_another_guest_gets_no_volume() {
    let key = LABEL.0;
    let scenes = [
        scene(json!({ key: "other" }), json!({})),
        scene(json!({}), json!({ key: "other" })),
        scene(json!({ key: LABEL.1 }), json!({ key: "other" })),
    ];
    for fake in scenes {
        let fixture = Fixture::new(&fake).await;
        let text = "VM infra/vm1 gets no volume of this guest: it is another guest's: its label \
                    csi-driver/cluster is not \"tenant\"";
        assert_fails(fixture.publish("pvc-1", "infra/vm1").await, Code::FailedPrecondition, text);
        assert_eq!((hotplugs(&fake), fake.holder("pvc-1")), (0, None));
    }
}

#[tokio::test]
async fn a_shared_volume_does_not_go_there_either() {
    let fake = scene(json!({ LABEL.0: "other" }), json!({}));
    fake.edit("datavolumes", "pvc-1", |volume| {
        volume["spec"]["storage"]["accessModes"] = json!(["ReadWriteMany"]);
    });
    let fixture = Fixture::new(&fake).await;
    let published = fixture
        .client
        .clone()
        .controller_publish_volume(attachment(None, Mode::MultiNodeMultiWriter))
        .await
        .map(drop);
    assert_fails(published, Code::FailedPrecondition, "another guest's");
    assert_eq!(hotplugs(&fake), 0);
}

#[tokio::test]
async fn a_vm_without_our_label_gets_volumes() {
    for labels in [json!({}), json!(null), json!({ CLUSTER: "any", "app": "x" }), json!({ LABEL.0: LABEL.1 })]
    {
        let fake = scene(labels.clone(), labels);
        let fixture = Fixture::new(&fake).await;
        fixture.publish("pvc-1", "infra/vm1").await.unwrap();
        assert_eq!(fake.plugged_into("pvc-1"), ["vm1"]);
    }
}

#[tokio::test]
async fn demanded_labels_must_be_there() {
    let demanded = BTreeMap::from([(CLUSTER.to_owned(), "one".to_owned())]);
    for (labels, refusal) in [
        (json!({}), Some("does not carry the label cluster.x-k8s.io/cluster-name=one")),
        (json!({ CLUSTER: "two" }), Some("its label cluster.x-k8s.io/cluster-name is not \"one\"")),
        (json!({ CLUSTER: "one" }), None),
    ] {
        let fake = scene(labels, json!({}));
        let policy = StorageClassPolicy::default();
        let controller = controller_demanding(&fake, &Tasks::default(), policy, demanded.clone());
        let fixture = Fixture::serving(controller).await;
        let published = fixture.publish("pvc-1", "infra/vm1").await;
        match refusal {
            Some(text) => assert_fails(published, Code::FailedPrecondition, text),
            None => published.unwrap(),
        }
    }
}

/// The volume got there before the label changed, or by another program.
#[tokio::test]
async fn our_volume_can_be_detached_from_any_vm() {
    let fake = scene(json!({}), json!({}));
    let fixture = Fixture::new(&fake).await;
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    fake.edit("virtualmachines", "vm1", |vm| vm["metadata"]["labels"] = json!({ LABEL.0: "other" }));
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    assert!(fake.plugged_into("pvc-1").is_empty());
}

#[tokio::test]
async fn a_serial_that_is_not_the_volumes_is_refused() {
    let fake = scene(json!({}), json!({}));
    let fixture = Fixture::new(&fake).await;
    let publish = async |serial: &str| {
        let request = attachment(Some(serial), Mode::SingleNodeWriter);
        fixture.client.clone().controller_publish_volume(request).await.map(drop)
    };
    let text = "annotate its DataVolume there with csi.kubevirt.io/serial=uid-old";
    assert_fails(publish("uid-old").await, Code::FailedPrecondition, text);
    assert_eq!((hotplugs(&fake), fake.holder("pvc-1")), (0, None));
    fake.edit("datavolumes", "pvc-1", |volume| {
        volume["metadata"]["annotations"] = json!({"csi.kubevirt.io/serial": "uid-old"});
    });
    assert_fails(publish("uid-other").await, Code::FailedPrecondition, "uid-other");
    publish("uid-old").await.unwrap();
    assert_eq!(fake.plugged_into("pvc-1"), ["vm1"]);
}

/// A VM that has a volume of another guest, and one that is no guest's.
fn vm_with_foreign_volumes() -> FakeInfra {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", false);
    fake.edit("virtualmachines", "vm1", |vm| {
        vm["spec"]["template"]["spec"]["volumes"] = json!([
            {"name": "pvc-1", "dataVolume": {"name": "pvc-1"}},
            {"name": "rootdisk", "dataVolume": {"name": "rootdisk"}},
        ]);
    });
    fake
}

/// The volume `rootdisk` is no volume of any guest; the guest must not read which VM has it.
#[tokio::test]
async fn holders_of_what_is_not_ours_are_not_named() {
    let fake = vm_with_foreign_volumes();
    let fixture = Fixture::new(&fake).await;
    for volume in ["pvc-1", "rootdisk"] {
        for node in ["", "not-a-vm", "infra/vm1"] {
            let status = fixture.unpublish(volume, node).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{volume} {node}");
            assert_eq!(status.message(), "invalid volume name", "{volume} {node}");
        }
    }
}

/// A guest that asks for volumes of any name, on VMs of any name, learns nothing of another guest's VM: the answers are the same
/// whether that VM has the volume or not. What its own VM has it may know, and then nothing is reported as detached.
#[rstest]
#[case::by_the_vm("virtualmachines")]
#[case::by_the_vmi("virtualmachineinstances")]
#[tokio::test]
async fn what_another_guests_vm_has_is_not_told(#[case] labelled: &str) {
    let fake = vm_with_foreign_volumes();
    let fixture = Fixture::new(&fake).await;
    for node in ["", "not-a-vm", "infra/vm1"] {
        fixture.unpublish("rootdisk", node).await.unwrap_err();
    }
    fake.edit(labelled, "vm1", |object| object["metadata"]["labels"] = json!({ LABEL.0: "other" }));
    for volume in ["pvc-1", "rootdisk", "no-such-disk"] {
        for node in ["", "not-a-vm", "infra/vm1", "infra/no-such-vm"] {
            fixture
                .unpublish(volume, node)
                .await
                .unwrap_or_else(|status| panic!("{volume} {node}: {status:?}"));
        }
    }
    let changes = fake.calls().into_iter().filter(|call| !call.starts_with("GET")).collect::<Vec<_>>();
    assert!(changes.iter().all(|call| call.starts_with("PATCH") && call.contains("pvc-1")), "{changes:?}");
}
