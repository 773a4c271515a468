//! Requests about snapshots.

use csi_proto::v1::{CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest};

use super::{Invalid, known_parameters, map_within_limit, required};
use crate::keys::{SNAPSHOT_CLASS, SNAPSHOT_PARAMETERS};

/// A snapshot to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CreateSnapshot {
    /// Name that the CO chose.
    pub name: String,
    /// Id of the volume to take it of.
    pub volume: String,
    /// Infra snapshot class; `None` = the policy's or infra's default.
    pub class: Option<String>,
}

impl CreateSnapshot {
    /// Reads a `CreateSnapshotRequest`.
    pub(crate) fn read(request: &CreateSnapshotRequest) -> Result<Self, Invalid> {
        let name = required("name", &request.name)?;
        let volume = required("source volume id", &request.source_volume_id)?;
        map_within_limit("parameters", &request.parameters)?;
        let parameters = known_parameters("VolumeSnapshotClass", &SNAPSHOT_PARAMETERS, &request.parameters)?;
        Ok(Self { name, volume, class: parameters.get(SNAPSHOT_CLASS).map(|class| (*class).to_owned()) })
    }
}

/// Reads a `DeleteSnapshotRequest`: the snapshot id.
pub(crate) fn read_delete_snapshot(request: &DeleteSnapshotRequest) -> Result<String, Invalid> {
    required("snapshot id", &request.snapshot_id)
}

/// Reads a `GetSnapshotRequest`: the snapshot id.
pub(crate) fn read_get_snapshot(request: &GetSnapshotRequest) -> Result<String, Invalid> {
    required("snapshot id", &request.snapshot_id)
}

/// Which snapshots to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListSnapshots {
    /// Only the snapshot of this id.
    pub snapshot: Option<String>,
    /// Only those of this volume.
    pub volume: Option<String>,
    /// Where the previous page ended.
    pub token: Option<String>,
    /// Most entries of a page; `None` = all.
    pub most: Option<usize>,
}

impl ListSnapshots {
    /// Reads a `ListSnapshotsRequest`.
    pub(crate) fn read(request: &ListSnapshotsRequest) -> Result<Self, Invalid> {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let most =
            usize::try_from(request.max_entries).map_err(|_| Invalid::MaxEntries(request.max_entries))?;
        Ok(Self {
            snapshot: given(&request.snapshot_id),
            volume: given(&request.source_volume_id),
            token: given(&request.starting_token),
            most: (most != 0).then_some(most),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn create() -> CreateSnapshotRequest {
        CreateSnapshotRequest {
            name: "snapshot-1".into(),
            source_volume_id: "pvc-1".into(),
            ..CreateSnapshotRequest::default()
        }
    }

    #[rstest]
    #[case::ours("infraSnapshotClassName", "fast", Ok(Some("fast")))]
    #[case::empty("infraSnapshotClassName", "", Ok(None))]
    #[case::of_the_sidecar("csi.storage.k8s.io/volumesnapshot/name", "x", Ok(None))]
    #[case::of_another_driver("type", "x", Ok(None))]
    #[case::of_the_other_class("infraStorageClassName", "x", Ok(None))]
    #[case::mistyped("infraSnapshotclassname", "x", Err(()))]
    #[case::mistyped_by_a_letter("infraSnapshotClasName", "x", Err(()))]
    fn parameters(#[case] key: &str, #[case] value: &str, #[case] expected: Result<Option<&str>, ()>) {
        let mut request = create();
        request.parameters.insert(key.into(), value.into());
        match (CreateSnapshot::read(&request), expected) {
            (Ok(read), Ok(class)) => assert_eq!(read.class.as_deref(), class),
            (Err(Invalid::MistypedParameter { meant, .. }), Err(())) => assert_eq!(meant, SNAPSHOT_CLASS),
            (read, _) => panic!("{read:?}"),
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let nameless = CreateSnapshotRequest { name: String::new(), ..create() };
        assert_eq!(CreateSnapshot::read(&nameless), Err(Invalid::Missing("name")));
        let sourceless = CreateSnapshotRequest { source_volume_id: String::new(), ..create() };
        assert_eq!(CreateSnapshot::read(&sourceless), Err(Invalid::Missing("source volume id")));
        assert_eq!(
            read_delete_snapshot(&DeleteSnapshotRequest::default()),
            Err(Invalid::Missing("snapshot id"))
        );
        assert_eq!(read_get_snapshot(&GetSnapshotRequest::default()), Err(Invalid::Missing("snapshot id")));
    }

    #[test]
    fn a_list_is_of_all_unless_something_is_given() {
        assert_eq!(ListSnapshots::read(&ListSnapshotsRequest::default()), Ok(ListSnapshots::default()));
        let negative = ListSnapshotsRequest { max_entries: -1, ..ListSnapshotsRequest::default() };
        assert_eq!(ListSnapshots::read(&negative), Err(Invalid::MaxEntries(-1)));
    }
}
