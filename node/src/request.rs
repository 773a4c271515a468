//! Requests as received → what they ask for; the only source of `INVALID_ARGUMENT`. It checks the shape of a request
//! and nothing outside it.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use csi_call::{
    contract::{ALLOW_FORMAT_NONZERO, BLANK_SINCE, COPIED, FILESYSTEM, SERIAL, TRUE},
    filesystems,
};
use csi_proto::v1::{
    self,
    volume_capability::{AccessType, access_mode::Mode},
};

use crate::{
    device::Serial,
    error::{Error, Result},
    filesystem::FilesystemType,
    mount_options::{Flag, MountOptions},
    origin::{FilesystemUuid, MadeBlank, Origin},
};

/// What the volume is to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// A raw device.
    Block,
    /// A mounted filesystem.
    Filesystem {
        /// Which.
        filesystem: FilesystemType,
        /// How; read-only access modes are in here as the flag.
        options: MountOptions,
    },
}

/// A checked capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Block or filesystem.
    pub access: Access,
    /// At most one target on this node.
    pub exclusive: bool,
}

/// `NodeStageVolume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageRequest {
    /// Volume id.
    pub volume: String,
    /// Its disk's serial.
    pub serial: Serial,
    /// Where.
    pub staging: PathBuf,
    /// As what.
    pub capability: Capability,
    /// What the controller role says of its content.
    pub origin: Origin,
}

/// `NodePublishVolume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishRequest {
    /// Volume id.
    pub volume: String,
    /// Its disk's serial.
    pub serial: Serial,
    /// Where it is staged, if the caller gives it.
    pub staging: Option<PathBuf>,
    /// Where to publish.
    pub target: PathBuf,
    /// As what.
    pub capability: Capability,
    /// The pod only reads.
    pub read_only: bool,
    /// What the controller role says of its content.
    pub origin: Origin,
}

/// `NodeUnstageVolume` and `NodeUnpublishVolume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoveRequest {
    /// Volume id.
    pub volume: String,
    /// Staging or target path.
    pub path: PathBuf,
}

/// `NodeGetVolumeStats`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsRequest {
    /// Volume id.
    pub volume: String,
    /// Any path; whether a volume is there is found out later.
    pub path: PathBuf,
}

/// `NodeExpandVolume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpandRequest {
    /// Volume id.
    pub volume: String,
    /// Any path; whether the volume is there is found out later.
    pub path: PathBuf,
    /// Where it is staged, if the caller gives it.
    pub staging: Option<PathBuf>,
    /// What the volume must have at least, in bytes; 0: what its disk has.
    pub required: u64,
    /// As what it is used, if the caller says so.
    pub access: Option<Access>,
}

impl TryFrom<v1::NodeStageVolumeRequest> for StageRequest {
    type Error = Error;

    fn try_from(request: v1::NodeStageVolumeRequest) -> Result<Self> {
        Ok(Self {
            volume: required(request.volume_id, "volume_id")?,
            staging: path(&request.staging_target_path, "staging_target_path")?,
            capability: capability(request.volume_capability, &request.volume_context)?,
            origin: origin(&request.volume_context)?,
            serial: serial(&request.volume_context)?,
        })
    }
}

impl TryFrom<v1::NodePublishVolumeRequest> for PublishRequest {
    type Error = Error;

    fn try_from(request: v1::NodePublishVolumeRequest) -> Result<Self> {
        let staging = &request.staging_target_path;
        Ok(Self {
            volume: required(request.volume_id, "volume_id")?,
            target: path(&request.target_path, "target_path")?,
            staging: (!staging.is_empty()).then(|| path(staging, "staging_target_path")).transpose()?,
            capability: capability(request.volume_capability, &request.volume_context)?,
            read_only: request.readonly,
            origin: origin(&request.volume_context)?,
            serial: serial(&request.volume_context)?,
        })
    }
}

impl TryFrom<v1::NodeUnstageVolumeRequest> for RemoveRequest {
    type Error = Error;

    fn try_from(request: v1::NodeUnstageVolumeRequest) -> Result<Self> {
        Ok(Self {
            volume: required(request.volume_id, "volume_id")?,
            path: path(&request.staging_target_path, "staging_target_path")?,
        })
    }
}

impl TryFrom<v1::NodeUnpublishVolumeRequest> for RemoveRequest {
    type Error = Error;

    fn try_from(request: v1::NodeUnpublishVolumeRequest) -> Result<Self> {
        Ok(Self {
            volume: required(request.volume_id, "volume_id")?,
            path: path(&request.target_path, "target_path")?,
        })
    }
}

impl TryFrom<v1::NodeGetVolumeStatsRequest> for StatsRequest {
    type Error = Error;

    fn try_from(request: v1::NodeGetVolumeStatsRequest) -> Result<Self> {
        Ok(Self {
            volume: required(request.volume_id, "volume_id")?,
            path: required(request.volume_path, "volume_path")?.into(),
        })
    }
}

impl TryFrom<v1::NodeExpandVolumeRequest> for ExpandRequest {
    type Error = Error;

    fn try_from(request: v1::NodeExpandVolumeRequest) -> Result<Self> {
        let staging = &request.staging_target_path;
        let wanted = request.volume_capability;
        Ok(Self {
            volume: required(request.volume_id, "volume_id")?,
            path: required(request.volume_path, "volume_path")?.into(),
            staging: (!staging.is_empty()).then(|| path(staging, "staging_target_path")).transpose()?,
            required: least_bytes(request.capacity_range)?,
            access: wanted
                .map(|wanted| capability(Some(wanted), &HashMap::new()).map(|checked| checked.access))
                .transpose()?,
        })
    }
}

/// The size in a range that can be satisfied. The limit is not compared with the disk: `ControllerExpandVolume` has
/// made the disk by it, and a filesystem takes all of its disk when it is staged, too.
fn least_bytes(range: Option<v1::CapacityRange>) -> Result<u64> {
    let (required, limit) = range.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
    match u64::try_from(required) {
        Ok(least) if limit == 0 || (limit > 0 && required <= limit) => Ok(least),
        _ => invalid(format!(
            "capacity range is not satisfiable: required {required} bytes, limit {limit} bytes"
        )),
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::InvalidRequest(text.into()))
}

fn required(value: String, field: &str) -> Result<String> {
    if value.is_empty() { invalid(format!("{field} is missing")) } else { Ok(value) }
}

/// An absolute path without `..` that is not the root: all that is ever mounted on, unmounted or removed.
fn path(value: &str, field: &str) -> Result<PathBuf> {
    if value.is_empty() {
        return invalid(format!("{field} is missing"));
    }
    let path = Path::new(value);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.file_name().is_none() || value.contains('\0') {
        return invalid(format!("{field} {value:?} is not an absolute path below the root, without .."));
    }
    // Collected from its components, so that it compares equal to the mount table's text.
    Ok(path.components().collect())
}

/// Only a serial that is a UUID can be the mark of a filesystem; the UID of a `DataVolume` is one.
fn origin(context: &HashMap<String, String>) -> Result<Origin> {
    let since = match context.get(BLANK_SINCE) {
        None => None,
        Some(text) => match text.parse() {
            Ok(since) => Some(since),
            Err(_) => {
                return invalid(format!("volume_context.{BLANK_SINCE} {text:?} is not a number of seconds"));
            }
        },
    };
    let uuid = context.get(SERIAL).and_then(|serial| FilesystemUuid::parse(serial));
    let is_true = |key| context.get(key).is_some_and(|value| value == TRUE);
    Ok(Origin {
        made_blank: since.zip(uuid).map(|(since, uuid)| MadeBlank { since, uuid }),
        format_nonzero: is_true(ALLOW_FORMAT_NONZERO),
        copied: is_true(COPIED),
    })
}

fn serial(context: &HashMap<String, String>) -> Result<Serial> {
    match context.get(SERIAL).map(|text| Serial::new(text)) {
        Some(Some(serial)) => Ok(serial),
        Some(None) => invalid("volume_context.serial is empty or has characters that no serial has"),
        None => invalid("volume_context.serial is missing; was this volume made by this driver?"),
    }
}

fn capability(
    capability: Option<v1::VolumeCapability>,
    context: &HashMap<String, String>,
) -> Result<Capability> {
    let Some(capability) = capability else { return invalid("volume_capability is missing") };
    let mode = capability.access_mode.map(|mode| mode.mode());
    let (read_only, exclusive, several_nodes) = match mode {
        Some(Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter) => (false, false, false),
        Some(Mode::SingleNodeReaderOnly) => (true, false, false),
        Some(Mode::SingleNodeSingleWriter) => (false, true, false),
        Some(Mode::MultiNodeReaderOnly) => (true, false, true),
        Some(Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter) => (false, false, true),
        Some(Mode::Unknown) | None => return invalid("volume_capability.access_mode is missing or unknown"),
    };
    let access = match capability.access_type {
        Some(AccessType::Block(_)) => Access::Block,
        // Two kernels on one disk would corrupt it. The text is kubevirt/csi-driver's, which its users and tests know.
        Some(AccessType::Mount(_)) if several_nodes => {
            return invalid("non-block volume with RWX access mode is not supported");
        }
        Some(AccessType::Mount(mount)) => filesystem_access(&mount, context, read_only)?,
        None => return invalid("volume_capability is neither block nor mount"),
    };
    Ok(Capability { access, exclusive })
}

fn filesystem_access(
    mount: &v1::volume_capability::MountVolume,
    context: &HashMap<String, String>,
    read_only: bool,
) -> Result<Access> {
    if !mount.volume_mount_group.is_empty() {
        return invalid("volume_mount_group is not supported");
    }
    let mut named = [Some(&mount.fs_type), context.get(FILESYSTEM)].into_iter().flatten().map(String::as_str);
    let name = named.find(|name| !name.is_empty()).unwrap_or(filesystems::DEFAULT);
    let Some(filesystem) = FilesystemType::parse(name) else {
        return invalid(format!("fs_type {name:?} is not supported; use ext4 or xfs"));
    };
    let mut options = match MountOptions::parse(&mount.mount_flags) {
        Ok(options) => options,
        Err(word) => return invalid(format!("mount flag {word:?} would change what is mounted")),
    };
    if read_only {
        options.flags.insert(Flag::ReadOnly);
    }
    Ok(Access::Filesystem { filesystem, options })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn mount(mode: Mode, fs_type: &str, flags: &[&str]) -> v1::VolumeCapability {
        v1::VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: fs_type.into(),
                mount_flags: flags.iter().map(|&f| f.into()).collect(),
                volume_mount_group: String::new(),
            })),
        }
    }

    fn stage() -> v1::NodeStageVolumeRequest {
        v1::NodeStageVolumeRequest {
            volume_id: "pvc-1".into(),
            staging_target_path: "/var/lib/kubelet//plugins/x/globalmount/".into(),
            volume_capability: Some(mount(Mode::SingleNodeWriter, "", &["noatime"])),
            volume_context: [("serial".into(), "abc".into()), ("bus".into(), "scsi".into())].into(),
            ..Default::default()
        }
    }

    fn publish() -> v1::NodePublishVolumeRequest {
        let stage = stage();
        v1::NodePublishVolumeRequest {
            volume_id: stage.volume_id,
            target_path: "/var/lib/kubelet/pods/p/mount".into(),
            volume_capability: stage.volume_capability,
            volume_context: stage.volume_context,
            ..Default::default()
        }
    }

    #[test]
    fn a_whole_request_is_read() {
        let read = StageRequest::try_from(stage()).unwrap();
        assert_eq!(read.staging, Path::new("/var/lib/kubelet/plugins/x/globalmount"));
        assert_eq!(read.staging.as_os_str(), "/var/lib/kubelet/plugins/x/globalmount");
        let options = MountOptions::parse(&["noatime"]).unwrap();
        let access = Access::Filesystem { filesystem: FilesystemType::Ext4, options };
        assert_eq!(read.capability, Capability { access, exclusive: false });
        assert_eq!(PublishRequest::try_from(publish()).unwrap().staging, None);
    }

    #[rstest]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.volume_id.clear())]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.staging_target_path.clear())]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.staging_target_path = "some/path".into())]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.staging_target_path = "/".into())]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.staging_target_path = "/a/../b".into())]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.volume_capability = None)]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.volume_capability.as_mut().unwrap().access_mode = None)]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.volume_capability.as_mut().unwrap().access_type = None)]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.volume_context.clear())]
    #[case(|r: &mut v1::NodeStageVolumeRequest| drop(r.volume_context.insert("serial".into(), String::new())))]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.volume_capability = Some(mount(Mode::MultiNodeMultiWriter, "", &[])))]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.volume_capability = Some(mount(Mode::MultiNodeReaderOnly, "", &[])))]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.volume_capability = Some(mount(Mode::SingleNodeWriter, "btrfs", &[])))]
    #[case(|r: &mut v1::NodeStageVolumeRequest| r.volume_capability = Some(mount(Mode::SingleNodeWriter, "", &["bind"])))]
    fn what_is_missing_or_malformed_is_an_invalid_argument(
        #[case] spoil: fn(&mut v1::NodeStageVolumeRequest),
    ) {
        let mut request = stage();
        spoil(&mut request);
        assert!(matches!(StageRequest::try_from(request), Err(Error::InvalidRequest(_))));
    }

    #[test]
    fn a_filesystem_on_several_nodes_is_refused_in_known_words() {
        let capability = |wanted| capability(Some(wanted), &HashMap::new());
        let error = capability(mount(Mode::MultiNodeMultiWriter, "ext4", &[])).unwrap_err();
        assert_eq!(error.to_string(), "non-block volume with RWX access mode is not supported");
        let block = v1::VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::MultiNodeMultiWriter.into() }),
            access_type: Some(AccessType::Block(BlockVolume {})),
        };
        assert_eq!(capability(block).unwrap(), Capability { access: Access::Block, exclusive: false });
    }

    #[rstest]
    #[case::default("", None, FilesystemType::Ext4)]
    #[case::of_the_context("", Some("xfs"), FilesystemType::Xfs)]
    #[case::of_the_capability("ext3", Some("xfs"), FilesystemType::Ext3)]
    #[case::empty_in_both("", Some(""), FilesystemType::Ext4)]
    fn the_filesystem_is_the_capabilitys_or_else_the_contexts(
        #[case] fs_type: &str,
        #[case] context: Option<&str>,
        #[case] expected: FilesystemType,
    ) {
        let mut request = stage();
        request.volume_capability = Some(mount(Mode::SingleNodeWriter, fs_type, &[]));
        if let Some(kind) = context {
            request.volume_context.insert("fsType".into(), kind.into());
        }
        let read = StageRequest::try_from(request).unwrap();
        assert!(
            matches!(read.capability.access, Access::Filesystem { filesystem, .. } if filesystem == expected)
        );
    }

    #[rstest]
    #[case::an_earlier_version(&[], Some((None, false)))]
    #[case::blank(&[("blankSince", "1764406800")], Some((Some(1_764_406_800), false)))]
    #[case::blank_of_an_encrypted_class(
        &[("blankSince", "7"), ("allowFormatNonzero", "true")], Some((Some(7), true)))]
    #[case::only_true_is_true(&[("allowFormatNonzero", "yes")], Some((None, false)))]
    #[case::copied(&[("copied", "true")], Some((None, false)))]
    #[case::only_true_is_copied(&[("copied", "yes")], Some((None, false)))]
    #[case::by_hand(&[("blankSince", "2026-11-29")], None)]
    fn the_context_says_where_the_content_comes_from(
        #[case] context: &[(&str, &str)],
        #[case] expected: Option<(Option<u64>, bool)>,
    ) {
        const UID: &str = "5d307ca9-b3ef-428c-8861-06e72d69f223";
        let mut request = stage();
        request.volume_context.insert("serial".into(), UID.into());
        request
            .volume_context
            .extend(context.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let read = StageRequest::try_from(request.clone());
        let read = read.ok().map(|read| read.origin);
        let shown = read.map(|origin| (origin.made_blank.map(|blank| blank.since), origin.format_nonzero));
        assert_eq!(shown, expected);
        let is_copied = context.contains(&("copied", "true"));
        assert_eq!(read.is_some_and(|origin| origin.copied), is_copied);
        if let Some(blank) = read.and_then(|origin| origin.made_blank) {
            assert_eq!(blank.uuid.to_string(), UID);
        }
        request.volume_context.insert("serial".into(), "restored-disk".into());
        let by_hand = StageRequest::try_from(request).ok().map(|read| read.origin.made_blank);
        assert_eq!(by_hand, expected.map(|_| None), "a serial that is no UUID marks no filesystem");
    }

    #[test]
    fn read_only_modes_become_the_flag_and_only_single_writer_is_exclusive() {
        let capability = |wanted| capability(Some(wanted), &HashMap::new());
        let reader = capability(mount(Mode::SingleNodeReaderOnly, "xfs", &["rw"])).unwrap();
        assert!(matches!(reader.access, Access::Filesystem { options, .. } if options.read_only()));
        for (mode, exclusive) in [
            (Mode::SingleNodeWriter, false),
            (Mode::SingleNodeMultiWriter, false),
            (Mode::SingleNodeSingleWriter, true),
        ] {
            assert_eq!(capability(mount(mode, "", &[])).unwrap().exclusive, exclusive, "{mode:?}");
        }
    }

    fn expand() -> v1::NodeExpandVolumeRequest {
        v1::NodeExpandVolumeRequest {
            volume_id: "pvc-1".into(),
            volume_path: "some/path".into(),
            capacity_range: Some(v1::CapacityRange { required_bytes: 5, limit_bytes: 0 }),
            ..Default::default()
        }
    }

    #[test]
    fn an_expansion_needs_an_id_and_a_path_and_may_name_the_rest() {
        let read = ExpandRequest::try_from(expand()).unwrap();
        assert_eq!((read.path.as_path(), read.required), (Path::new("some/path"), 5));
        assert_eq!((read.staging, read.access), (None, None));
        let mut whole = expand();
        whole.capacity_range = None;
        whole.staging_target_path = "/stage/".into();
        whole.volume_capability = Some(mount(Mode::SingleNodeReaderOnly, "xfs", &[]));
        let read = ExpandRequest::try_from(whole).unwrap();
        assert_eq!((read.staging.as_deref(), read.required), (Some(Path::new("/stage")), 0));
        assert!(matches!(read.access, Some(Access::Filesystem { options, .. }) if options.read_only()));
    }

    #[rstest]
    #[case(|r: &mut v1::NodeExpandVolumeRequest| r.volume_id.clear())]
    #[case(|r: &mut v1::NodeExpandVolumeRequest| r.volume_path.clear())]
    #[case(|r: &mut v1::NodeExpandVolumeRequest| r.staging_target_path = "some/path".into())]
    #[case(|r: &mut v1::NodeExpandVolumeRequest| r.volume_capability = Some(v1::VolumeCapability::default()))]
    #[case(|r: &mut v1::NodeExpandVolumeRequest| r.volume_capability = Some(mount(Mode::SingleNodeWriter, "btrfs", &[])))]
    fn a_malformed_expansion_is_an_invalid_argument(#[case] spoil: fn(&mut v1::NodeExpandVolumeRequest)) {
        let mut request = expand();
        spoil(&mut request);
        assert!(matches!(ExpandRequest::try_from(request), Err(Error::InvalidRequest(_))));
    }

    #[rstest]
    #[case(0, 0, Some(0))]
    #[case(5, 0, Some(5))]
    #[case(5, 5, Some(5))]
    #[case(0, 5, Some(0))]
    #[case(6, 5, None)]
    #[case(-1, 0, None)]
    #[case(-1, 5, None)]
    #[case(0, -1, None)]
    #[case(i64::MAX, i64::MAX, Some(i64::MAX.unsigned_abs()))]
    fn a_range_that_nothing_satisfies_is_refused(
        #[case] required_bytes: i64,
        #[case] limit_bytes: i64,
        #[case] least: Option<u64>,
    ) {
        let capacity_range = Some(v1::CapacityRange { required_bytes, limit_bytes });
        let read = ExpandRequest::try_from(v1::NodeExpandVolumeRequest { capacity_range, ..expand() });
        assert_eq!(read.ok().map(|read| read.required), least);
    }

    #[test]
    fn a_nonsensical_stats_path_is_no_shape_error() {
        let request = v1::NodeGetVolumeStatsRequest {
            volume_id: "v".into(),
            volume_path: "some/path".into(),
            ..Default::default()
        };
        assert_eq!(StatsRequest::try_from(request).unwrap().path, Path::new("some/path"));
    }

    proptest! {
        #[test]
        fn an_accepted_path_is_absolute_plain_and_not_the_root(text in "[/a.\\PC]{0,20}") {
            if let Ok(path) = path(&text, "p") {
                prop_assert!(path.is_absolute() && path.file_name().is_some());
                prop_assert!(!path.components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
