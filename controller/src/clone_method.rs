//! How a volume is cloned: the planner, and the names of what a clone needs.
//!
//! CDI clones a claim by itself, but waits while a pod uses it: a plugged volume would never be cloned. So of a plugged
//! volume a temporary snapshot is taken, and CDI restores that. Where no snapshot class may be used, the infra storage
//! driver is to clone the claim, as with kubevirt/csi-driver; what hinders it there shows only in the infra cluster.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::collections::BTreeMap;

use infra::{DataVolume, DataVolumeSource, NewVolumeSnapshot, ObjectName, VolumeSnapshot};

use crate::{keys::GUEST_SIZE_ANNOTATION, request::CloneMethod};

/// Begins the name of a temporary snapshot; the name of the new volume follows. So each volume has one at most, and a
/// later call finds it without having been told.
const PREFIX: &str = "clone-";

/// How a volume is cloned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// CDI clones the claim.
    Claim,
    /// CDI restores a temporary snapshot of the claim, of this infra snapshot class.
    Snapshot {
        /// `None` = the infra cluster's default.
        class: Option<String>,
    },
    /// The infra storage driver clones the claim.
    DataSourceRef,
}

/// Plans how to clone. `class` is the snapshot class that may be used, or why no snapshot can be taken.
pub(crate) fn way<E>(
    asked: Option<CloneMethod>,
    is_plugged: bool,
    class: Result<Option<String>, E>,
) -> Result<Way, E> {
    match asked {
        Some(CloneMethod::Claim) => Ok(Way::Claim),
        Some(CloneMethod::DataSourceRef) => Ok(Way::DataSourceRef),
        Some(CloneMethod::Snapshot) => class.map(|class| Way::Snapshot { class }),
        None if !is_plugged => Ok(Way::Claim),
        None => Ok(class.map_or(Way::DataSourceRef, |class| Way::Snapshot { class })),
    }
}

/// The name of the temporary snapshot for a new volume.
pub(crate) fn snapshot_name(volume: &ObjectName) -> ObjectName {
    let name = format!("{PREFIX}{volume}");
    ObjectName::parse(&name).expect("a prefix before the label that names a volume is a legal name")
}

/// The temporary snapshot for the new volume `volume`.
pub(crate) fn temporary_snapshot(
    volume: &ObjectName,
    source: &ObjectName,
    class: Option<String>,
    guest_size: Option<u64>,
) -> NewVolumeSnapshot {
    let size = guest_size.map(|size| (GUEST_SIZE_ANNOTATION.to_owned(), size.to_string()));
    let annotations: BTreeMap<String, String> = size.into_iter().collect();
    NewVolumeSnapshot { name: snapshot_name(volume), annotations, claim: source.clone(), class }
}

/// Whether the snapshot is a temporary one.
pub(crate) fn is_temporary(snapshot: &VolumeSnapshot) -> bool {
    snapshot.metadata.name.starts_with(PREFIX)
}

/// Whether the volume is made from its temporary snapshot.
pub(crate) fn has_temporary_snapshot(volume: &DataVolume) -> bool {
    let name = &volume.metadata.name;
    matches!(&volume.source, DataVolumeSource::Snapshot(from) if from.strip_prefix(PREFIX) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use infra::Metadata;
    use proptest::prelude::*;
    use rstest::rstest;

    const ALLOWED: Result<Option<String>, ()> = Ok(None);

    #[rstest]
    #[case::unplugged(None, false, ALLOWED, Ok(Way::Claim))]
    #[case::unplugged_without_snapshots(None, false, Err(()), Ok(Way::Claim))]
    #[case::plugged(None, true, ALLOWED, Ok(Way::Snapshot { class: None }))]
    #[case::plugged_of_a_class(None, true, Ok(Some("s".into())), Ok(Way::Snapshot { class: Some("s".into()) }))]
    #[case::plugged_without_snapshots(None, true, Err(()), Ok(Way::DataSourceRef))]
    #[case::asked_for_cdi(Some(CloneMethod::Claim), true, ALLOWED, Ok(Way::Claim))]
    #[case::asked_for_a_snapshot(Some(CloneMethod::Snapshot), false, ALLOWED, Ok(Way::Snapshot { class: None }))]
    #[case::asked_for_what_is_refused(Some(CloneMethod::Snapshot), false, Err(()), Err(()))]
    #[case::asked_for_the_driver(Some(CloneMethod::DataSourceRef), false, ALLOWED, Ok(Way::DataSourceRef))]
    fn ways(
        #[case] asked: Option<CloneMethod>,
        #[case] is_plugged: bool,
        #[case] class: Result<Option<String>, ()>,
        #[case] expected: Result<Way, ()>,
    ) {
        assert_eq!(way(asked, is_plugged, class), expected);
    }

    proptest! {
        #[test]
        fn the_snapshot_of_a_volume_is_its_own(name in "[a-z]([a-z0-9-]{0,61}[a-z0-9])?") {
            let name = ObjectName::parse(&name).unwrap();
            let snapshot = temporary_snapshot(&name, &name, None, None).name;
            let of = |source: &str| DataVolume {
                metadata: Metadata { name: name.to_string(), ..Metadata::default() },
                source: DataVolumeSource::Snapshot(source.to_owned()),
                ..DataVolume::default()
            };
            prop_assert!(has_temporary_snapshot(&of(snapshot.as_str())));
            let other = format!("{snapshot}x");
            prop_assert!(!has_temporary_snapshot(&of(&other)));
            prop_assert!(!has_temporary_snapshot(&of(name.as_str())));
        }
    }
}
