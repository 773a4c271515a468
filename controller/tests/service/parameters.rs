//! Parameters of a `StorageClass` that was written for kubevirt/csi-driver or for other drivers.

use super::*;

fn with(parameters: &[(&str, &str)], fs_type: &str) -> csi::CreateVolumeRequest {
    let mut request = new_volume("pvc-1");
    request.parameters = parameters.iter().map(|&(key, value)| (key.into(), value.into())).collect();
    let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
    request.volume_capabilities[0].access_type = Some(AccessType::Mount(mount));
    request
}

#[tokio::test]
async fn the_older_key_of_the_filesystem_provisions() {
    for key in ["fsType", "fstype", "FsType"] {
        let fake = FakeInfra::default();
        let fixture = Fixture::new(&fake).await;
        // external-provisioner reads the key and passes it on.
        let volume = fixture.create(with(&[(key, "xfs")], "xfs")).await.unwrap();
        assert!(!volume.volume_context.contains_key("fsType"), "{key}: the capability has it");
        // Without the provisioner's part, the node learns it from the volume context, also on the second call.
        for _ in 0..2 {
            let volume = fixture.create(with(&[(key, "xfs")], "")).await.unwrap();
            assert_eq!(volume.volume_context["fsType"], "xfs", "{key}");
        }
    }
}

#[tokio::test]
async fn a_key_of_another_driver_has_no_effect() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    let plain = fixture.create(with(&[], "ext4")).await.unwrap();
    let other = [("whatever", "1"), ("type", "gp3"), ("csiNodeStageSecretName", "s"), ("encrypted", "true")];
    assert_eq!(fixture.create(with(&other, "ext4")).await.unwrap(), plain);
}

#[tokio::test]
async fn a_mistyped_key_is_an_error_that_names_the_right_one() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    for (key, meant) in [
        ("infraStorageClasName", "infraStorageClassName"),
        ("infrStorageClassNames", "infraStorageClassName"),
        ("bsu", "bus"),
        ("fs_type", "fsType"),
    ] {
        let created = fixture.create(with(&[(key, "x")], "ext4")).await.map(drop);
        assert_fails(created, Code::InvalidArgument, &format!("it should probably be {meant}"));
    }
    assert!(fake.get("datavolumes", "pvc-1").is_none());
}

/// Only a blank volume that is to hold a filesystem says so; a repeated request says the same.
#[tokio::test]
async fn a_volume_that_is_made_blank_says_since_when() {
    let fake = FakeInfra::default();
    let fixture = Fixture::new(&fake).await;
    for _ in 0..2 {
        let volume = fixture.create(with(&[], "")).await.unwrap();
        assert_eq!(volume.volume_context["blankSince"], "1795946400");
        assert!(!volume.volume_context.contains_key("allowFormatNonzero"));
    }
    let mut block = new_volume("pvc-2");
    block.volume_capabilities = vec![capability(true, Mode::SingleNodeWriter)];
    block.parameters.insert("allowFormatNonzero".into(), "true".into());
    let block = fixture.create(block).await.unwrap().volume_context;
    assert!(!block.contains_key("blankSince") && !block.contains_key("allowFormatNonzero"), "{block:?}");
}

#[tokio::test]
async fn a_class_may_allow_to_format_what_does_not_read_as_zeros() {
    for (value, allowed) in [("true", true), ("false", false), ("", false)] {
        let fixture = Fixture::new(&FakeInfra::default()).await;
        let volume = fixture.create(with(&[("allowFormatNonzero", value)], "ext4")).await.unwrap();
        assert_eq!(
            volume.volume_context.get("allowFormatNonzero").is_some_and(|it| it == "true"),
            allowed,
            "{value:?}"
        );
    }
    let fixture = Fixture::new(&FakeInfra::default()).await;
    for (key, value, text) in [
        ("allowFormatNonzero", "yes", "use true or false"),
        ("allowFormatNonZero", "true", "it should probably be allowFormatNonzero"),
    ] {
        let created = fixture.create(with(&[(key, value)], "ext4")).await.map(drop);
        assert_fails(created, Code::InvalidArgument, text);
    }
}
