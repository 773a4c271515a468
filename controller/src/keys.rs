//! The keys that this crate reads and writes: parameters, volume context, annotations, and the keys of the storage
//! class policy. `docs/reference/parameters.md` is generated from the tables.

pub(crate) use csi_call::contract::{BUS, SERIAL};

/// `StorageClass` parameter: the infra storage class.
pub(crate) const STORAGE_CLASS: &str = "infraStorageClassName";
/// Annotation of the infra claim: `<namespace>/<vm>` of the VM that may plug the volume.
pub(crate) const HOLDER_ANNOTATION: &str = "csi.kubevirt.io/holder";
/// Annotation with the CO's name of a volume whose object name is a hash.
pub(crate) const NAME_ANNOTATION: &str = "csi.kubevirt.io/volume-name";
/// Policy key: everything is allowed.
pub(crate) const ALLOW_ALL: &str = "allowAll";
/// Policy key: infra's default class is allowed.
pub(crate) const ALLOW_DEFAULT: &str = "allowDefault";
/// Policy key: the classes that are allowed.
pub(crate) const ALLOW_LIST: &str = "allowList";
/// Policy key: which snapshot classes go with which storage classes.
pub(crate) const SNAPSHOT_MAPPING: &str = "storageSnapshotMapping";

/// One key, its values, and what it means.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// Its values.
    pub values: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn key(name: &'static str, values: &'static str, meaning: &'static str) -> Key {
    Key { name, values, meaning }
}

/// Parameters of a guest `StorageClass`; any other is refused.
pub const PARAMETERS: [Key; 2] = [
    key(
        STORAGE_CLASS,
        "name of an infra StorageClass",
        "Class of the infra volume; absent or empty means the infra cluster's default. The infra administrator may restrict it",
    ),
    key(
        BUS,
        "`scsi` (default), `virtio`",
        "Bus of the hotplugged disk. A virtio disk shows the guest 20 characters of its serial",
    ),
];

/// Keys of the volume context (`spec.csi.volumeAttributes` of the guest's PersistentVolume), which never changes.
pub const VOLUME_CONTEXT: [Key; 2] = [
    key(SERIAL, "UID of the DataVolume", "Serial of the disk, by which the node role finds it"),
    key(BUS, "`scsi`, `virtio`", "As in the StorageClass, for the attach"),
];

/// Annotations that this driver writes on objects of the infra cluster.
pub const INFRA_ANNOTATIONS: [Key; 3] = [
    key(
        HOLDER_ANNOTATION,
        "`<namespace>/<VM>`",
        "On the claim: the VM that may have a volume for one node. Removed by the detach; replaced when no VM has the volume",
    ),
    key(
        NAME_ANNOTATION,
        "name",
        "On the DataVolume: the requested name, where it is not a legal object name and a hash takes its place",
    ),
    key(
        infra::KEEP_AFTER_COMPLETION,
        "`false`",
        "On the DataVolume: keeps CDI before 1.62 from deleting it once it is populated",
    ),
];

/// Keys of the policy's YAML text. The first letter may be a capital.
pub const POLICY: [Key; 4] = [
    key(ALLOW_ALL, "`true`, `false` (default)", "Every infra class is allowed, and the default one too"),
    key(
        ALLOW_DEFAULT,
        "`true`, `false` (default)",
        "A guest class may omit the infra class and so use infra's default",
    ),
    key(ALLOW_LIST, "list of infra StorageClasses", "The allowed classes"),
    key(
        SNAPSHOT_MAPPING,
        "list of maps with `storageClasses` and `volumeSnapshotClasses`",
        "Its shape is checked; it has no effect in this version",
    ),
];

/// The names of [`PARAMETERS`], for the refusal of another.
pub(crate) fn known_parameters() -> String {
    PARAMETERS.map(|key| key.name).join(", ")
}
