//! Clones of volumes.

use super::*;
use csi_proto::v1::{VolumeContentSource, volume_content_source as content};
use fake_infra::Effect;
use rstest::rstest;
use serde_json::json;

const VOLUMES: &str = "datavolumes";
const CLAIMS: &str = "persistentvolumeclaims";
const SNAPSHOTS: &str = "volumesnapshots";
const NO_SNAPSHOTS: &str = "allowList: [standard]\n";

fn cloned(name: &str, source: &str) -> csi::CreateVolumeRequest {
    let source = content::Type::Volume(content::VolumeSource { volume_id: source.into() });
    csi::CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        parameters: [("infraStorageClassName".to_owned(), "standard".to_owned())].into(),
        ..new_volume(name)
    }
}

fn by(method: &str) -> csi::CreateVolumeRequest {
    let mut request = cloned("pvc-2", "pvc-1");
    request.parameters.insert("cloneMethod".into(), method.into());
    request
}

/// A source, and whether a VM has it.
async fn source(fake: &FakeInfra, fixture: &Fixture, is_plugged: bool) {
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    if is_plugged {
        fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    }
}

/// A call that ends before infra has taken the temporary snapshot.
async fn begin(fixture: &Fixture) {
    let mut request = Request::new(cloned("pvc-2", "pvc-1"));
    request.set_timeout(Duration::from_secs(1));
    let begun = fixture.client.clone().create_volume(request).await.map(drop);
    assert_fails(begun, Code::Aborted, "not ready yet");
}

/// What the new `DataVolume` is made from.
fn made_from(fake: &FakeInfra) -> serde_json::Value {
    let made = fake.get(VOLUMES, "pvc-2").unwrap();
    let reference = &made["spec"]["storage"]["dataSourceRef"];
    if reference.is_null() { made["spec"]["source"].clone() } else { json!({"dataSourceRef": reference}) }
}

fn claim() -> serde_json::Value {
    json!({"pvc": {"namespace": "infra", "name": "pvc-1"}})
}

fn temporary() -> serde_json::Value {
    json!({"snapshot": {"namespace": "infra", "name": "clone-pvc-2"}})
}

fn data_source_ref() -> serde_json::Value {
    json!({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "pvc-1"}})
}

#[rstest]
#[case::unplugged("", false, cloned("pvc-2", "pvc-1"), claim())]
#[case::unplugged_without_snapshots(NO_SNAPSHOTS, false, cloned("pvc-2", "pvc-1"), claim())]
#[case::plugged("", true, cloned("pvc-2", "pvc-1"), temporary())]
#[case::plugged_without_snapshots(NO_SNAPSHOTS, true, cloned("pvc-2", "pvc-1"), data_source_ref())]
#[case::asked_for_cdi("", true, by("pvc"), claim())]
#[case::asked_for_a_snapshot("", false, by("snapshot"), temporary())]
#[case::asked_for_the_driver("", false, by("dataSourceRef"), data_source_ref())]
#[tokio::test]
async fn the_way_is_chosen_by_what_hinders_the_others(
    #[case] policy: &str,
    #[case] is_plugged: bool,
    #[case] request: csi::CreateVolumeRequest,
    #[case] expected: serde_json::Value,
) {
    let fake = FakeInfra::default();
    let fixture = Fixture::with_policy(&fake, policy).await;
    source(&fake, &fixture, is_plugged).await;
    let volume = fixture.create(request.clone()).await.unwrap();
    assert_eq!(volume.content_source, request.volume_content_source);
    assert_eq!(volume.capacity_bytes, 1 << 30);
    assert_eq!(volume.volume_context["copied"], "true");
    assert_eq!(made_from(&fake), expected);
    assert_eq!(fake.get(SNAPSHOTS, "clone-pvc-2").is_some(), expected == temporary());
    assert_eq!(fixture.create(request).await.unwrap(), volume, "the same again");
    let other = fixture.create(cloned("pvc-2", "pvc-3")).await.map(drop);
    assert_fails(other, Code::AlreadyExists, "exists with another source: volume pvc-1");
}

#[rstest]
#[case::no_right(Effect::Answer(403, "no right"))]
#[case::not_served(Effect::Answer(404, "page not found"))]
#[tokio::test]
async fn where_the_infra_has_no_snapshots_its_storage_driver_clones(#[case] effect: Effect) {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    source(&fake, &fixture, true).await;
    fake.fault("/volumesnapshots/", effect.clone());
    fixture.create(cloned("pvc-2", "pvc-1")).await.unwrap();
    assert_eq!(made_from(&fake), data_source_ref());
    fake.remove(VOLUMES, "pvc-2");
    fake.fault("/volumesnapshots/", effect.clone());
    let asked = fixture.create(by("snapshot")).await.map(drop);
    assert_eq!(asked.unwrap_err().code(), Code::Unavailable);
    fake.fault("/volumesnapshots/", effect);
    fixture.delete("pvc-2").await.unwrap();
}

#[rstest]
#[case::absent(|fake: &FakeInfra| fake.remove(VOLUMES, "pvc-1"), Code::NotFound, "invalid volume name")]
#[case::foreign(|fake: &FakeInfra| fake.volume("pvc-1", false), Code::NotFound, "invalid volume name")]
#[case::being_deleted(
    |fake: &FakeInfra| fake.edit(VOLUMES, "pvc-1", |it| it["metadata"]["deletionTimestamp"] = "x".into()),
    Code::FailedPrecondition, "being deleted"
)]
#[case::never_used(
    |fake: &FakeInfra| {
        fake.edit(VOLUMES, "pvc-1", |it| it["status"]["phase"] = "WaitForFirstConsumer".into());
        fake.edit(CLAIMS, "pvc-1", |it| it["status"]["phase"] = "Pending".into());
    },
    Code::FailedPrecondition, "has nothing to copy yet"
)]
#[case::larger_by_an_expansion(
    |fake: &FakeInfra| fake.edit(CLAIMS, "pvc-1", |it| it["spec"]["resources"]["requests"]["storage"] = "2Gi".into()),
    Code::OutOfRange, "too small for its source, which has 2147483648"
)]
#[tokio::test]
async fn what_can_not_be_cloned_is_refused_and_leaves_nothing(
    #[case] change: fn(&FakeInfra),
    #[case] code: Code,
    #[case] text: &str,
) {
    let fake = FakeInfra::snapshotting_after(Duration::from_mins(10));
    let fixture = Fixture::new(&fake).await;
    source(&fake, &fixture, true).await;
    begin(&fixture).await;
    assert!(fake.get(SNAPSHOTS, "clone-pvc-2").is_some());
    change(&fake);
    assert_fails(fixture.create(cloned("pvc-2", "pvc-1")).await.map(drop), code, text);
    assert!(fake.get(SNAPSHOTS, "clone-pvc-2").is_none() && fake.get(VOLUMES, "pvc-2").is_none());
}

#[tokio::test]
async fn a_clone_of_an_expanded_volume_is_as_large_as_its_claim() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    source(&fake, &fixture, false).await;
    fake.edit(CLAIMS, "pvc-1", |it| it["spec"]["resources"]["requests"]["storage"] = "2Gi".into());
    let mut request = cloned("pvc-2", "pvc-1");
    request.capacity_range.as_mut().unwrap().required_bytes = 2 << 30;
    assert_eq!(fixture.create(request).await.unwrap().capacity_bytes, 2 << 30);
}

#[rstest]
#[case::by_create(0)]
#[case::by_publish(1)]
#[case::by_delete(2)]
#[tokio::test]
async fn the_temporary_snapshot_ends_with_the_next_call_after_it_was_needed(#[case] next: u8) {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    source(&fake, &fixture, true).await;
    fixture.create(cloned("pvc-2", "pvc-1")).await.unwrap();
    fixture.create(cloned("pvc-2", "pvc-1")).await.unwrap();
    assert!(fake.get(SNAPSHOTS, "clone-pvc-2").is_some(), "CDI has not filled the volume yet");
    let listed = fixture.client.clone().list_snapshots(csi::ListSnapshotsRequest::default()).await.unwrap();
    assert!(listed.into_inner().entries.is_empty(), "it is none of the guest's");
    fake.edit(VOLUMES, "pvc-2", |volume| volume["status"] = json!({"phase": "Succeeded"}));
    match next {
        0 => drop(fixture.create(cloned("pvc-2", "pvc-1")).await.unwrap()),
        1 => fixture.publish("pvc-2", "infra/vm1").await.unwrap(),
        _ => fixture.delete("pvc-2").await.unwrap(),
    }
    assert!(fake.get(SNAPSHOTS, "clone-pvc-2").is_none());
    assert!(fake.get(VOLUMES, "pvc-1").is_some());
}

/// A process that dies at any call, here by a reply that never comes or by a refusal: the same request again succeeds, and
/// a delete leaves nothing.
#[rstest]
#[tokio::test]
async fn after_a_failure_at_any_call_the_clone_goes_on_or_leaves_nothing(
    #[values(
        "GET /apis/cdi.kubevirt.io/v1beta1/namespaces/infra/datavolumes/pvc-2",
        "GET /apis/snapshot.storage.k8s.io/v1/namespaces/infra/volumesnapshots/clone-pvc-2",
        "GET /apis/cdi.kubevirt.io/v1beta1/namespaces/infra/datavolumes/pvc-1",
        "GET /api/v1/namespaces/infra/persistentvolumeclaims/pvc-1",
        "virtualmachines?",
        "POST /apis/snapshot.storage.k8s.io",
        "POST /apis/cdi.kubevirt.io"
    )]
    call: &str,
    #[values(true, false)] is_lost: bool,
    #[values(true, false)] goes_on: bool,
) {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    source(&fake, &fixture, true).await;
    let effect = || if is_lost { Effect::LoseReply } else { Effect::Answer(500, "broken") };
    // A read is tried again by the client.
    for _ in 0..if call.starts_with("POST") { 1 } else { 20 } {
        fake.fault(call, effect());
    }
    let mut first = Request::new(cloned("pvc-2", "pvc-1"));
    first.set_timeout(Duration::from_secs(2));
    let first = fixture.client.clone().create_volume(first).await.unwrap_err();
    assert!(
        matches!(first.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Aborted),
        "{first:?} is final"
    );
    fake.forget_faults();
    if goes_on {
        fixture.create(cloned("pvc-2", "pvc-1")).await.unwrap();
        assert_eq!(made_from(&fake), temporary());
    }
    fixture.delete("pvc-2").await.unwrap();
    assert!(fake.get(VOLUMES, "pvc-2").is_none(), "the volume");
    assert!(fake.get(SNAPSHOTS, "clone-pvc-2").is_none(), "its snapshot");
}

/// The storage deletes the snapshot of an attempt that failed slowly: the sidecar is to ask again.
#[tokio::test]
async fn a_temporary_snapshot_that_is_being_deleted_is_waited_for() {
    let fake = FakeInfra::snapshotting_after(Duration::from_mins(10));
    let fixture = Fixture::new(&fake).await;
    source(&fake, &fixture, true).await;
    begin(&fixture).await;
    let deleting =
        |it: &mut serde_json::Value| it["metadata"]["deletionTimestamp"] = "2026-11-21T00:00:00Z".into();
    fake.edit(SNAPSHOTS, "clone-pvc-2", deleting);
    let again = fixture.create(cloned("pvc-2", "pvc-1")).await.map(drop);
    assert_fails(again, Code::Aborted, "the one of an earlier attempt is being deleted");
}

#[tokio::test]
async fn a_refused_volume_leaves_no_snapshot() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    source(&fake, &fixture, true).await;
    fake.fault("POST /apis/cdi.kubevirt.io", Effect::Answer(403, "exceeded quota: q"));
    let refused = fixture.create(cloned("pvc-2", "pvc-1")).await.map(drop);
    assert_fails(refused, Code::ResourceExhausted, "exceeded quota");
    assert!(fake.get(SNAPSHOTS, "clone-pvc-2").is_none());
    // Where the snapshot can't be deleted, the sidecar is to ask again.
    fake.fault("POST /apis/cdi.kubevirt.io", Effect::Answer(403, "exceeded quota: q"));
    fake.fault("DELETE /apis/snapshot", Effect::Answer(500, "broken"));
    let kept = fixture.create(cloned("pvc-2", "pvc-1")).await.map(drop);
    assert_fails(kept, Code::Unavailable, "broken");
}

#[tokio::test]
async fn an_unknown_method_is_refused() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    assert_fails(fixture.create(by("copy")).await.map(drop), Code::InvalidArgument, "cloneMethod \"copy\"");
}
