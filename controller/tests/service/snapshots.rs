//! Snapshots and restored volumes.

use super::*;
use csi_proto::v1::{VolumeContentSource, volume_content_source as content};
use fake_infra::Effect;
use rstest::rstest;
use serde_json::{Value, json};

const SNAPSHOTS: &str = "volumesnapshots";

impl Fixture {
    async fn snapshot(&self, name: &str, volume: &str) -> Result<csi::Snapshot, Status> {
        self.snapshot_with(name, volume, &[]).await
    }

    async fn snapshot_with(
        &self,
        name: &str,
        volume: &str,
        parameters: &[(&str, &str)],
    ) -> Result<csi::Snapshot, Status> {
        let mut request = Request::new(csi::CreateSnapshotRequest {
            name: name.into(),
            source_volume_id: volume.into(),
            parameters: parameters.iter().map(|&(key, value)| (key.into(), value.into())).collect(),
            ..Default::default()
        });
        request.set_timeout(Duration::from_secs(3));
        Ok(self.client.clone().create_snapshot(request).await?.into_inner().snapshot.unwrap())
    }

    async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let request = csi::DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        self.client.clone().delete_snapshot(request).await.map(drop)
    }

    async fn list(&self, request: csi::ListSnapshotsRequest) -> Result<(Vec<String>, String), Status> {
        let answer = self.client.clone().list_snapshots(request).await?.into_inner();
        let ids = answer.entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect();
        Ok((ids, answer.next_token))
    }
}

fn by_id(id: &str) -> csi::ListSnapshotsRequest {
    csi::ListSnapshotsRequest { snapshot_id: id.into(), ..Default::default() }
}

fn restored(name: &str, snapshot: &str) -> csi::CreateVolumeRequest {
    let source = content::Type::Snapshot(content::SnapshotSource { snapshot_id: snapshot.into() });
    csi::CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        ..new_volume(name)
    }
}

/// As on an infra filesystem: the claim has CDI's overhead in it.
fn with_overhead(fake: &FakeInfra, volume: &str) {
    fake.edit("persistentvolumeclaims", volume, |claim| {
        claim["spec"]["volumeMode"] = "Filesystem".into();
        claim["spec"]["resources"]["requests"]["storage"] = "1138166334".into();
    });
}

#[tokio::test]
async fn a_snapshot_is_taken_found_again_and_deleted() {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    with_overhead(&fake, "pvc-1");
    let fixture = Fixture::new(&fake).await;
    let taken = fixture.snapshot("snapshot-1", "pvc-1").await.unwrap();
    assert_eq!((taken.snapshot_id.as_str(), taken.source_volume_id.as_str()), ("snapshot-1", "pvc-1"));
    assert_eq!(taken.size_bytes, 1 << 30, "the guest's size, not infra's");
    assert!(taken.ready_to_use);
    assert_eq!(taken.creation_time.unwrap().to_string(), "2026-11-29T10:00:01Z");
    let made = fake.get(SNAPSHOTS, "snapshot-1").unwrap();
    assert_eq!(made["metadata"]["labels"], json!({LABEL.0: LABEL.1}));
    assert_eq!(made["spec"], json!({"source": {"persistentVolumeClaimName": "pvc-1"}}));
    // The source may be deleted while the sidecar still asks.
    fake.remove("datavolumes", "pvc-1");
    assert_eq!(fixture.snapshot("snapshot-1", "pvc-1").await.unwrap(), taken);
    assert_eq!(fixture.list(by_id("snapshot-1")).await.unwrap().0, ["snapshot-1"]);
    let request = csi::GetSnapshotRequest { snapshot_id: "snapshot-1".into(), ..Default::default() };
    let got = fixture.client.clone().get_snapshot(request).await.unwrap().into_inner().snapshot;
    assert_eq!(got, Some(taken));
    fixture.delete_snapshot("snapshot-1").await.unwrap();
    fixture.delete_snapshot("snapshot-1").await.unwrap();
    assert!(fake.get(SNAPSHOTS, "snapshot-1").is_none());
    let calls = fake.calls();
    assert!(!calls.iter().any(|call| call.contains("/volumesnapshots?")), "HyperShift grants no list");
}

#[tokio::test]
async fn a_slow_snapshot_is_answered_as_not_ready_and_finished_by_later_calls() {
    let fake = FakeInfra::snapshotting_after(Duration::from_mins(10));
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    let first = fixture.snapshot("snapshot-1", "pvc-1").await.unwrap();
    assert!(!first.ready_to_use);
    assert_eq!(first.creation_time.unwrap().to_string(), "2026-11-29T10:00:00Z", "of the object");
    let restore = fixture.create(restored("pvc-2", "snapshot-1")).await.map(drop);
    assert_fails(restore, Code::Aborted, "can't be restored yet: not ready yet");
    fake.finish_snapshot("snapshot-1");
    let second = fixture.snapshot("snapshot-1", "pvc-1").await.unwrap();
    assert!(second.ready_to_use, "{second:?}");
    assert_eq!(fake.calls().iter().filter(|call| call.starts_with("POST")).count(), 1);
}

#[tokio::test]
async fn an_error_of_the_infra_reaches_the_guest_in_its_own_words() {
    let fake = FakeInfra::snapshotting_after(Duration::from_mins(10));
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fixture.snapshot("snapshot-1", "pvc-1").await.unwrap();
    fake.edit(SNAPSHOTS, "snapshot-1", |snapshot| {
        snapshot["status"] = json!({"readyToUse": false, "error": {"message": "pool is full"}});
    });
    let restore = fixture.create(restored("pvc-2", "snapshot-1")).await.map(drop);
    assert_fails(restore, Code::Aborted, "pool is full");
    let failed = fixture.snapshot("snapshot-1", "pvc-1").await.map(drop);
    assert_fails(failed, Code::Internal, "has not taken snapshot snapshot-1: pool is full");
    assert!(fake.get(SNAPSHOTS, "snapshot-1").is_none(), "a final answer leaves nothing behind");
    assert!(!fixture.snapshot("snapshot-1", "pvc-1").await.unwrap().ready_to_use, "it is taken anew");
    fake.edit(SNAPSHOTS, "snapshot-1", |snapshot| {
        let error = json!({"message": "no answer"});
        snapshot["status"] =
            json!({"readyToUse": false, "boundVolumeSnapshotContentName": "c", "error": error});
    });
    let failed = fixture.snapshot("snapshot-1", "pvc-1").await.map(drop);
    assert_fails(failed, Code::Aborted, "is not ready in the infra cluster: no answer");
    fake.edit(SNAPSHOTS, "snapshot-1", |snapshot| {
        snapshot["status"] = json!({"readyToUse": true, "restoreSize": "1Gi"});
    });
    assert!(fixture.snapshot("snapshot-1", "pvc-1").await.unwrap().ready_to_use);
}

#[rstest]
#[case::absent(|fake: &FakeInfra| fake.remove("datavolumes", "pvc-1"), Code::NotFound, "invalid volume name")]
#[case::foreign(|fake: &FakeInfra| fake.volume("pvc-1", false), Code::NotFound, "invalid volume name")]
#[case::being_deleted(
    |fake: &FakeInfra| fake.edit("datavolumes", "pvc-1", |it| it["metadata"]["deletionTimestamp"] = "x".into()),
    Code::FailedPrecondition, "being deleted"
)]
#[case::claim_being_deleted(
    |fake: &FakeInfra| fake.edit("persistentvolumeclaims", "pvc-1", |it| it["metadata"]["deletionTimestamp"] = "x".into()),
    Code::FailedPrecondition, "being deleted"
)]
#[case::not_used_yet(
    |fake: &FakeInfra| {
        fake.edit("datavolumes", "pvc-1", |it| it["status"]["phase"] = "WaitForFirstConsumer".into());
        fake.edit("persistentvolumeclaims", "pvc-1", |it| it["status"]["phase"] = "Pending".into());
    },
    Code::FailedPrecondition, "has nothing to copy yet"
)]
#[case::being_filled(
    |fake: &FakeInfra| fake.edit("datavolumes", "pvc-1", |it| it["status"]["phase"] = "ImportInProgress".into()),
    Code::FailedPrecondition, "data volume phase ImportInProgress"
)]
#[case::without_a_claim(
    |fake: &FakeInfra| {
        fake.edit("datavolumes", "pvc-1", |it| it["status"]["phase"] = "PendingPopulation".into());
        fake.remove("persistentvolumeclaims", "pvc-1");
    },
    Code::FailedPrecondition, "has nothing to copy yet"
)]
#[case::failed(
    |fake: &FakeInfra| fake.edit("datavolumes", "pvc-1", |it| it["status"]["phase"] = "Failed".into()),
    Code::FailedPrecondition, "has failed in the infra cluster"
)]
#[tokio::test]
async fn of_what_has_no_content_no_snapshot_is_made(
    #[case] change: fn(&FakeInfra),
    #[case] code: Code,
    #[case] text: &str,
) {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    change(&fake);
    let fixture = Fixture::new(&fake).await;
    assert_fails(fixture.snapshot("snapshot-1", "pvc-1").await.map(drop), code, text);
    assert!(fake.get(SNAPSHOTS, "snapshot-1").is_none());
}

#[tokio::test]
async fn a_name_belongs_to_one_source_and_one_guest() {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    fake.volume("pvc-2", true);
    let fixture = Fixture::new(&fake).await;
    fixture.snapshot("snapshot-1", "pvc-1").await.unwrap();
    let other = fixture.snapshot("snapshot-1", "pvc-2").await.map(drop);
    assert_fails(other, Code::AlreadyExists, "exists with another source volume");
    let upper = fixture.snapshot("Upper", "pvc-1").await.unwrap();
    assert_eq!(fixture.snapshot("Upper", "pvc-1").await.unwrap(), upper);
    fake.put(SNAPSHOTS, "snapshot-3", json!({"metadata": {"name": "snapshot-3", "uid": "u"}, "status": {"readyToUse": true, "restoreSize": "1Gi"}}));
    let taken = fixture.snapshot("snapshot-3", "pvc-1").await.map(drop);
    assert_fails(taken, Code::AlreadyExists, "invalid snapshot name");
    assert_fails(
        fixture.delete_snapshot("snapshot-3").await,
        Code::FailedPrecondition,
        "invalid snapshot name",
    );
    assert_eq!(fixture.list(by_id("snapshot-3")).await.unwrap().0, Vec::<String>::new());
    let restore = fixture.create(restored("pvc-3", "snapshot-3")).await.map(drop);
    assert_fails(restore, Code::NotFound, "invalid snapshot name");
    assert!(fake.get(SNAPSHOTS, "snapshot-3").is_some() && fake.get("datavolumes", "pvc-3").is_none());
}

#[rstest]
#[case::asked("allowAll: false\nallowDefault: true\n", Some("fast"), Ok(Some("fast")))]
#[case::default("allowAll: false\nallowDefault: true\n", None, Ok(None))]
#[case::mapped(MAPPED, Some("t"), Ok(Some("t")))]
#[case::first_of_the_mapping(MAPPED, None, Ok(Some("s")))]
#[case::outside_the_mapping(MAPPED, Some("fast"), Err("use one of s, t"))]
#[tokio::test]
async fn the_class_is_the_one_that_the_operator_allows(
    #[case] policy: &str,
    #[case] asked: Option<&str>,
    #[case] expected: Result<Option<&str>, &str>,
) {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    let fixture = Fixture::with_policy(&fake, policy).await;
    let parameters: Vec<_> = asked.map(|class| ("infraSnapshotClassName", class)).into_iter().collect();
    let taken = fixture.snapshot_with("snapshot-1", "pvc-1", &parameters).await.map(drop);
    match expected {
        Ok(class) => {
            taken.unwrap();
            let made = fake.get(SNAPSHOTS, "snapshot-1").unwrap();
            assert_eq!(made["spec"]["volumeSnapshotClassName"], json!(class));
        }
        Err(text) => assert_fails(taken, Code::InvalidArgument, text),
    }
}

const MAPPED: &str = "allowList: [standard]\nstorageSnapshotMapping:\n- storageClasses: [standard]\n  volumeSnapshotClasses: [s, t]\n";

#[tokio::test]
async fn a_mistyped_parameter_is_refused_and_one_of_others_passes() {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    let mistyped = fixture.snapshot_with("snapshot-1", "pvc-1", &[("infraSnapshotClasName", "x")]).await;
    assert_fails(mistyped.map(drop), Code::InvalidArgument, "it should probably be infraSnapshotClassName");
    fixture.snapshot_with("snapshot-1", "pvc-1", &[("type", "x")]).await.unwrap();
}

#[rstest]
#[case::read("GET", Effect::Answer(403, "no right to get"), Code::Unavailable, "no right to get")]
#[case::not_served("GET", Effect::Answer(404, "page not found"), Code::Unavailable, "page not found")]
#[case::create("POST", Effect::Answer(403, "no right to create"), Code::Unavailable, "no right to create")]
#[case::quota("POST", Effect::Answer(403, "exceeded quota: q"), Code::ResourceExhausted, "exceeded quota")]
#[case::content("POST", Effect::Answer(422, "denied"), Code::InvalidArgument, "denied")]
#[case::server("POST", Effect::Answer(500, "broken"), Code::Unavailable, "broken")]
#[case::lost("POST", Effect::LoseReply, Code::Unavailable, "the infra API request failed")]
#[tokio::test]
async fn each_failed_call_has_its_code_and_the_next_call_goes_on(
    #[case] call: &str,
    #[case] effect: Effect,
    #[case] code: Code,
    #[case] text: &str,
) {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fake.fault(&format!("{call} /apis/snapshot.storage.k8s.io/v1"), effect);
    assert_fails(fixture.snapshot("snapshot-1", "pvc-1").await.map(drop), code, text);
    assert!(fixture.snapshot("snapshot-1", "pvc-1").await.unwrap().ready_to_use);
}

#[tokio::test]
async fn a_failed_delete_is_not_an_absent_snapshot() {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fixture.snapshot("snapshot-1", "pvc-1").await.unwrap();
    fake.fault("GET", Effect::Answer(403, "no right"));
    assert_fails(fixture.delete_snapshot("snapshot-1").await, Code::Unavailable, "no right");
    fake.fault("DELETE", Effect::Answer(409, "uid differs"));
    assert_fails(fixture.delete_snapshot("snapshot-1").await, Code::Aborted, "uid differs");
    fake.fault("DELETE", Effect::LoseReply);
    assert_fails(
        fixture.delete_snapshot("snapshot-1").await,
        Code::Unavailable,
        "the infra API request failed",
    );
    fixture.delete_snapshot("snapshot-1").await.unwrap();
    fixture.delete_snapshot("fake-snapshot-id").await.unwrap();
    fixture.delete_snapshot("../../etc").await.unwrap();
    assert_fails(fixture.delete_snapshot("").await, Code::InvalidArgument, "snapshot id");
}

#[tokio::test]
async fn snapshots_are_listed_page_by_page_where_that_is_granted() {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    fake.volume("pvc-2", true);
    let fixture = Fixture::new(&fake).await;
    for (name, volume) in [("snapshot-1", "pvc-1"), ("snapshot-2", "pvc-2"), ("snapshot-3", "pvc-1")] {
        fixture.snapshot(name, volume).await.unwrap();
    }
    fake.put(SNAPSHOTS, "snapshot-0", json!({"metadata": {"name": "snapshot-0"}}));
    let all = csi::ListSnapshotsRequest::default;
    let first = csi::ListSnapshotsRequest { max_entries: 2, ..all() };
    let (ids, token) = fixture.list(first).await.unwrap();
    assert_eq!(ids, ["snapshot-1", "snapshot-2"]);
    fixture.delete_snapshot("snapshot-2").await.unwrap();
    let rest = csi::ListSnapshotsRequest { starting_token: token, ..all() };
    assert_eq!(fixture.list(rest).await.unwrap(), (vec!["snapshot-3".to_owned()], String::new()));
    let of_volume = csi::ListSnapshotsRequest { source_volume_id: "pvc-1".into(), ..all() };
    assert_eq!(fixture.list(of_volume.clone()).await.unwrap().0, ["snapshot-1", "snapshot-3"]);
    fake.edit(SNAPSHOTS, "snapshot-3", |it| it["metadata"]["deletionTimestamp"] = "x".into());
    assert_eq!(fixture.list(of_volume).await.unwrap().0, ["snapshot-1"], "deleted, and not gone yet");
    assert_eq!(fixture.list(by_id("snapshot-3")).await.unwrap().0, Vec::<String>::new());
    let unknown = csi::ListSnapshotsRequest { source_volume_id: "none".into(), ..all() };
    assert_eq!(fixture.list(unknown).await.unwrap().0, Vec::<String>::new());
    let bad = csi::ListSnapshotsRequest { starting_token: "invalid-token".into(), ..all() };
    assert_fails(fixture.list(bad).await.map(drop), Code::Aborted, "starting_token");
    fake.fault("/volumesnapshots?", Effect::Answer(403, "no right to list"));
    assert_fails(fixture.list(all()).await.map(drop), Code::Unavailable, "list volumesnapshots");
    for id in ["fake-snapshot-id", "UPPER"] {
        assert_eq!(fixture.list(by_id(id)).await.unwrap().0, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_restored_volume_is_as_large_as_the_guest_asks_and_cdi_demands() {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    with_overhead(&fake, "pvc-1");
    let fixture = Fixture::new(&fake).await;
    fixture.snapshot("snapshot-1", "pvc-1").await.unwrap();
    let volume = fixture.create(restored("pvc-2", "snapshot-1")).await.unwrap();
    assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), ("pvc-2", 1 << 30));
    assert_eq!(volume.content_source, restored("", "snapshot-1").volume_content_source);
    let mut context: Vec<_> = volume.volume_context.keys().map(String::as_str).collect();
    context.sort_unstable();
    assert_eq!(context, ["bus", "copied", "serial"], "nothing that permits to format the disk");
    assert_eq!(volume.volume_context["copied"], "true");
    let mut block = restored("pvc-9", "snapshot-1");
    block.volume_capabilities = vec![capability(true, Mode::SingleNodeWriter)];
    let block = fixture.create(block).await.unwrap().volume_context;
    assert!(!block.contains_key("copied"), "the pod decides what is on a block volume: {block:?}");
    let made = fake.get("datavolumes", "pvc-2").unwrap();
    assert_eq!(made["spec"]["source"], json!({"snapshot": {"namespace": "infra", "name": "snapshot-1"}}));
    assert_eq!(made["spec"]["storage"]["resources"]["requests"]["storage"], "1138166334");
    // Again: the same answer, also when the snapshot is gone; and a snapshot of it has the guest's size once more.
    fake.edit("datavolumes", "pvc-2", |volume| volume["status"] = json!({"phase": "Succeeded"}));
    fake.edit("persistentvolumeclaims", "pvc-2", |claim| {
        claim["spec"]["volumeMode"] = "Filesystem".into();
        claim["spec"]["resources"]["requests"]["storage"] = "1206456314".into();
    });
    assert_eq!(fixture.snapshot("snapshot-2", "pvc-2").await.unwrap().size_bytes, 1 << 30);
    fixture.delete_snapshot("snapshot-1").await.unwrap();
    assert_eq!(fixture.create(restored("pvc-2", "snapshot-1")).await.unwrap(), volume);
    let other = fixture.create(restored("pvc-2", "snapshot-2")).await.map(drop);
    assert_fails(other, Code::AlreadyExists, "exists with another source: snapshot snapshot-1");
    let blank = fixture.create(new_volume("pvc-2")).await.map(drop);
    assert_fails(blank, Code::AlreadyExists, "asked for a blank disk");
    let gone = fixture.create(restored("pvc-3", "snapshot-1")).await.map(drop);
    assert_fails(gone, Code::NotFound, "invalid snapshot name");
}

#[tokio::test]
async fn a_volume_smaller_than_its_snapshot_is_refused_before_anything_is_made() {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    let fixture = Fixture::new(&fake).await;
    fixture.snapshot("snapshot-1", "pvc-1").await.unwrap();
    let mut smaller = restored("pvc-2", "snapshot-1");
    smaller.capacity_range.as_mut().unwrap().required_bytes -= 1;
    assert_fails(fixture.create(smaller).await.map(drop), Code::OutOfRange, "too small for its source");
    let mut larger = restored("pvc-2", "snapshot-1");
    larger.capacity_range.as_mut().unwrap().required_bytes = 1 << 31;
    assert_eq!(fixture.create(larger).await.unwrap().capacity_bytes, 1 << 31);
}

#[tokio::test]
async fn a_snapshot_of_upstream_is_restored_at_infras_size() {
    let fake = FakeInfra::default();
    let upstreams: Value = json!({
        "metadata": {"name": "snapshot-1", "uid": "u", "labels": {LABEL.0: LABEL.1}, "creationTimestamp": "2026-11-29T10:00:00Z"},
        "spec": {"source": {"persistentVolumeClaimName": "pvc-1"}},
        "status": {"readyToUse": true, "restoreSize": "2Gi"},
    });
    fake.put(SNAPSHOTS, "snapshot-1", upstreams);
    let fixture = Fixture::new(&fake).await;
    assert_eq!(fixture.snapshot("snapshot-1", "pvc-1").await.unwrap().size_bytes, 2 << 30);
    let small = fixture.create(restored("pvc-2", "snapshot-1")).await.map(drop);
    assert_fails(small, Code::OutOfRange, "2147483648");
    fake.edit(SNAPSHOTS, "snapshot-1", |snapshot| snapshot["metadata"]["deletionTimestamp"] = "x".into());
    let deleting = fixture.create(restored("pvc-2", "snapshot-1")).await.map(drop);
    assert_fails(deleting, Code::FailedPrecondition, "is being deleted");
}
