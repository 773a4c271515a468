//! Creating, validating, deleting, and the calls that one volume's life costs.

use super::*;
use fake_infra::Effect;

const BASE: &str = "/namespaces/infra";

#[tokio::test]
async fn the_life_of_a_lone_volume_costs_no_more_calls_than_the_reference() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    let fixture = Fixture::new(&fake).await;
    let mut calls = Vec::new();
    let volume = fixture.create(new_volume("pvc-1")).await.unwrap();
    assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), ("pvc-1", 1 << 30));
    assert_eq!(volume.volume_context["serial"], "uid-pvc-1");
    assert_eq!(volume.volume_context["bus"], "scsi");
    let mut count = |rpc| {
        calls.push((rpc, fake.calls().len()));
        fake.forget_calls();
    };
    count("create");
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!(fake.holder("pvc-1").as_deref(), Some("infra/vm1"));
    count("publish");
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    assert_eq!(fake.holder("pvc-1"), None);
    count("unpublish");
    fixture.delete("pvc-1").await.unwrap();
    count("delete");
    assert_eq!(calls, [("create", 1), ("publish", 8), ("unpublish", 5), ("delete", 4)]);
    assert!(calls.iter().map(|(_, calls)| calls).sum::<usize>() <= 18, "kubevirt/csi-driver makes 18");
    assert!(fake.get("datavolumes", "pvc-1").is_none());
}

#[tokio::test]
async fn a_publish_makes_exactly_these_calls() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    Fixture::new(&fake).await.publish("pvc-1", "infra/vm1").await.unwrap();
    let kubevirt = format!("/apis/kubevirt.io/v1{BASE}");
    assert_eq!(
        fake.calls(),
        [
            format!("GET /apis/cdi.kubevirt.io/v1beta1{BASE}/datavolumes/pvc-1"),
            format!("PATCH /api/v1{BASE}/persistentvolumeclaims/pvc-1"),
            format!("GET {kubevirt}/virtualmachineinstances?limit=100"),
            format!("GET {kubevirt}/virtualmachines?limit=100"),
            format!("PUT /apis/subresources.kubevirt.io/v1{BASE}/virtualmachines/vm1/addvolume"),
            format!("GET {kubevirt}/virtualmachineinstances/vm1"),
            format!("GET {kubevirt}/virtualmachines/vm1"),
            format!("GET /api/v1{BASE}/persistentvolumeclaims/pvc-1"),
        ]
    );
}

#[tokio::test]
async fn creating_again_finds_the_volume_or_says_what_differs() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    let first = fixture.create(new_volume("pvc-1")).await.unwrap();
    assert_eq!(fixture.create(new_volume("pvc-1")).await.unwrap(), first);
    let mut bigger = new_volume("pvc-1");
    bigger.capacity_range.as_mut().unwrap().required_bytes = 1 << 31;
    assert_fails(fixture.create(bigger).await.map(drop), Code::AlreadyExists, "size");
    fake.volume("pvc-2", false);
    assert_fails(
        fixture.create(new_volume("pvc-2")).await.map(drop),
        Code::AlreadyExists,
        "invalid volume name",
    );
}

#[tokio::test]
async fn a_name_that_is_no_label_is_hashed_and_found_again() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    let name = "sanity-controller-773CD4B8-5A0E1CAD";
    let first = fixture.create(new_volume(name)).await.unwrap();
    assert!(first.volume_id.starts_with("pvc-"));
    assert_eq!(fixture.create(new_volume(name)).await.unwrap().volume_id, first.volume_id);
    let made = fake.get("datavolumes", &first.volume_id).unwrap();
    assert_eq!(made["metadata"]["annotations"]["csi.kubevirt.io/volume-name"], name);
}

#[tokio::test]
async fn a_lost_reply_of_create_is_not_final_and_the_retry_finds_the_volume() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    fake.fault("POST", Effect::LoseReply);
    assert_fails(
        fixture.create(new_volume("pvc-1")).await.map(drop),
        Code::Unavailable,
        "the infra API request failed",
    );
    fixture.create(new_volume("pvc-1")).await.unwrap();
}

#[tokio::test]
async fn refusals_of_the_infra_have_final_codes_and_its_words() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    fake.fault("POST", Effect::Answer(403, "datavolumes is forbidden: exceeded quota: storage"));
    assert_fails(
        fixture.create(new_volume("pvc-1")).await.map(drop),
        Code::ResourceExhausted,
        "exceeded quota",
    );
    fake.fault("POST", Effect::Answer(422, "admission webhook denied the request: size"));
    assert_fails(fixture.create(new_volume("pvc-1")).await.map(drop), Code::InvalidArgument, "size");
    fake.fault("POST", Effect::Answer(403, "user can't create"));
    assert_fails(fixture.create(new_volume("pvc-1")).await.map(drop), Code::Unavailable, "user can't create");
}

#[tokio::test]
async fn only_what_is_ours_and_free_is_deleted() {
    let fake = FakeInfra::default();
    fake.vm("vm1");
    fake.volume("pvc-1", true);
    fake.volume("pvc-2", false);
    let fixture = Fixture::new(&fake).await;
    fixture.delete("fake-vol-id").await.unwrap();
    fixture.delete("../../etc").await.unwrap();
    assert_fails(fixture.delete("").await, Code::InvalidArgument, "volume id");
    assert_fails(fixture.delete("pvc-2").await, Code::FailedPrecondition, "invalid volume name");
    fixture.publish("pvc-1", "infra/vm1").await.unwrap();
    assert_fails(fixture.delete("pvc-1").await, Code::FailedPrecondition, "infra/vm1");
    fake.fault("GET", Effect::Answer(403, "no right"));
    assert_fails(fixture.delete("pvc-1").await, Code::Unavailable, "no right");
    // A 404 from a proxy, or from an API server that does not serve DataVolumes, proves nothing about the volume.
    fake.fault("GET", Effect::Answer(404, "page not found"));
    assert_fails(fixture.delete("pvc-1").await, Code::Unavailable, "page not found");
    assert!(fake.get("datavolumes", "pvc-1").is_some() && fake.get("datavolumes", "pvc-2").is_some());
    fixture.unpublish("pvc-1", "infra/vm1").await.unwrap();
    fixture.delete("pvc-1").await.unwrap();
    assert!(fake.get("datavolumes", "pvc-1").is_none());
}

/// The driver has no right to delete claims where nobody granted it, so the guest's claim stays until somebody deletes the
/// infra claim: an OK would lose its storage for good.
#[tokio::test]
async fn a_claim_that_its_data_volume_left_is_deleted_or_named() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    fake.volume("pvc-1", true);
    fake.remove("datavolumes", "pvc-1");
    fake.fault("DELETE", Effect::Answer(403, "cannot delete resource persistentvolumeclaims"));
    let refused = fixture.delete("pvc-1").await;
    assert_fails(refused.clone(), Code::FailedPrecondition, "must delete PVC pvc-1");
    assert_fails(refused, Code::FailedPrecondition, "cannot delete resource persistentvolumeclaims");
    assert!(fake.get("persistentvolumeclaims", "pvc-1").is_some());
    // A VM may still have it.
    fake.vm("vm1");
    fake.plug_into_vmi("vm1", "pvc-1");
    assert_fails(fixture.delete("pvc-1").await, Code::FailedPrecondition, "infra/vm1");
    fake.vm("vm1");
    // A failed call is no proof either.
    for fault in ["GET /api/v1/namespaces/infra/persistentvolumeclaims", "DELETE"] {
        fake.fault(fault, Effect::Answer(500, "etcd is down"));
        assert_fails(fixture.delete("pvc-1").await, Code::Unavailable, "etcd is down");
    }
    assert!(fake.get("persistentvolumeclaims", "pvc-1").is_some());
    fixture.delete("pvc-1").await.unwrap();
    assert!(fake.get("persistentvolumeclaims", "pvc-1").is_none(), "with the right it is deleted");
    fixture.delete("pvc-1").await.unwrap();
}

#[tokio::test]
async fn without_the_right_no_claim_is_tried_to_be_deleted() {
    let rules = |verbs: &[&str]| {
        serde_json::json!({"status": {"incomplete": false, "resourceRules": [
            {"verbs": verbs, "apiGroups": [""], "resources": ["persistentvolumeclaims"]}]}})
    };
    for (verbs, deleted) in [(&["get", "patch"][..], false), (&["get", "delete"], true)] {
        let fake = FakeInfra::default();
        *fake.rights.lock().unwrap() = rules(verbs);
        let tasks = Tasks::default();
        let infra = infra_demanding(&fake, &tasks, BTreeMap::new());
        infra.use_granted(&infra.rights().await.unwrap());
        let fixture = Fixture::serving(controller_using(infra, StorageClassPolicy::default(), &tasks)).await;
        fake.volume("pvc-1", true);
        fake.remove("datavolumes", "pvc-1");
        let answer = fixture.delete("pvc-1").await;
        assert_eq!(answer.is_ok(), deleted, "{answer:?}");
        assert_eq!(fake.calls().iter().any(|call| call.starts_with("DELETE")), deleted, "{:?}", fake.calls());
    }
}

#[tokio::test]
async fn a_claim_that_goes_by_itself_or_is_not_ours_is_left_alone() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    let owned =
        serde_json::json!([{"kind": "DataVolume", "name": "pvc-1", "uid": "uid-pvc-1", "controller": true}]);
    fake.volume("pvc-1", true);
    fake.edit("persistentvolumeclaims", "pvc-1", |claim| claim["metadata"]["ownerReferences"] = owned);
    fake.volume("pvc-2", true);
    fake.edit("persistentvolumeclaims", "pvc-2", |claim| {
        claim["metadata"]["deletionTimestamp"] = "2026-11-29T10:00:00Z".into();
    });
    fake.volume("pvc-3", false);
    for volume in ["pvc-1", "pvc-2", "pvc-3"] {
        fake.remove("datavolumes", volume);
        fixture.delete(volume).await.unwrap();
        assert!(fake.get("persistentvolumeclaims", volume).is_some(), "{volume}");
    }
    // A name without our prefix is not even read.
    fake.forget_calls();
    fixture.delete("other-1").await.unwrap();
    assert!(!fake.calls().iter().any(|call| call.contains("persistentvolumeclaims")), "{:?}", fake.calls());
    // Where claims can't be read, none is known to be left.
    fake.volume("pvc-4", true);
    fake.remove("datavolumes", "pvc-4");
    fake.fault("persistentvolumeclaims/pvc-4", Effect::Answer(403, "no right"));
    fixture.delete("pvc-4").await.unwrap();
}

#[tokio::test]
async fn capabilities_are_confirmed_for_block_and_mount() {
    let fake = FakeInfra::default();
    fake.volume("pvc-1", true);
    fake.volume("pvc-2", false);
    let fixture = Fixture::new(&fake).await;
    let validate = async |volume: &str, capability| {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: volume.into(),
            volume_capabilities: vec![capability],
            ..Default::default()
        };
        fixture.client.clone().validate_volume_capabilities(request).await.map(tonic::Response::into_inner)
    };
    for block in [true, false] {
        assert!(
            validate("pvc-1", capability(block, Mode::SingleNodeWriter)).await.unwrap().confirmed.is_some()
        );
    }
    let shared = validate("pvc-1", capability(true, Mode::MultiNodeMultiWriter)).await.unwrap();
    assert!(shared.confirmed.is_none() && shared.message.contains("ReadWriteMany"));
    let filesystem = validate("pvc-1", capability(false, Mode::MultiNodeMultiWriter)).await.unwrap();
    assert!(filesystem.message.contains("non-block volume with RWX"));
    for volume in ["pvc-2", "pvc-3", "fake-vol-id"] {
        let answer = validate(volume, capability(false, Mode::SingleNodeWriter)).await;
        assert_fails(answer.map(drop), Code::NotFound, "invalid volume name");
    }
}
