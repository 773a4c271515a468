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
    }
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
    let desired = desired(&request, "pvc");
    assert_eq!(desired.annotations[NAME_ANNOTATION], "Upper");
    let mut existing = existing();
    existing.metadata.name = desired.name.to_string();
    assert!(
        compatible(&existing, &request, &desired).is_err(),
        "the same hash without the name is another volume"
    );
    existing.metadata.annotations.insert(NAME_ANNOTATION.into(), "Upper".into());
    assert_eq!(compatible(&existing, &request, &desired), Ok(100));
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
    let desired = desired(&request, "pvc");
    let mut volume = existing();
    assert_eq!(compatible(&volume, &request, &desired), Ok(100));
    change(&mut volume);
    let error = compatible(&volume, &request, &desired).unwrap_err().to_string();
    assert!(error.contains(&format!("another {what}")), "{error}");
}

#[test]
fn any_size_in_the_range_serves() {
    let request = request();
    let volume = DataVolume { size: Some(150), ..existing() };
    assert_eq!(compatible(&volume, &request, &desired(&request, "pvc")), Ok(150));
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
