//! Volumes that KubeVirt has moved to another claim (`updateVolumesStrategy: Migration`).

use super::*;
use csi::controller_server::Controller as _;
use fake_infra::Effect;
use serde_json::{Value, json};

const MOVED: &str = "csi.kubevirt.io/moved-to";
const CLAIMS: &str = "persistentvolumeclaims";

/// pvc-1 on vm1, as KubeVirt leaves it when it has moved it to the claim `faster`.
async fn moved(fake: &FakeInfra) -> Fixture {
    fake.vm("vm1");
    fake.vm("vm2");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(fake).await;
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    fake.edit("virtualmachines", "vm1", |vm| rename(&mut vm["spec"]["template"]["spec"]["volumes"]));
    fake.edit("virtualmachineinstances", "vm1", |vmi| rename(&mut vmi["spec"]["volumes"]));
    fake.forget_calls();
    fixture
}

/// Names `faster` as the source of the entry of pvc-1.
fn rename(volumes: &mut Value) {
    let volumes = volumes.as_array_mut().unwrap();
    volumes.iter_mut().find(|entry| entry["name"] == "pvc-1").unwrap()["dataVolume"]["name"] =
        "faster".into();
}

fn recorded(fake: &FakeInfra) -> Option<String> {
    let claim = fake.get(CLAIMS, "pvc-1").unwrap();
    claim["metadata"]["annotations"][MOVED].as_str().map(str::to_owned)
}

async fn unpublish_within_two_seconds(fixture: &Fixture) -> Result<(), Status> {
    let mut request = Request::new(csi::ControllerUnpublishVolumeRequest {
        volume_id: "pvc-1".into(),
        node_id: "infra/vm1".into(),
        ..Default::default()
    });
    // Without a socket, on which tonic's own timeout races with the controller's.
    request.set_timeout(Duration::from_secs(2));
    fixture.controller.controller_unpublish_volume(request).await.map(drop)
}

#[tokio::test]
async fn a_moved_volume_is_detached_and_its_older_claim_is_not_used_again() {
    let fake = FakeInfra::default();
    let fixture = moved(&fake).await;
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!((fake.plugged_into("pvc-1"), recorded(&fake).as_deref()), (vec![], Some("faster")));
    let calls = fake.calls();
    let at = |what: &str| calls.iter().rposition(|call| call.contains(what)).unwrap();
    assert!(at("PATCH") < at("removevolume"), "recorded before it is unplugged: {calls:?}");
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();

    let says = "has moved the volume to PVC faster";
    for node in ["infra/vm1", "infra/vm2"] {
        assert_fails(fixture.publish("pvc-1", node).await, Code::FailedPrecondition, says);
    }
    let snapshot = csi::CreateSnapshotRequest {
        name: "snapshot-1".into(),
        source_volume_id: "pvc-1".into(),
        ..Default::default()
    };
    let taken = fixture.client.clone().create_snapshot(snapshot).await;
    assert_fails(taken.map(drop), Code::FailedPrecondition, says);
    let expand = csi::ControllerExpandVolumeRequest {
        volume_id: "pvc-1".into(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 2 << 30, limit_bytes: 0 }),
        ..Default::default()
    };
    let expanded = fixture.client.clone().controller_expand_volume(expand).await;
    assert_fails(expanded.map(drop), Code::FailedPrecondition, says);
    assert_eq!(fake.plugged_into("pvc-1"), Vec::<String>::new());

    // The administrator has brought the data back.
    fake.edit(CLAIMS, "pvc-1", |claim| {
        drop(claim["metadata"]["annotations"].as_object_mut().unwrap().remove(MOVED));
    });
    fixture.publish("pvc-1", "infra/vm2").await.unwrap();
}

#[tokio::test]
async fn a_volume_for_many_nodes_is_refused_in_the_same_way() {
    let fake = FakeInfra::default();
    let fixture = moved(&fake).await;
    fake.edit("datavolumes", "pvc-1", |volume| {
        volume["spec"]["storage"]["accessModes"] = json!(["ReadWriteMany"]);
    });
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    let request = csi::ControllerPublishVolumeRequest {
        volume_id: "pvc-1".into(),
        node_id: "infra/vm2".into(),
        volume_capability: Some(capability(true, Mode::MultiNodeMultiWriter)),
        ..Default::default()
    };
    let published = fixture.client.clone().controller_publish_volume(request).await;
    assert_fails(published.map(drop), Code::FailedPrecondition, "has moved the volume to PVC faster");
    assert_eq!(fake.plugged_into("pvc-1"), Vec::<String>::new());
}

/// While a VM has the volume from another claim, a copy of its own claim would have older data.
#[tokio::test]
async fn an_attached_moved_volume_is_not_copied_from_its_older_claim() {
    let fake = FakeInfra::default();
    let fixture = moved(&fake).await;
    let snapshot = csi::CreateSnapshotRequest {
        name: "snapshot-1".into(),
        source_volume_id: "pvc-1".into(),
        ..Default::default()
    };
    let taken = fixture.client.clone().create_snapshot(snapshot).await;
    assert_fails(taken.map(drop), Code::FailedPrecondition, "has moved the volume to PVC faster");
    let source = csi::volume_content_source::VolumeSource { volume_id: "pvc-1".into() };
    let clone = csi::CreateVolumeRequest {
        volume_content_source: Some(csi::VolumeContentSource {
            r#type: Some(csi::volume_content_source::Type::Volume(source)),
        }),
        ..new_volume("pvc-2")
    };
    let cloned = fixture.create(clone).await.map(drop);
    assert_fails(cloned, Code::FailedPrecondition, "has moved the volume to PVC faster");
    assert!(
        fake.get("volumesnapshots", "snapshot-1").is_none() && fake.get("datavolumes", "pvc-2").is_none()
    );
}

#[tokio::test]
async fn without_a_record_a_moved_volume_stays_where_it_is() {
    for (what, prepare) in [
        (
            "no right to patch",
            (|fake| {
                // The first is the holder annotation's.
                fake.fault("PATCH", Effect::Answer(403, "no right"));
                fake.fault("PATCH", Effect::Answer(403, "no right"));
            }) as fn(&FakeInfra),
        ),
        ("a foreign claim", |fake| {
            fake.edit(CLAIMS, "pvc-1", |claim| claim["metadata"]["labels"] = json!({}));
        }),
        // With its DataVolume, CDI might make the claim again.
        ("no claim", |fake| fake.remove(CLAIMS, "pvc-1")),
    ] {
        let fake = FakeInfra::default();
        let fixture = moved(&fake).await;
        prepare(&fake);
        assert_fails(
            fixture.unpublish("pvc-1", "infra/vm1").await,
            Code::FailedPrecondition,
            "must move it back",
        );
        assert_eq!(fake.plugged_into("pvc-1"), ["vm1"], "{what}");
        assert!(!fake.calls().iter().any(|call| call.contains("removevolume")), "{what}");
    }
}

#[tokio::test]
async fn a_move_is_recorded_whatever_else_happens_to_the_claim() {
    // The claim changed since it was read; it has no annotations; the reply is lost after it was recorded.
    let fake = FakeInfra::default();
    let fixture = moved(&fake).await;
    fake.edit(CLAIMS, "pvc-1", |claim| {
        drop(claim["metadata"].as_object_mut().unwrap().remove("annotations"));
    });
    fake.fault("PATCH", Effect::Answer(422, "no holder"));
    fake.fault("PATCH", Effect::Answer(409, "the object has been modified"));
    fake.fault("PATCH", Effect::LoseReply);
    assert_fails(
        fixture.unpublish("pvc-1", "infra/vm1").await,
        Code::Unavailable,
        "the infra API request failed",
    );
    assert_eq!(
        (fake.plugged_into("pvc-1"), recorded(&fake).as_deref()),
        (vec!["vm1".to_owned()], Some("faster"))
    );
    // A lost reply of the removal: the VM is read again.
    fake.fault("removevolume", Effect::LoseReply);
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!(fake.plugged_into("pvc-1"), Vec::<String>::new());
    // Without claim and DataVolume no attach can find the volume.
    let fake = FakeInfra::default();
    let fixture = moved(&fake).await;
    fake.remove(CLAIMS, "pvc-1");
    fake.remove("datavolumes", "pvc-1");
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    assert_fails(fixture.publish("pvc-1", "infra/vm2").await, Code::NotFound, "invalid volume name");
}

#[tokio::test]
async fn a_volume_that_is_being_moved_is_detached_when_that_has_ended() {
    let fake = FakeInfra::default();
    let fixture = moved(&fake).await;
    let migrating = json!([{"volumeName": "pvc-1"}]);
    fake.edit("virtualmachineinstances", "vm1", |vmi| vmi["status"]["migratedVolumes"] = migrating);
    let unpublished = unpublish_within_two_seconds(&fixture).await;
    assert_fails(unpublished, Code::DeadlineExceeded, "KubeVirt is moving the volume to PVC faster");
    assert_eq!((fake.plugged_into("pvc-1"), recorded(&fake)), (vec!["vm1".to_owned()], None));
    fake.edit("virtualmachineinstances", "vm1", |vmi| vmi["status"]["migratedVolumes"] = Value::Null);
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!(recorded(&fake).as_deref(), Some("faster"));
}

/// Another replica may detach, and record the move, after this one has read the claim.
#[tokio::test]
async fn a_move_that_is_recorded_during_an_attach_ends_it() {
    let fake = FakeInfra::default();
    fake.vm("vm2");
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fake.fault("addvolume", Effect::Delay(Duration::from_millis(300)));
    let record = async {
        while !fake.calls().iter().any(|call| call.contains("addvolume")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fake.edit(CLAIMS, "pvc-1", |claim| claim["metadata"]["annotations"][MOVED] = "faster".into());
    };
    let (published, ()) = tokio::join!(fixture.publish("pvc-1", "infra/vm2"), record);
    assert_fails(published, Code::FailedPrecondition, "has moved the volume to PVC faster");
    assert_eq!((fake.plugged_into("pvc-1"), fake.holder("pvc-1")), (vec![], None), "withdrawn");
}

#[tokio::test]
async fn an_open_migration_that_holds_up_other_volumes_is_named() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    // KubeVirt takes the entry into the VMI when the field is gone.
    fake.edit("virtualmachines", "vm1", |vm| {
        vm["spec"]["updateVolumesStrategy"] = "Migration".into();
        let entry = json!({"name": "pvc-1", "dataVolume": {"name": "pvc-1", "hotpluggable": true}});
        vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap().push(entry);
    });
    let controller = controller_over(&fake);
    let mut request = Request::new(csi::ControllerPublishVolumeRequest {
        volume_id: "pvc-1".into(),
        node_id: "infra/vm1".into(),
        volume_capability: Some(capability(false, Mode::SingleNodeWriter)),
        ..Default::default()
    });
    request.set_timeout(Duration::from_secs(2));
    let published = controller.controller_publish_volume(request).await;
    let says = "while it is set KubeVirt plugs no other volume in or out";
    assert_fails(published.map(drop), Code::DeadlineExceeded, says);
}
