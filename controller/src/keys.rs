//! The keys that this crate reads and writes: parameters, volume context, annotations, and the keys of the storage
//! class policy. `docs/reference/parameters.md` is generated from the tables.

pub(crate) use csi_call::contract::{
    ALLOW_FORMAT_NONZERO, BLANK_SINCE, BUS, COPIED, FILESYSTEM, SERIAL, TRUE,
};

/// `StorageClass` parameter: the infra storage class.
pub(crate) const STORAGE_CLASS: &str = "infraStorageClassName";
/// Annotation of the infra claim: `<namespace>/<vm>` of the VM that may plug the volume.
pub(crate) const HOLDER_ANNOTATION: &str = "csi.kubevirt.io/holder";
/// Annotation of the infra claim: the claim to which KubeVirt moved the volume before it was detached.
pub(crate) const MOVED_ANNOTATION: &str = "csi.kubevirt.io/moved-to";
/// `StorageClass` parameter: how a volume is cloned.
pub(crate) const CLONE_METHOD: &str = "cloneMethod";
/// Annotation with the volume that a volume was cloned from, where its source is a temporary snapshot.
pub(crate) const SOURCE_VOLUME_ANNOTATION: &str = "csi.kubevirt.io/source-volume";
/// `VolumeSnapshotClass` parameter: the infra snapshot class.
pub(crate) const SNAPSHOT_CLASS: &str = "infraSnapshotClassName";
/// Annotation with the size in bytes that the guest knows, where the infra object is larger.
pub(crate) const GUEST_SIZE_ANNOTATION: &str = "csi.kubevirt.io/guest-size";
/// Annotation with the CO's name of a volume or snapshot whose object name is a hash.
pub(crate) const NAME_ANNOTATION: &str = "csi.kubevirt.io/volume-name";
/// Annotation of the infra claim: what it requested before its first expansion.
pub(crate) const CREATED_REQUEST_ANNOTATION: &str = "csi.kubevirt.io/created-request";
/// Annotation of a `DataVolume`: one more serial that its disk may have. The administrator of the infra cluster sets it on
/// a volume that was restored there under a new UID, while the guest's PV carries the old one.
pub(crate) const SERIAL_ANNOTATION: &str = "csi.kubevirt.io/serial";
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

/// Parameters of a guest `StorageClass`; any other has no effect.
pub const PARAMETERS: [Key; 5] = [
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
    key(
        CLONE_METHOD,
        "`pvc`, `snapshot`, `dataSourceRef`",
        "How a claim is cloned. `pvc`: CDI clones the infra claim, and waits while a VM has it. `snapshot`: CDI restores a temporary snapshot of it. `dataSourceRef`: the infra storage driver clones it. Without it: `pvc` if no VM has the source, else `snapshot`, or `dataSourceRef` where no snapshot class may be used",
    ),
    key(
        FILESYSTEM,
        "as `csi.storage.k8s.io/fstype`",
        "The older name of that key, in upper or lower case; csi-provisioner reads it too and logs that it is deprecated",
    ),
    key(
        ALLOW_FORMAT_NONZERO,
        "`true`, `false` (default)",
        "For an infra class whose new volumes do not read as zeros, such as encrypted storage: a blank volume of this class with a filesystem is formatted although its disk holds data without a known signature. A volume whose filesystem is damaged beyond recognition is then formatted, too. Restored and cloned volumes are not. The flag `--allow-format-nonzero` of the node role allows it for all classes",
    ),
];

/// Parameters of a guest `VolumeSnapshotClass`; any other has no effect.
pub const SNAPSHOT_PARAMETERS: [Key; 1] = [key(
    SNAPSHOT_CLASS,
    "name of an infra VolumeSnapshotClass",
    "Class of the infra snapshot; absent or empty means the first that `storageSnapshotMapping` has for the volume's infra class, else the infra cluster's default for its storage driver",
)];

/// Keys of the volume context (`spec.csi.volumeAttributes` of the guest's PersistentVolume), which never changes.
pub const VOLUME_CONTEXT: [Key; 6] = [
    key(SERIAL, "UID of the DataVolume", "Serial of the disk, by which the node role finds it"),
    key(BUS, "`scsi`, `virtio`", "As in the StorageClass, for the attach"),
    key(
        FILESYSTEM,
        "filesystem type",
        "Of the StorageClass's older key, only where the request of csi-provisioner does not name the type",
    ),
    key(
        BLANK_SINCE,
        "seconds since 1970",
        "When a volume was made that is to hold a filesystem and was made blank. The node role gives its filesystem the serial as UUID, and mounts only a filesystem that has this UUID or was made since. Volumes of versions before, restored, cloned and block volumes do not have the key, and are not checked",
    ),
    key(ALLOW_FORMAT_NONZERO, "`true`", "As in the StorageClass, for volumes that were made blank"),
    key(
        COPIED,
        "`true`",
        "Of a restored or cloned volume that is to hold a filesystem: the node role never formats it. Volumes of versions before do not have the key, and are formatted if they are blank",
    ),
];

/// Annotations that this driver writes on objects of the infra cluster.
pub const INFRA_ANNOTATIONS: [Key; 8] = [
    key(
        HOLDER_ANNOTATION,
        "`<namespace>/<VM>`",
        "On the claim: the VM that may have a volume for one node. Removed by the detach; replaced when no VM has the volume",
    ),
    key(
        MOVED_ANNOTATION,
        "name of a claim",
        "On the claim: where KubeVirt had moved the volume (`updateVolumesStrategy: Migration`) when it was detached. While it is set the volume is not attached, nor copied from this claim, whose data may be older. The administrator of the infra cluster removes it once the data is back",
    ),
    key(
        NAME_ANNOTATION,
        "name",
        "On the DataVolume or VolumeSnapshot: the requested name, where it is not a legal object name and a hash takes its place",
    ),
    key(
        GUEST_SIZE_ANNOTATION,
        "bytes",
        "On the VolumeSnapshot: the size of the volume in the guest. On a restored or cloned DataVolume: the requested size, where CDI demands a larger one",
    ),
    key(
        SOURCE_VOLUME_ANNOTATION,
        "volume id",
        "On a DataVolume that is cloned by a temporary VolumeSnapshot `clone-<DataVolume>`: the source. The snapshot is deleted once the clone is there",
    ),
    key(
        CREATED_REQUEST_ANNOTATION,
        "bytes",
        "On a claim in filesystem mode: what it requested before its first expansion. The overhead that CDI keeps free follows from it",
    ),
    key(
        SERIAL_ANNOTATION,
        "serial",
        "On the DataVolume, written by the infra administrator: a serial that a PersistentVolume may have for this volume beside the DataVolume's UID, for a volume that was restored under a new UID",
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
        "Snapshots of volumes of these infra classes are only made with these infra snapshot classes, the first of them where the guest names none. For an infra class that is in no group, snapshots need `allowAll` or `allowDefault`, and may have any class",
    ),
];

/// The parameter of the table that a key is. external-provisioner reads the older key of the filesystem in any case.
pub(crate) fn parameter(table: &[Key], key: &str) -> Option<&'static str> {
    let is_key = |name: &str| name == key || (name == FILESYSTEM && name.eq_ignore_ascii_case(key));
    table.iter().map(|known| known.name).find(|name| is_key(name))
}

/// The parameter of the table for which a key that is none of them was probably mistyped.
pub(crate) fn probably_meant(table: &[Key], key: &str) -> Option<&'static str> {
    table.iter().map(|known| known.name).find(|name| is_mistyped(key, name))
}

/// Changes of one letter that a mistyped long name may have.
const MOST_CHANGES: usize = 2;
/// In a name of at most this length only one letter may be wrong: two make it another word (`type` is not `fsType`).
const SHORT: usize = 6;

/// The case of letters does not count as a change.
fn is_mistyped(key: &str, name: &str) -> bool {
    let most = if name.len() <= SHORT { 1 } else { MOST_CHANGES };
    key.len().abs_diff(name.len()) <= most && distance(&key.to_lowercase(), &name.to_lowercase()) <= most
}

/// The number of letters to insert, to leave out, to replace, or to swap with their neighbour, that make one text of the
/// other (optimal string alignment).
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(a != b);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("infraStorageClassName", Some(STORAGE_CLASS))]
    #[case("infraStorageclassname", None)]
    #[case("FSTYPE", Some(FILESYSTEM))]
    #[case("fstype", Some(FILESYSTEM))]
    #[case("Bus", None)]
    #[case("fs", None)]
    #[case("", None)]
    fn a_parameter_is_known_by_its_name(#[case] key: &str, #[case] known: Option<&str>) {
        assert_eq!(parameter(&PARAMETERS, key), known);
    }

    #[rstest]
    #[case("infraStorageclassname", Some(STORAGE_CLASS))]
    #[case("INFRASTORAGECLASSNAME", Some(STORAGE_CLASS))]
    #[case("Bus", Some(BUS))]
    #[case("infraStorageClasName", Some(STORAGE_CLASS))]
    #[case("infraStorageClassNames", Some(STORAGE_CLASS))]
    #[case("infra-StorageClassNam", Some(STORAGE_CLASS))]
    #[case("infarStorageClassNmae", Some(STORAGE_CLASS))]
    #[case("storageClassName", None)]
    #[case("bsu", Some(BUS))]
    #[case("buss", Some(BUS))]
    #[case("bug", Some(BUS))]
    #[case("fs", None)]
    #[case("pool", None)]
    #[case("type", None)]
    #[case("fs_type", Some(FILESYSTEM))]
    #[case("fsTyp", Some(FILESYSTEM))]
    #[case("encrypted", None)]
    #[case("csiProvisionerSecretName", None)]
    #[case("", None)]
    fn a_mistyped_parameter_is_told_from_another_word(#[case] key: &str, #[case] meant: Option<&str>) {
        assert_eq!(probably_meant(&PARAMETERS, key), meant);
    }

    #[test]
    fn no_parameter_is_a_mistyped_other() {
        for one in PARAMETERS {
            for other in PARAMETERS {
                assert_eq!(is_mistyped(one.name, other.name), one.name == other.name);
            }
        }
    }
}
