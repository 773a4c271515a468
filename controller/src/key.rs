//! The keys that others write or find: parameters, volume context, annotations, and the storage class policy's text. The code
//! reads and writes them by the constants beside it; these tables are what `docs/reference/parameters.md` is written of.

use crate::{
    holder::HOLDER_ANNOTATION,
    request::{BUS, SERIAL, STORAGE_CLASS},
    storage_class_policy::{ALLOW_ALL, ALLOW_DEFAULT, ALLOW_LIST, SNAPSHOT_MAPPING},
    volume::NAME_ANNOTATION,
};

/// One key, its values, and what it means.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// What may stand there.
    pub values: &'static str,
    /// What it does, or tells.
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
        "How the disk is plugged. A virtio disk shows the guest 20 characters of its serial",
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
        "On the claim: the VM to which a volume for one node is promised. Taken away by the detach; replaced when no VM has the volume",
    ),
    key(
        NAME_ANNOTATION,
        "name",
        "On the DataVolume: the name that was asked for, where it is no legal object name and a hash stands in its place",
    ),
    key(
        infra::KEEP_AFTER_COMPLETION,
        "`false`",
        "On the DataVolume: keeps CDI before 1.62 from deleting it once it is populated",
    ),
];

/// Keys of the policy's YAML text. The first letter may be a capital.
pub const POLICY: [Key; 4] = [
    key(ALLOW_ALL, "`true`, `false` (default)", "Every infra class may be named, and the default one used"),
    key(
        ALLOW_DEFAULT,
        "`true`, `false` (default)",
        "A guest class may leave the infra class to infra's default",
    ),
    key(ALLOW_LIST, "list of infra StorageClasses", "The classes that may be named"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StorageClassPolicy;

    #[test]
    fn the_policy_knows_each_key_of_its_table_and_no_other() {
        for key in POLICY {
            let (_, unknown) = StorageClassPolicy::parse(&format!("{}: null", key.name)).unwrap();
            assert_eq!(unknown, Vec::<String>::new());
        }
        let (_, unknown) = StorageClassPolicy::parse("denyList: null").unwrap();
        assert_eq!(unknown, ["denyList"]);
    }
}
