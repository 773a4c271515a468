//! Shapes and limits.

use csi_proto::v1::{
    VolumeContentSource,
    volume_capability::{AccessMode, BlockVolume, MountVolume, access_mode::Mode},
};
use rstest::rstest;

use super::*;

fn capability(block: bool, mode: Mode) -> VolumeCapability {
    let access =
        if block { AccessType::Block(BlockVolume {}) } else { AccessType::Mount(MountVolume::default()) };
    VolumeCapability { access_type: Some(access), access_mode: Some(AccessMode { mode: mode.into() }) }
}

fn create() -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: "pvc-1".into(),
        volume_capabilities: vec![capability(false, Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

#[rstest]
#[case(false, Mode::SingleNodeWriter, Ok(Sharing::OneNode))]
#[case(true, Mode::SingleNodeReaderOnly, Ok(Sharing::OneNode))]
#[case(false, Mode::SingleNodeSingleWriter, Ok(Sharing::OneNode))]
#[case(false, Mode::SingleNodeMultiWriter, Ok(Sharing::OneNode))]
#[case(true, Mode::MultiNodeMultiWriter, Ok(Sharing::ManyNodes))]
#[case(false, Mode::MultiNodeMultiWriter, Err(Invalid::SharedFilesystem))]
#[case(false, Mode::MultiNodeReaderOnly, Err(Invalid::SharedFilesystem))]
#[case(true, Mode::MultiNodeReaderOnly, Err(Invalid::AccessMode("MULTI_NODE_READER_ONLY".into())))]
#[case(true, Mode::Unknown, Err(Invalid::Missing("access mode")))]
fn access_modes(#[case] block: bool, #[case] mode: Mode, #[case] expected: Result<Sharing, Invalid>) {
    assert_eq!(needs(&[capability(block, mode)], "").map(|needs| needs.sharing), expected);
}

#[test]
fn the_refusal_of_a_shared_filesystem_has_the_text_of_the_reference() {
    assert_eq!(
        Invalid::SharedFilesystem.to_string(),
        "non-block volume with RWX access mode is not supported"
    );
}

#[rstest]
#[case(0, 0, Some(1 << 30))]
#[case(0, 500, Some(500))]
#[case(0, i64::MAX, Some(1 << 30))]
#[case(700, 0, Some(700))]
#[case(700, 700, Some(700))]
#[case(700, 699, None)]
#[case(-1, 0, None)]
#[case(0, -1, None)]
fn capacities(#[case] required: i64, #[case] limit: i64, #[case] size: Option<u64>) {
    let range = CapacityRange { required_bytes: required, limit_bytes: limit };
    assert_eq!(Capacity::read(Some(&range)).ok().map(|capacity| capacity.size), size);
}

#[test]
fn parameters_have_their_effect_or_none() {
    let with = |key: &str, value: &str| {
        let mut request = create();
        request.parameters.insert(key.into(), value.into());
        Create::read(&request)
    };
    assert_eq!(with("infraStorageClassName", "fast").unwrap().storage_class.as_deref(), Some("fast"));
    assert_eq!(with("infraStorageClassName", "").unwrap().storage_class, None);
    assert_eq!(with("bus", "virtio").unwrap().bus, Bus::Virtio);
    assert_eq!(with("cloneMethod", "").unwrap().clone_method, None);
    assert_eq!(with("cloneMethod", "pvc").unwrap().clone_method, Some(CloneMethod::Claim));
    assert_eq!(with("cloneMethod", "snapshot").unwrap().clone_method, Some(CloneMethod::Snapshot));
    assert_eq!(with("cloneMethod", "dataSourceRef").unwrap().clone_method, Some(CloneMethod::DataSourceRef));
    assert_eq!(with("cloneMethod", "copy"), Err(Invalid::CloneMethod("copy".into())));
    assert_eq!(with("bus", "sata"), Err(Invalid::Bus("sata".into())));
    assert!(with("csi.storage.k8s.io/pvc/name", "x").is_ok());
    for other in ["whatever", "type", "csiProvisionerSecretName", ""] {
        assert_eq!(with(other, "x").unwrap(), Create::read(&create()).unwrap(), "{other}");
    }
    let mistyped = |key: &str, meant| Err(Invalid::MistypedParameter { key: key.into(), meant });
    assert_eq!(
        with("infraStorageclassname", "x"),
        mistyped("infraStorageclassname", "infraStorageClassName")
    );
    assert_eq!(with("infraStorageClasName", "x"), mistyped("infraStorageClasName", "infraStorageClassName"));
    assert_eq!(with("buss", "virtio"), mistyped("buss", "bus"));
    assert_eq!(with("fs-type", "xfs"), mistyped("fs-type", "fsType"));
    assert!(matches!(with("bus", &"x".repeat(5000)), Err(Invalid::TooLong { .. })));
}

fn filesystem(fs_type: &str, flags: &[&str]) -> VolumeCapability {
    let mount = MountVolume {
        fs_type: fs_type.into(),
        mount_flags: flags.iter().map(|&flag| flag.into()).collect(),
        ..MountVolume::default()
    };
    VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        ..capability(false, Mode::SingleNodeWriter)
    }
}

#[rstest]
#[case::default(filesystem("", &[]), Ok(Some("ext4")))]
#[case::block(capability(true, Mode::SingleNodeWriter), Ok(None))]
#[case::xfs(filesystem("xfs", &["noatime,discard"]), Ok(Some("xfs")))]
#[case::btrfs(filesystem("btrfs", &[]), Err(Invalid::Filesystem("btrfs".into())))]
#[case::ntfs(filesystem("ntfs", &[]), Err(Invalid::Filesystem("ntfs".into())))]
#[case::another_case(filesystem("XFS", &[]), Err(Invalid::Filesystem("XFS".into())))]
#[case::bind(filesystem("ext4", &["noatime,bind"]), Err(Invalid::MountFlag("bind".into())))]
#[case::loop_device(filesystem("", &["loop=/dev/loop0"]), Err(Invalid::MountFlag("loop=/dev/loop0".into())))]
fn what_the_node_role_refuses_is_refused_at_creation(
    #[case] capability: VolumeCapability,
    #[case] expected: Result<Option<&str>, Invalid>,
) {
    let needs = needs(std::slice::from_ref(&capability), "").map(|needs| needs.filesystem.map(|it| it.name));
    assert_eq!(needs, expected);
    let request = CreateVolumeRequest { volume_capabilities: vec![capability], ..create() };
    assert_eq!(Create::read(&request).err(), expected.err());
}

#[test]
fn a_mount_group_is_refused_at_creation() {
    let mut request = create();
    let group = MountVolume { volume_mount_group: "1000".into(), ..MountVolume::default() };
    request.volume_capabilities[0].access_type = Some(AccessType::Mount(group));
    assert_eq!(Create::read(&request), Err(Invalid::MountGroup));
}

const XFS_LEAST: i64 = 300 << 20;
const XFS_MADE: u64 = 306 << 20;

#[rstest]
#[case::small("xfs", 100 << 20, 0, Some(XFS_MADE))]
#[case::nothing_asked("xfs", 0, 0, Some(1 << 30))]
#[case::small_limit("xfs", 0, 100 << 20, None)]
#[case::below_its_limit("xfs", 1, XFS_LEAST - 1, None)]
#[case::at_the_least("xfs", XFS_LEAST, XFS_LEAST, Some(300 << 20))]
#[case::without_its_margin("xfs", XFS_LEAST, 0, Some(XFS_MADE))]
#[case::with_a_part_of_its_margin("xfs", 1, XFS_LEAST + 1, Some((300 << 20) + 1))]
#[case::large("xfs", 10 << 30, 0, Some(10 << 30))]
#[case::ext3_without_room_for_its_journal("ext3", 1 << 20, 0, Some(3 << 20))]
#[case::ext3_limited("ext3", 0, 1 << 20, None)]
#[case::tiny("ext4", 1, 0, Some(1 << 20))]
#[case::small_ext4("ext4", 100 << 20, 0, Some(100 << 20))]
#[case::block("", 1, 0, Some(1))]
fn a_volume_is_as_large_as_its_filesystem_needs(
    #[case] fs_type: &str,
    #[case] required: i64,
    #[case] limit: i64,
    #[case] size: Option<u64>,
) {
    let mut request = create();
    request.capacity_range = Some(CapacityRange { required_bytes: required, limit_bytes: limit });
    request.volume_capabilities = match fs_type {
        "" => vec![capability(true, Mode::SingleNodeWriter)],
        // The one that needs more counts, in any order.
        kind => {
            vec![filesystem(kind, &[]), capability(true, Mode::SingleNodeWriter), filesystem("ext2", &[])]
        }
    };
    let made = Create::read(&request);
    assert_eq!(made.as_ref().ok().map(|it| it.capacity.size), size, "{made:?}");
    match made {
        Ok(Create { capacity, .. }) => {
            assert!(capacity.admits(capacity.size), "{capacity:?}");
            assert_eq!(
                capacity.required,
                u64::try_from(required).unwrap(),
                "what exists is compared with it"
            );
        }
        Err(refused) => assert!(matches!(refused, Invalid::TooSmall { .. }), "{refused}"),
    }
}

#[test]
fn the_parameters_filesystem_counts_for_the_size() {
    let mut request = create();
    request.parameters.insert("fsType".into(), "xfs".into());
    request.capacity_range = Some(CapacityRange { required_bytes: 1, limit_bytes: 0 });
    assert_eq!(Create::read(&request).unwrap().capacity.size, XFS_MADE);
    request.parameters.insert("fsType".into(), "btrfs".into());
    assert_eq!(Create::read(&request), Err(Invalid::Filesystem("btrfs".into())));
}

#[test]
fn one_parameter_in_two_spellings_is_refused() {
    let mut request = create();
    request.parameters = [("fstype".into(), "ext4".into()), ("fsType".into(), "xfs".into())].into();
    assert_eq!(Create::read(&request), Err(Invalid::RepeatedParameter("fsType")));
}

#[rstest]
#[case::of_the_capability("fsType", "xfs", Some("ext4"), None)]
#[case::of_the_parameter("fsType", "xfs", Some(""), Some("xfs"))]
#[case::in_lower_case("fstype", "ext3", Some(""), Some("ext3"))]
#[case::empty("fstype", "", Some(""), None)]
#[case::of_a_block_volume("fsType", "xfs", None, None)]
fn the_older_key_of_the_filesystem_counts_where_the_capability_has_none(
    #[case] key: &str,
    #[case] value: &str,
    #[case] fs_type: Option<&str>,
    #[case] passed_on: Option<&str>,
) {
    let mut request = create();
    request.parameters.insert(key.into(), value.into());
    request.volume_capabilities[0].access_type = Some(match fs_type {
        Some(kind) => AccessType::Mount(MountVolume { fs_type: kind.into(), ..MountVolume::default() }),
        None => AccessType::Block(BlockVolume {}),
    });
    assert_eq!(Create::read(&request).unwrap().filesystem.as_deref(), passed_on);
}

#[test]
fn what_is_missing_or_not_served_is_named() {
    let broken = |change: fn(&mut CreateVolumeRequest)| {
        let mut request = create();
        change(&mut request);
        Create::read(&request).unwrap_err()
    };
    assert_eq!(broken(|r| r.name.clear()), Invalid::Missing("name"));
    assert_eq!(broken(|r| r.volume_capabilities.clear()), Invalid::Missing("volume capabilities"));
    assert_eq!(broken(|r| r.volume_capabilities[0].access_mode = None), Invalid::Missing("access mode"));
    assert!(matches!(broken(|r| r.volume_capabilities[0].access_type = None), Invalid::Missing(_)));
    assert!(matches!(broken(|r| r.name = "x".repeat(129)), Invalid::TooLong { .. }));
    assert_eq!(
        broken(|r| r.volume_content_source = Some(VolumeContentSource::default())),
        Invalid::Missing("content source")
    );
    assert_eq!(
        broken(|r| drop(r.mutable_parameters.insert("a".into(), "b".into()))),
        Invalid::MutableParameters
    );
}

fn publish() -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: "pvc-1".into(),
        node_id: "infra/vm1".into(),
        volume_capability: Some(capability(false, Mode::SingleNodeWriter)),
        ..Default::default()
    }
}

#[test]
fn ids_that_are_not_ours_are_no_fault_of_shape() {
    let mut request = publish();
    request.volume_id = "fake-vol-id".into();
    request.node_id = "fake-node-id".into();
    assert_eq!(Publish::read(&request).unwrap().node, NodeId::Unknown("fake-node-id".into()));
    request.node_id = "infra/../secrets".into();
    assert!(matches!(Publish::read(&request).unwrap().node, NodeId::Unknown(_)));
    for namespace in ["infra", "clusters-foo"] {
        request.node_id = format!("{namespace}/vm1");
        assert!(matches!(Publish::read(&request).unwrap().node, NodeId::Vm(name) if name.as_str() == "vm1"));
    }
}

#[rstest]
#[case(|r: &mut ControllerPublishVolumeRequest| r.volume_id.clear(), Invalid::Missing("volume id"))]
#[case(|r: &mut ControllerPublishVolumeRequest| r.node_id.clear(), Invalid::Missing("node id"))]
#[case(|r: &mut ControllerPublishVolumeRequest| r.volume_capability = None, Invalid::Missing("volume capability"))]
#[case(|r: &mut ControllerPublishVolumeRequest| r.readonly = true, Invalid::Readonly)]
#[case(|r: &mut ControllerPublishVolumeRequest| { r.volume_context.insert("serial".into(), "a b".into()); }, Invalid::Serial("a b".into()))]
#[case(|r: &mut ControllerPublishVolumeRequest| r.node_id = "n".repeat(257), Invalid::TooLong { field: "node id", limit: 256 })]
fn malformed_publishes(#[case] change: fn(&mut ControllerPublishVolumeRequest), #[case] expected: Invalid) {
    let mut request = publish();
    change(&mut request);
    assert_eq!(Publish::read(&request), Err(expected));
}

#[test]
fn no_node_means_all_nodes() {
    let request = ControllerUnpublishVolumeRequest { volume_id: "pvc-1".into(), ..Default::default() };
    assert_eq!(Unpublish::read(&request).unwrap().node, None);
}
