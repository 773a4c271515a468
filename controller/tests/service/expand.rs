//! Expanding.

use super::*;
use csi::controller_server::Controller as _;
use fake_infra::Effect;
use fake_resizer::Resizer;
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;
const CLAIMS: &str = "persistentvolumeclaims";
const PATCH: &str = "PATCH /api/v1/namespaces/infra/persistentvolumeclaims";
const GET_CLAIM: &str = "GET /api/v1/namespaces/infra/persistentvolumeclaims";

fn fake_with_volume() -> FakeInfra {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    fake
}

/// Its claim is a filesystem, which CDI made 6 % larger than the disk.
fn make_filesystem(fake: &FakeInfra) {
    fake.edit(CLAIMS, "pvc-1", |claim| {
        claim["spec"]["volumeMode"] = "Filesystem".into();
        claim["spec"]["resources"]["requests"]["storage"] = "1138166334".into();
        claim["status"]["capacity"]["storage"] = "1138166334".into();
    });
}

fn request(volume: &str, required: u64, limit: u64) -> csi::ControllerExpandVolumeRequest {
    let [required_bytes, limit_bytes] = [required, limit].map(|bytes| i64::try_from(bytes).unwrap());
    csi::ControllerExpandVolumeRequest {
        volume_id: volume.into(),
        capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes }),
        volume_capability: Some(capability(false, Mode::SingleNodeWriter)),
        ..Default::default()
    }
}

/// Expands without a socket: with time paused, the deadline passes only when nothing else is left to happen.
async fn expand_with(
    controller: &Controller,
    request: csi::ControllerExpandVolumeRequest,
) -> Result<u64, Status> {
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_mins(3));
    let answer = controller.controller_expand_volume(request).await?.into_inner();
    assert!(answer.node_expansion_required, "only the node sees the disk's size");
    Ok(answer.capacity_bytes.try_into().unwrap())
}

async fn expand(fake: &FakeInfra, size: u64) -> Result<u64, Status> {
    expand_with(&controller_over(fake), request("pvc-1", size, 0)).await
}

fn requested(fake: &FakeInfra) -> String {
    text(&fake.get(CLAIMS, "pvc-1").unwrap()["spec"]["resources"]["requests"]["storage"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn patches(fake: &FakeInfra) -> usize {
    fake.calls().iter().filter(|call| call.starts_with(PATCH)).count()
}

#[tokio::test]
async fn a_block_claim_grows_to_the_size_and_a_second_call_changes_nothing() {
    let fake = fake_with_volume();
    assert_eq!(expand(&fake, 2 * GIB).await.unwrap(), 2 * GIB);
    assert_eq!(requested(&fake), (2 * GIB).to_string());
    assert_eq!(
        fake.calls().iter().map(|call| call.split(' ').next().unwrap()).collect::<Vec<_>>(),
        ["GET", "GET", "PATCH"],
        "the volume, its claim, the change; the answer of the change shows the size"
    );
    assert_eq!(expand(&fake, 2 * GIB).await.unwrap(), 2 * GIB);
    assert_eq!(expand(&fake, GIB).await.unwrap(), 2 * GIB, "never smaller");
    assert_eq!(patches(&fake), 1);
}

#[tokio::test]
async fn the_capability_is_advertised_and_requests_are_checked() {
    let fixture = Fixture::new(&fake_with_volume()).await;
    let expand = async |request: csi::ControllerExpandVolumeRequest| {
        fixture.client.clone().controller_expand_volume(request).await.map(drop)
    };
    expand(request("pvc-1", 2 * GIB, 0)).await.unwrap();
    let no_range = csi::ControllerExpandVolumeRequest { capacity_range: None, ..request("pvc-1", GIB, 0) };
    for (request, word) in [
        (request("", GIB, 0), "volume id"),
        (no_range, "capacity range"),
        (request("pvc-1", 2, 1), "not satisfiable"),
    ] {
        assert_fails(expand(request).await, Code::InvalidArgument, word);
    }
    let mut identity = IdentityClient::new(fixture.channel.clone());
    let plugin = identity.get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await.unwrap();
    assert!(plugin.into_inner().capabilities.contains(&csi_call::Identity::online_expansion()));
}

#[tokio::test]
async fn what_is_absent_or_foreign_is_not_found_and_nothing_is_changed() {
    let fake = FakeInfra::default();
    fake.volume("pvc-2", false);
    fake.volume("pvc-3", true);
    fake.edit(CLAIMS, "pvc-3", |claim| claim["metadata"]["labels"] = json!({}));
    let controller = controller_over(&fake);
    for volume in ["fake-vol-id", "pvc-1", "pvc-2", "pvc-3", "pvc-../x"] {
        let answer = expand_with(&controller, request(volume, 2 * GIB, 0)).await;
        assert_fails(answer.map(drop), Code::NotFound, "invalid volume name");
    }
    assert_eq!(patches(&fake), 0);
}

#[tokio::test]
async fn a_filesystem_claim_grows_by_the_overhead_too_and_remembers_it() {
    let fake = fake_with_volume();
    make_filesystem(&fake);
    assert_eq!(expand(&fake, 2 * GIB).await.unwrap(), 2 * GIB);
    // 2 GiB / 0.94², in whole MiB.
    assert_eq!(requested(&fake), (2318_u64 << 20).to_string());
    let annotations =
        |fake: &FakeInfra| fake.get(CLAIMS, "pvc-1").unwrap()["metadata"]["annotations"].clone();
    assert_eq!(annotations(&fake)["csi.kubevirt.io/created-request"], "1138166334");
    assert_eq!(expand(&fake, 4 * GIB).await.unwrap(), 4 * GIB);
    assert_eq!(requested(&fake), (4636_u64 << 20).to_string(), "by the overhead of the first claim");
    assert_eq!(annotations(&fake)["csi.kubevirt.io/created-request"], "1138166334");
}

#[tokio::test]
async fn a_filesystem_claim_without_annotations_gets_one() {
    let fake = fake_with_volume();
    make_filesystem(&fake);
    fake.edit(CLAIMS, "pvc-1", |claim| {
        claim["metadata"].as_object_mut().unwrap().remove("annotations");
    });
    expand(&fake, 2 * GIB).await.unwrap();
    let claim = fake.get(CLAIMS, "pvc-1").unwrap();
    assert_eq!(claim["metadata"]["annotations"]["csi.kubevirt.io/created-request"], "1138166334");
}

/// kubevirt/csi-driver requests the size of the disk and no more; and older installations have `spec.pvc`, for which CDI
/// adds nothing.
#[tokio::test]
async fn volumes_of_the_reference_grow_by_the_default_overhead() {
    for edit in [
        (|volume: &mut Value, claim: &mut Value| {
            let storage = volume["spec"].as_object_mut().unwrap().remove("storage").unwrap();
            volume["spec"]["pvc"] = storage;
            claim["spec"]["resources"]["requests"]["storage"] = "1Gi".into();
            claim["status"]["capacity"]["storage"] = "1Gi".into();
        }) as fn(&mut Value, &mut Value),
        |_: &mut Value, claim: &mut Value| {
            claim["spec"]["resources"]["requests"]["storage"] = "1153433600".into();
            claim["status"]["allocatedResources"] = json!({"storage": "1153433600"});
        },
        |_: &mut Value, claim: &mut Value| {
            claim["spec"]["resources"]["requests"]["storage"] = "1536Mi".into();
        },
    ] {
        let fake = fake_with_volume();
        make_filesystem(&fake);
        let mut volume = fake.get("datavolumes", "pvc-1").unwrap();
        fake.edit(CLAIMS, "pvc-1", |claim| edit(&mut volume, claim));
        fake.put("datavolumes", "pvc-1", volume);
        assert_eq!(expand(&fake, 2 * GIB).await.unwrap(), 2 * GIB);
        assert_eq!(requested(&fake), (2318_u64 << 20).to_string());
        let claim = fake.get(CLAIMS, "pvc-1").unwrap();
        assert_eq!(claim["metadata"]["annotations"]["csi.kubevirt.io/created-request"], Value::Null);
    }
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_the_size_and_says_what_it_waits_for() {
    let fake = fake_with_volume();
    fake.set_resizer(Resizer::GrowsAfter(Duration::from_secs(40)));
    assert_eq!(expand(&fake, 2 * GIB).await.unwrap(), 2 * GIB);
    let reads = fake.calls().iter().filter(|call| call.starts_with(GET_CLAIM)).count();
    assert!((10..40).contains(&reads), "{reads}");
    fake.set_resizer(Resizer::Sleeps);
    let late = expand(&fake, 3 * GIB).await.map(drop);
    assert_fails(late, Code::DeadlineExceeded, "it has 2147483648 of 3221225472 bytes (not begun)");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_to_the_node_is_done_as_far_as_infra_goes() {
    let fake = fake_with_volume();
    make_filesystem(&fake);
    fake.set_resizer(Resizer::LeavesToNode);
    assert_eq!(expand(&fake, 2 * GIB).await.unwrap(), 2 * GIB);
    let capacity = text(&fake.get(CLAIMS, "pvc-1").unwrap()["status"]["capacity"]["storage"]);
    assert_eq!(capacity, "1138166334", "nobody has used the claim yet");
}

#[tokio::test(start_paused = true)]
async fn a_size_that_infra_refuses_is_final_and_a_smaller_one_recovers() {
    let fake = fake_with_volume();
    fake.set_resizer(Resizer::UpTo(2 * GIB));
    for _ in 0..2 {
        assert_fails(expand(&fake, 8 * GIB).await.map(drop), Code::OutOfRange, "too big");
    }
    assert_eq!((requested(&fake), patches(&fake)), ((8 * GIB).to_string(), 1));
    assert_eq!(expand(&fake, 2 * GIB).await.unwrap(), 2 * GIB);
    assert_eq!(requested(&fake), (2 * GIB).to_string());
}

#[tokio::test(start_paused = true)]
async fn an_infra_that_keeps_failing_is_reported_and_the_size_can_be_lowered() {
    let fake = fake_with_volume();
    fake.set_resizer(Resizer::Fails);
    assert_fails(expand(&fake, 8 * GIB).await.map(drop), Code::Internal, "pool is down");
    fake.set_resizer(Resizer::Grows);
    assert_eq!(expand(&fake, 2 * GIB).await.unwrap(), 2 * GIB);
}

#[tokio::test]
async fn a_limit_is_never_exceeded() {
    let fake = fake_with_volume();
    let controller = controller_over(&fake);
    assert_eq!(expand_with(&controller, request("pvc-1", 2 * GIB, 2 * GIB)).await.unwrap(), 2 * GIB);
    let smaller = expand_with(&controller, request("pvc-1", 0, GIB)).await.map(drop);
    assert_fails(smaller, Code::OutOfRange, "allows 1073741824 at most");
    make_filesystem(&fake);
    fake.forget_calls();
    let exact = expand_with(&controller, request("pvc-1", 3 * GIB, 3 * GIB)).await.map(drop);
    assert_fails(exact, Code::OutOfRange, "at most");
    assert_eq!(patches(&fake), 0);
    assert_eq!(expand_with(&controller, request("pvc-1", 3 * GIB, 4 * GIB)).await.unwrap(), 3 * GIB);
}

#[tokio::test]
async fn refusals_of_the_infra_api_are_out_of_range_in_its_words() {
    let fake = fake_with_volume();
    fake.edit(CLAIMS, "pvc-1", |claim| claim["spec"]["storageClassName"] = "fixed".into());
    let fixed = expand(&fake, 2 * GIB).await.map(drop);
    assert_fails(fixed, Code::OutOfRange, "only dynamically provisioned pvc can be resized");
    for (code, message) in [
        (403, "persistentvolumeclaims \"pvc-1\" is forbidden: exceeded quota: storage, requested: 1Gi"),
        (
            403,
            "\"pvc-1\" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi",
        ),
    ] {
        fake.fault(PATCH, Effect::Answer(code, message));
        assert_fails(expand(&fake, 2 * GIB).await.map(drop), Code::OutOfRange, message);
    }
    for message in
        ["admission webhook \"policy\" denied the request: no", "pvc-1 is invalid: spec: Forbidden: no"]
    {
        fake.fault(
            PATCH,
            Effect::Answer(422, "the server rejected our request due to an error in our request"),
        );
        fake.fault(PATCH, Effect::Answer(422, message));
        assert_fails(expand(&fake, 2 * GIB).await.map(drop), Code::OutOfRange, message);
    }
    assert_eq!(requested(&fake), "1073741824");
}

#[tokio::test]
async fn a_missing_right_or_a_failed_call_is_unavailable() {
    let fake = fake_with_volume();
    let right = "persistentvolumeclaims \"pvc-1\" is forbidden: User \"u\" cannot patch resource";
    for at in [GET_CLAIM, PATCH] {
        for (code, message) in [(401, "who?"), (403, right), (500, "broken"), (503, "not now")] {
            fake.fault(at, Effect::Answer(code, message));
            assert_fails(expand(&fake, 2 * GIB).await.map(drop), Code::Unavailable, message);
        }
    }
    assert_eq!(requested(&fake), "1073741824");
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_a_conflict_and_a_pause_lead_to_the_size() {
    let fake = fake_with_volume();
    fake.fault(PATCH, Effect::LoseReply);
    assert_fails(expand(&fake, 2 * GIB).await.map(drop), Code::Unavailable, "the infra API request failed");
    assert_eq!(expand(&fake, 2 * GIB).await.unwrap(), 2 * GIB);
    assert_eq!(patches(&fake), 1, "the change had been made");
    for (code, message) in
        [(404, "gone"), (409, "conflict"), (422, "the server rejected our request"), (429, "slowly")]
    {
        fake.forget_calls();
        let size = 3 * GIB + u64::from(code);
        fake.fault(PATCH, Effect::Answer(code, message));
        let answer = expand(&fake, size).await;
        // A 404 without the object's name proves nothing.
        if code == 404 {
            assert_fails(answer.map(drop), Code::Unavailable, "gone");
            continue;
        }
        assert_eq!(answer.unwrap(), size, "{message}");
        assert_eq!(patches(&fake), 2, "{message}");
    }
}

/// Another replica has raised the request between our read and our change.
#[tokio::test(start_paused = true)]
async fn a_request_that_changed_since_it_was_read_is_not_overwritten() {
    let fake = fake_with_volume();
    fake.fault(PATCH, Effect::Delay(Duration::from_secs(1)));
    let expanding = tokio::spawn({
        let fake = fake.clone();
        async move { expand(&fake, 2 * GIB).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    fake.edit(CLAIMS, "pvc-1", |claim| {
        claim["spec"]["resources"]["requests"]["storage"] = "4Gi".into();
        claim["status"]["capacity"]["storage"] = "4Gi".into();
    });
    assert_eq!(expanding.await.unwrap().unwrap(), 4 * GIB);
    assert_eq!(requested(&fake), "4Gi");
}

#[tokio::test]
async fn the_claim_of_a_volume_that_is_being_made_is_waited_for() {
    let fake = fake_with_volume();
    let claim = fake.get(CLAIMS, "pvc-1").unwrap();
    fake.remove(CLAIMS, "pvc-1");
    fake.edit("datavolumes", "pvc-1", |volume| volume["status"]["phase"] = "Pending".into());
    let expanding = tokio::spawn({
        let fake = fake.clone();
        async move { expand(&fake, 2 * GIB).await }
    });
    let reads = || fake.calls().iter().filter(|call| call.contains("persistentvolumeclaims")).count();
    while reads() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut unbound = claim.clone();
    unbound["status"] = json!({"phase": "Pending"});
    fake.put(CLAIMS, "pvc-1", unbound);
    let before = reads();
    while reads() < before + 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fake.put(CLAIMS, "pvc-1", claim);
    assert_eq!(expanding.await.unwrap().unwrap(), 2 * GIB);
}

#[tokio::test]
async fn a_volume_that_is_not_bound_or_on_its_way_out_is_not_expanded() {
    let fake = fake_with_volume();
    fake.edit("datavolumes", "pvc-1", |volume| volume["status"]["phase"] = "WaitForFirstConsumer".into());
    fake.edit(CLAIMS, "pvc-1", |claim| {
        claim["status"] = json!({"phase": "Pending"});
    });
    assert_fails(expand(&fake, 2 * GIB).await.map(drop), Code::Aborted, "is Pending");
    assert_eq!(expand(&fake, GIB).await.unwrap(), GIB, "it will be as large as it was created");
    fake.edit(CLAIMS, "pvc-1", |claim| {
        claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    });
    assert_fails(expand(&fake, 2 * GIB).await.map(drop), Code::FailedPrecondition, "being deleted");
    fake.remove(CLAIMS, "pvc-1");
    assert_fails(expand(&fake, 2 * GIB).await.map(drop), Code::Aborted, "no infra claim yet");
    fake.edit("datavolumes", "pvc-1", |volume| {
        volume["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    });
    assert_fails(expand(&fake, 2 * GIB).await.map(drop), Code::FailedPrecondition, "being deleted");
    fake.remove("datavolumes", "pvc-1");
    assert_fails(expand(&fake, 2 * GIB).await.map(drop), Code::NotFound, "invalid volume name");
    assert_eq!(patches(&fake), 0);
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_attached_while_it_is_expanded_and_not_expanded_twice_at_once() {
    let fake = fake_with_volume();
    fake.vm("vm1");
    fake.set_resizer(Resizer::GrowsAfter(Duration::from_secs(40)));
    let controller = controller_over(&fake);
    let first = tokio::spawn({
        let controller = controller.clone();
        async move { expand_with(&controller, request("pvc-1", 2 * GIB, 0)).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    let second = expand_with(&controller, request("pvc-1", 2 * GIB, 0)).await.map(drop);
    assert_fails(second, Code::Aborted, "the infra claim is being expanded");
    let mut publish = Request::new(csi::ControllerPublishVolumeRequest {
        volume_id: "pvc-1".into(),
        node_id: "infra/vm1".into(),
        volume_capability: Some(capability(false, Mode::SingleNodeWriter)),
        ..Default::default()
    });
    publish.set_timeout(Duration::from_secs(10));
    controller.controller_publish_volume(publish).await.unwrap();
    assert_eq!(first.await.unwrap().unwrap(), 2 * GIB);
}

#[tokio::test]
async fn creating_again_and_validating_know_a_volume_that_has_grown() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    let mut small = new_volume("pvc-1");
    small.capacity_range = Some(csi::CapacityRange { required_bytes: 200 << 20, limit_bytes: 250 << 20 });
    let first = fixture.create(small.clone()).await.unwrap();
    let validate = async || {
        let mut wanted = capability(false, Mode::SingleNodeWriter);
        wanted.access_type =
            Some(AccessType::Mount(MountVolume { fs_type: "xfs".into(), ..Default::default() }));
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: "pvc-1".into(),
            volume_capabilities: vec![wanted],
            ..Default::default()
        };
        fixture.client.clone().validate_volume_capabilities(request).await.unwrap().into_inner()
    };
    assert!(validate().await.message.contains("needs a volume of"));
    expand(&fake, 2 * GIB).await.unwrap();
    assert_eq!(fixture.create(small).await.unwrap(), first);
    assert!(validate().await.confirmed.is_some());
}
