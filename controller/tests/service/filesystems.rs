//! What only the node role could refuse, long after the claim was bound, is refused when the volume is created.

use super::*;

fn mount(kind: &str, flags: &[&str]) -> csi::VolumeCapability {
    let mount = MountVolume {
        fs_type: kind.into(),
        mount_flags: flags.iter().map(|&flag| flag.into()).collect(),
        ..MountVolume::default()
    };
    csi::VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

fn of_size(kind: &str, required_bytes: i64, limit_bytes: i64) -> csi::CreateVolumeRequest {
    let mut request = new_volume("pvc-1");
    request.volume_capabilities = vec![mount(kind, &[])];
    request.capacity_range = Some(csi::CapacityRange { required_bytes, limit_bytes });
    request
}

async fn validate(fixture: &Fixture, wanted: csi::VolumeCapability) -> (bool, String) {
    let request = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: "pvc-1".into(),
        volume_capabilities: vec![wanted],
        ..Default::default()
    };
    let answer = fixture.client.clone().validate_volume_capabilities(request).await.unwrap().into_inner();
    (answer.confirmed.is_some(), answer.message)
}

#[tokio::test]
async fn a_filesystem_that_the_node_role_does_not_make_is_neither_created_nor_confirmed() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    for (capability, text) in [
        (mount("btrfs", &[]), "filesystem type \"btrfs\" is not supported"),
        (mount("zfs", &[]), "filesystem type \"zfs\" is not supported"),
        (mount("ext4", &["noatime", "remount"]), "mount flag \"remount\""),
    ] {
        let mut request = new_volume("pvc-1");
        request.volume_capabilities = vec![capability.clone()];
        assert_fails(fixture.create(request).await.map(drop), Code::InvalidArgument, text);
        assert!(fake.get("datavolumes", "pvc-1").is_none());
        fake.volume("pvc-1", true);
        let (is_confirmed, message) = validate(&fixture, capability).await;
        assert!(!is_confirmed && message.contains(text), "{message}");
        fake.remove("datavolumes", "pvc-1");
    }
}

#[tokio::test]
async fn a_volume_is_made_as_large_as_its_filesystem_needs() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    let limited = fixture.create(of_size("xfs", 0, 100 << 20)).await;
    assert_fails(limited.map(drop), Code::OutOfRange, "xfs needs a volume of 314572800 bytes");
    assert!(fake.get("datavolumes", "pvc-1").is_none());

    for _ in 0..2 {
        let volume = fixture.create(of_size("xfs", 100 << 20, 0)).await.unwrap();
        assert_eq!(volume.capacity_bytes, 306 << 20);
    }
    assert!(validate(&fixture, mount("xfs", &[])).await.0);
}

/// An earlier version, or kubevirt/csi-driver, made it for the same request.
#[tokio::test]
async fn a_volume_that_exists_and_is_too_small_for_its_filesystem_is_found_as_it_is() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    fake.volume("pvc-1", true);
    fake.edit("datavolumes", "pvc-1", |volume| {
        volume["spec"]["storage"]["resources"]["requests"]["storage"] = "100Mi".into();
    });
    for _ in 0..2 {
        let volume = fixture.create(of_size("xfs", 100 << 20, 0)).await.unwrap();
        assert_eq!(volume.capacity_bytes, 104_857_600);
    }
    // One that is smaller than what was asked for is another volume.
    let larger = fixture.create(of_size("xfs", 101 << 20, 0)).await;
    assert_fails(larger.map(drop), Code::AlreadyExists, "another size");
}

/// Made by an older version, or for another filesystem.
#[tokio::test]
async fn a_volume_that_is_too_small_for_a_filesystem_is_not_confirmed_for_it() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    fixture.create(of_size("ext4", 100 << 20, 0)).await.unwrap();
    let (is_confirmed, message) = validate(&fixture, mount("xfs", &[])).await;
    assert!(!is_confirmed && message.contains("314572800"), "{message}");
    for kind in ["", "ext4", "ext3"] {
        assert!(validate(&fixture, mount(kind, &[])).await.0, "{kind}");
    }
}
