//! Decides what a request comes to. Pure: no file, no fault, no clock.

use csi_proto::v1::CapacityRange;
use tonic::Code;

use super::pool::{Snapshot, Source, Volume};

/// The size of a volume for which no size is asked.
const DEFAULT_BYTES: u64 = 1 << 30;

/// The error of an RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub code: Code,
    pub message: String,
}

impl Refusal {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, message: message.into() }
    }

    pub(super) fn not_found(what: &str, name: &str) -> Self {
        Self { code: Code::NotFound, message: format!("there is no {what} {name}") }
    }

    fn out_of_range(message: String) -> Self {
        Self { code: Code::OutOfRange, message }
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// It is there already.
    Done(T),
    /// To be made so.
    Make(T),
}

/// What a clone is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    pub bytes: u64,
    pub block: bool,
}

impl From<&Snapshot> for Content {
    fn from(snapshot: &Snapshot) -> Self {
        Self { bytes: snapshot.bytes, block: snapshot.block }
    }
}

impl From<&Volume> for Content {
    fn from(volume: &Volume) -> Self {
        Self { bytes: volume.bytes, block: volume.block }
    }
}

/// `CreateVolume`: `wanted` has everything but the size, `present` is the volume of that name, `content` what the source of
/// `wanted` holds.
pub(super) fn create(
    present: Option<Volume>,
    wanted: Volume,
    content: Option<Content>,
    range: Option<&CapacityRange>,
) -> Result<Step<Volume>, Refusal> {
    if let Some(present) = present {
        let same = present.block == wanted.block && present.source == wanted.source;
        return if same && fits(present.bytes, range)? {
            Ok(Step::Done(present))
        } else {
            let message = "a volume of that name exists, of another size, mode or source".to_owned();
            Err(Refusal { code: Code::AlreadyExists, message })
        };
    }
    let least = content.map_or(0, |content| content.bytes);
    if content.is_some_and(|content| content.block != wanted.block) {
        return Err(Refusal::invalid("a volume and its source are both block devices, or both filesystems"));
    }
    let (required, limit) = bounds(range)?;
    if required != 0 && required < least {
        let message = format!("{required} bytes requested, the source has {least}");
        return Err(Refusal::out_of_range(message));
    }
    let bytes = if required == 0 { least.max(DEFAULT_BYTES.min(limit)) } else { required };
    if bytes > limit {
        return Err(Refusal::out_of_range(format!("{bytes} bytes needed, at most {limit} wanted")));
    }
    Ok(Step::Make(Volume { bytes, ..wanted }))
}

/// Whether a class that has `capacity` bytes has room for `wanted` bytes, when its volumes have `used` already.
pub(super) fn room(capacity: Option<u64>, used: u64, wanted: u64) -> Result<(), Refusal> {
    let free = capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(used));
    if wanted <= free {
        return Ok(());
    }
    let message = format!("{wanted} bytes requested, {free} bytes free");
    Err(Refusal { code: Code::ResourceExhausted, message })
}

/// The bytes that the volumes of `class` hold already, without that of the name.
pub(super) fn used(volumes: &[(String, Volume)], class: &str, without: &str) -> u64 {
    let others = volumes.iter().filter(|(name, volume)| volume.class == class && name != without);
    others.map(|(_, volume)| volume.bytes).sum()
}

/// `ControllerExpandVolume`. A volume never shrinks.
pub(super) fn expand(present: Volume, range: Option<&CapacityRange>) -> Result<Step<Volume>, Refusal> {
    let (required, limit) = bounds(range)?;
    if range.is_none() || required == 0 {
        return Err(Refusal::invalid("an expansion has a size"));
    }
    if present.bytes > limit {
        let message = format!("it has {} bytes already, at most {limit} wanted", present.bytes);
        return Err(Refusal::out_of_range(message));
    }
    if required <= present.bytes {
        return Ok(Step::Done(present));
    }
    Ok(Step::Make(Volume { bytes: required, ..present }))
}

/// `CreateSnapshot` of `volume`, which has that handle, at that time; `present` is the snapshot of that name.
pub(super) fn snapshot(
    present: Option<Snapshot>,
    handle: &str,
    volume: Option<&Volume>,
    now: i64,
) -> Result<Step<Snapshot>, Refusal> {
    if let Some(present) = present {
        return if present.volume == handle {
            Ok(Step::Done(present))
        } else {
            let message = format!("a snapshot of that name exists, of {}", present.volume);
            Err(Refusal { code: Code::AlreadyExists, message })
        };
    }
    let volume = volume.ok_or_else(|| Refusal::not_found("volume", handle))?;
    let Volume { bytes, block, .. } = *volume;
    Ok(Step::Make(Snapshot { volume: handle.to_owned(), bytes, block, created: now }))
}

/// One page of a list: `max` entries, 0 for all, from where an earlier page ended; and where this one ends, if it is not the
/// last.
pub(super) fn page<T: Clone>(all: &[T], token: &str, max: i32) -> Result<(Vec<T>, String), Refusal> {
    let start = if token.is_empty() { Some(0) } else { token.parse().ok() };
    let rest = start.and_then(|start: usize| Some((start, all.get(start..)?)));
    // CSI: an invalid token is ABORTED, and the caller begins anew.
    let (start, rest) = rest.ok_or_else(|| {
        let message = format!("{token:?} is no token of this list; begin without one");
        Refusal { code: Code::Aborted, message }
    })?;
    let max = usize::try_from(max).map_err(|_| Refusal::invalid("max_entries is negative"))?;
    let length = if max == 0 { rest.len() } else { max.min(rest.len()) };
    let next = if length < rest.len() { (start + length).to_string() } else { String::new() };
    Ok((rest[..length].to_vec(), next))
}

/// The source that a request names; of an id that is no name there is nothing.
pub(super) fn source_name(source: &Source) -> (&'static str, &str) {
    match source {
        Source::Snapshot(id) => ("snapshot", id),
        Source::Volume(handle) => ("volume", handle),
    }
}

fn fits(bytes: u64, range: Option<&CapacityRange>) -> Result<bool, Refusal> {
    let (required, limit) = bounds(range)?;
    Ok((required..=limit).contains(&bytes))
}

/// The least and the most bytes; 0 and the largest number if nothing is said.
fn bounds(range: Option<&CapacityRange>) -> Result<(u64, u64), Refusal> {
    let of = |bytes: i64| u64::try_from(bytes).map_err(|_| Refusal::invalid("a size is negative"));
    let Some(range) = range else { return Ok((0, u64::MAX)) };
    let (required, limit) = (of(range.required_bytes)?, of(range.limit_bytes)?);
    let limit = if limit == 0 { u64::MAX } else { limit };
    if required > limit {
        return Err(Refusal::invalid("the least size is above the most"));
    }
    Ok((required, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(required: u64, limit: u64) -> CapacityRange {
        let signed = |bytes| i64::try_from(bytes).expect("small");
        CapacityRange { required_bytes: signed(required), limit_bytes: signed(limit) }
    }

    fn volume(bytes: u64) -> Volume {
        Volume { bytes, block: true, class: "a".into(), ..Volume::default() }
    }

    fn code<T>(step: Result<Step<T>, Refusal>) -> Option<Code> {
        step.err().map(|refusal| refusal.code)
    }

    #[test]
    fn a_volume_is_as_large_as_asked_and_never_smaller_than_its_source() {
        let made =
            |content, range: Option<CapacityRange>| match create(None, volume(0), content, range.as_ref()) {
                Ok(Step::Make(volume)) => Ok(volume.bytes),
                other => Err(code(other)),
            };
        let source = Some(Content { bytes: 4 * MIB, block: true });
        assert_eq!(made(None, None), Ok(DEFAULT_BYTES));
        assert_eq!(made(None, Some(range(MIB, 0))), Ok(MIB));
        assert_eq!(made(None, Some(range(0, MIB))), Ok(MIB));
        assert_eq!(made(source, Some(range(8 * MIB, 0))), Ok(8 * MIB));
        assert_eq!(made(source, Some(range(MIB, 0))), Err(Some(Code::OutOfRange)));
        assert_eq!(made(source, Some(range(0, MIB))), Err(Some(Code::OutOfRange)));
        assert_eq!(made(None, Some(range(2, 1))), Err(Some(Code::InvalidArgument)));
        let folder = Some(Content { bytes: MIB, block: false });
        assert_eq!(made(folder, Some(range(MIB, 0))), Err(Some(Code::InvalidArgument)));
        let negative = CapacityRange { required_bytes: -1, limit_bytes: 0 };
        assert_eq!(made(None, Some(negative)), Err(Some(Code::InvalidArgument)));
    }

    #[test]
    fn a_second_call_finds_the_volume_and_another_meaning_is_refused() {
        let again = |present: Volume, wanted: Volume, least| {
            create(Some(present), wanted, None, Some(&range(least, 0)))
        };
        assert_eq!(again(volume(MIB), volume(0), MIB), Ok(Step::Done(volume(MIB))));
        assert_eq!(code(again(volume(MIB), volume(0), 2 * MIB)), Some(Code::AlreadyExists));
        let folder = Volume { block: false, ..volume(0) };
        assert_eq!(code(again(volume(MIB), folder, MIB)), Some(Code::AlreadyExists));
        let clone = Volume { source: Some(Source::Volume("pvc-1".into())), ..volume(0) };
        assert_eq!(code(again(volume(MIB), clone, MIB)), Some(Code::AlreadyExists));
    }

    #[test]
    fn a_full_class_has_no_room() {
        let volumes = [("pvc-1".to_owned(), volume(3)), ("pvc-2".to_owned(), volume(4))];
        assert_eq!(
            (used(&volumes, "a", ""), used(&volumes, "a", "pvc-1"), used(&volumes, "b", "")),
            (7, 4, 0)
        );
        assert_eq!(room(None, 7, u64::MAX), Ok(()));
        assert_eq!(room(Some(10), 7, 3), Ok(()));
        let full = room(Some(10), 7, 4).expect_err("no room");
        let told = (full.code, full.message.as_str());
        assert_eq!(told, (Code::ResourceExhausted, "4 bytes requested, 3 bytes free"));
        assert!(room(Some(1), 7, 1).is_err(), "the limit came after the volumes");
    }

    #[test]
    fn an_expansion_grows_once_and_never_shrinks() {
        let to = |bytes| expand(volume(4), Some(&range(bytes, 0)));
        assert_eq!(to(8), Ok(Step::Make(volume(8))));
        assert_eq!(to(4), Ok(Step::Done(volume(4))));
        assert_eq!(to(2), Ok(Step::Done(volume(4))));
        assert_eq!(code(expand(volume(4), Some(&range(1, 2)))), Some(Code::OutOfRange));
        assert_eq!(code(expand(volume(4), None)), Some(Code::InvalidArgument));
        assert_eq!(code(to(0)), Some(Code::InvalidArgument));
    }

    #[test]
    fn a_snapshot_is_taken_once_and_outlives_its_volume() {
        let present = volume(4);
        let Ok(Step::Make(taken)) = snapshot(None, "pvc-1", Some(&present), 7) else {
            panic!("expected a new snapshot")
        };
        assert_eq!((taken.bytes, taken.block, taken.created), (4, true, 7));
        assert_eq!(snapshot(Some(taken.clone()), "pvc-1", None, 9), Ok(Step::Done(taken.clone())));
        assert_eq!(code(snapshot(Some(taken), "pvc-2", Some(&present), 9)), Some(Code::AlreadyExists));
        assert_eq!(code(snapshot(None, "pvc-1", None, 9)), Some(Code::NotFound));
    }

    #[test]
    fn pages_meet_end_to_end() {
        let all = [1, 2, 3];
        assert_eq!(page(&all, "", 0), Ok((vec![1, 2, 3], String::new())));
        assert_eq!(page(&all, "", 2), Ok((vec![1, 2], "2".into())));
        assert_eq!(page(&all, "2", 2), Ok((vec![3], String::new())));
        assert_eq!(page(&all, "3", 2), Ok((vec![], String::new())));
        for wrong in ["4", "abc", "-1"] {
            assert_eq!(page(&all, wrong, 1).map_err(|refusal| refusal.code), Err(Code::Aborted), "{wrong}");
        }
        assert!(page(&all, "", -1).is_err());
    }
}
