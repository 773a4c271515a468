//! The serial of a volume's disk, by which the node finds it.
//!
//! The guest's PV carries the serial that CreateVolume chose, the UID of the `DataVolume`. A guest's administrator may
//! write any other into a PV, that of a disk of another VM for example.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use kubevirt::Metadata;

use crate::keys::SERIAL_ANNOTATION;

/// The PV names a serial that is not its volume's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "serial {asked:?} in the volume context is not that of volume {volume}. If the volume was restored in the infra cluster, annotate its DataVolume there with {SERIAL_ANNOTATION}={asked}"
)]
pub struct OtherSerial {
    asked: String,
    volume: String,
}

/// The serial of the disk. `asked` is that of the volume context, `None` where it names none; `volume` is the metadata of
/// the `DataVolume`.
pub(crate) fn of<'a>(asked: Option<&'a str>, volume: &'a Metadata) -> Result<&'a str, OtherSerial> {
    let permitted = volume.annotations.get(SERIAL_ANNOTATION).map(String::as_str);
    match asked {
        None => Ok(&volume.uid),
        Some(asked) if asked == volume.uid || Some(asked) == permitted => Ok(asked),
        Some(asked) => Err(OtherSerial { asked: asked.to_owned(), volume: volume.name.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::none_is_the_uid(None, None, Some("uid-1"))]
    #[case::the_uid(Some("uid-1"), None, Some("uid-1"))]
    #[case::another(Some("uid-2"), None, None)]
    #[case::another_although_one_is_permitted(Some("uid-2"), Some("uid-0"), None)]
    #[case::a_part_of_the_permitted_one(Some("uid"), Some("uid-0"), None)]
    #[case::permitted(Some("uid-0"), Some("uid-0"), Some("uid-0"))]
    #[case::the_uid_beside_a_permitted_one(Some("uid-1"), Some("uid-0"), Some("uid-1"))]
    fn a_serial_is_the_volumes_own_or_permitted(
        #[case] asked: Option<&str>,
        #[case] permitted: Option<&str>,
        #[case] serial: Option<&str>,
    ) {
        let annotations = permitted.map(|serial| (SERIAL_ANNOTATION.to_owned(), serial.to_owned()));
        let volume = Metadata {
            uid: "uid-1".into(),
            annotations: annotations.into_iter().collect(),
            ..Metadata::default()
        };
        assert_eq!(of(asked, &volume).ok(), serial);
    }
}
