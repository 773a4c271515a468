//! Names and compatibility.

use infra::Metadata;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::request::{Bus, Capacity};

fn request() -> Create {
    Create {
        name: "pvc-1".into(),
        capacity: Capacity { size: 100, required: 100, limit: Some(200) },
        sharing: Sharing::OneNode,
        storage_class: Some("fast".into()),
        bus: Bus::Scsi,
        filesystem: None,
        holds_filesystem: true,
        format_nonzero: false,
        source: None,
        clone_method: None,
    }
}

fn blank(request: &Create) -> NewDataVolume {
    desired(request, "pvc", NewSource::Blank, Size { guest: 100, made: 100 })
}

fn existing() -> DataVolume {
    DataVolume {
        metadata: Metadata { name: "pvc-1".into(), ..Metadata::default() },
        size: Some(100),
        storage_class: Some("fast".into()),
        uses_storage: true,
        source: DataVolumeSource::Blank,
        ..DataVolume::default()
    }
}

#[test]
fn a_legal_name_stays_and_every_other_is_hashed() {
    let uid = "pvc-3f2504e0-4f89-11d3-9a0c-0305e82c3301";
    assert_eq!(object_name(uid, "pvc").as_str(), uid);
    let hashed = object_name("sanity-773CD4B8", "pvc");
    assert!(hashed.as_str().starts_with("pvc-"));
    assert_eq!(hashed, object_name("sanity-773CD4B8", "pvc"), "the same name again is the same volume");
    assert_ne!(hashed, object_name("sanity-773CD4B9", "pvc"));
    assert_ne!(object_name("pvc.1", "pvc").as_str(), "pvc.1", "a volume name inside a VM has no dots");
}

#[test]
fn a_hashed_name_keeps_the_original_and_compares_it() {
    let request = Create { name: "Upper".into(), ..request() };
    let desired = blank(&request);
    assert_eq!(desired.annotations[NAME_ANNOTATION], "Upper");
    let mut existing = existing();
    existing.metadata.name = desired.name.to_string();
    assert!(compatible(&existing, &request).is_err(), "the same hash without the name is another volume");
    existing.metadata.annotations.insert(NAME_ANNOTATION.into(), "Upper".into());
    assert_eq!(compatible(&existing, &request), Ok(100));
}

#[rstest]
#[case::smaller(|v: &mut DataVolume| v.size = Some(99), "size")]
#[case::larger(|v: &mut DataVolume| v.size = Some(201), "size")]
#[case::no_size(|v: &mut DataVolume| v.size = None, "size")]
#[case::class(|v: &mut DataVolume| v.storage_class = None, "infra storage class")]
#[case::mode(|v: &mut DataVolume| v.access_modes = vec!["ReadWriteMany".into()], "access mode")]
#[case::source(|v: &mut DataVolume| v.source = DataVolumeSource::Other, "source")]
fn what_differs_is_named(#[case] change: fn(&mut DataVolume), #[case] what: &str) {
    let request = request();
    let mut volume = existing();
    assert_eq!(compatible(&volume, &request), Ok(100));
    change(&mut volume);
    let error = compatible(&volume, &request).unwrap_err().to_string();
    assert!(error.contains(&format!("another {what}")), "{error}");
}

#[test]
fn any_size_in_the_range_serves() {
    let request = request();
    let volume = DataVolume { size: Some(150), ..existing() };
    assert_eq!(compatible(&volume, &request), Ok(150));
}

#[rstest]
#[case::blank(None, DataVolumeSource::Blank, true)]
#[case::restored(Some(Source::Snapshot("s-1".into())), DataVolumeSource::Snapshot("s-1".into()), true)]
#[case::of_another_snapshot(Some(Source::Snapshot("s-1".into())), DataVolumeSource::Snapshot("s-2".into()), false)]
#[case::blank_instead(Some(Source::Snapshot("s-1".into())), DataVolumeSource::Blank, false)]
#[case::restored_instead(None, DataVolumeSource::Snapshot("s-1".into()), false)]
#[case::cloned_by_upstream(Some(Source::Volume("pvc-2".into())), DataVolumeSource::Claim("pvc-2".into()), true)]
#[case::a_volume_is_no_snapshot(Some(Source::Snapshot("x".into())), DataVolumeSource::Claim("x".into()), false)]
fn a_source_is_compared(#[case] asked: Option<Source>, #[case] source: DataVolumeSource, #[case] same: bool) {
    let request = Create { source: asked, ..request() };
    let found = compatible(&DataVolume { source, ..existing() }, &request);
    assert_eq!(found.is_ok(), same, "{found:?}");
    if let Err(error) = found {
        assert!(error.to_string().contains("exists with another source"), "{error}");
    }
}

#[test]
fn the_size_of_the_guest_is_kept_where_cdi_demands_more() {
    let made = desired(&request(), "pvc", NewSource::Blank, Size { guest: 100, made: 106 });
    assert_eq!((made.size, made.annotations[GUEST_SIZE_ANNOTATION].as_str()), (106, "100"));
    assert!(blank(&request()).annotations.is_empty());
    let mut volume = DataVolume { size: Some(106), ..existing() };
    volume.metadata.annotations = made.annotations;
    assert_eq!(
        compatible(
            &volume,
            &Create { capacity: Capacity { limit: Some(100), ..request().capacity }, ..request() }
        ),
        Ok(100)
    );
    let claim = |mode: &str, request: &str| -> Claim {
        serde_json::from_value(serde_json::json!({"spec": {"volumeMode": mode, "resources": {"requests": {"storage": request}}}})).unwrap()
    };
    assert_eq!(guest_size_with(&volume, &claim("Filesystem", "113")), Some(100));
    assert_eq!(guest_size_with(&volume, &claim("Block", "106")), Some(100), "as it was made");
    assert_eq!(guest_size_with(&volume, &claim("Block", "200")), Some(200), "expanded");
    assert_eq!(guest_size_with(&volume, &Claim::default()), Some(100));
}

proptest! {
    #[test]
    fn every_name_becomes_a_label_of_ours(name in ".{1,128}", prefix in "[a-z]([a-z0-9-]{0,28}[a-z0-9])?") {
        let object = object_name(&name, &prefix);
        prop_assert!(is_dns_label(object.as_str()));
        let start = format!("{prefix}-");
        prop_assert!(object.as_str().starts_with(&start));
    }
}
