//! Names, compatibility, steps and pages.

use infra::Metadata;
use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn request(name: &str) -> CreateSnapshot {
    CreateSnapshot { name: name.into(), volume: "pvc-1".into(), class: None }
}

fn existing(name: &str) -> VolumeSnapshot {
    VolumeSnapshot {
        metadata: Metadata { name: name.into(), ..Metadata::default() },
        claim: Some("pvc-1".into()),
        ..VolumeSnapshot::default()
    }
}

fn claim() -> ObjectName {
    ObjectName::parse("pvc-1").unwrap()
}

#[test]
fn a_name_of_the_sidecar_stays_and_every_other_is_hashed_and_kept() {
    let name = "snapshot-3f2504e0-4f89-11d3-9a0c-0305e82c3301";
    let new = desired(&request(name), &claim(), Some("fast".into()), Some(7));
    assert_eq!((new.name.as_str(), new.class.as_deref()), (name, Some("fast")));
    assert_eq!(new.annotations, BTreeMap::from([(GUEST_SIZE_ANNOTATION.to_owned(), "7".to_owned())]));
    let new = desired(&request("CreateSnapshot-snapshot-1-773CD4B8"), &claim(), None, None);
    assert!(new.name.as_str().starts_with("snapshot-"));
    assert_eq!(new.annotations[NAME_ANNOTATION], "CreateSnapshot-snapshot-1-773CD4B8");
}

#[test]
fn an_existing_snapshot_is_the_requested_one_by_name_and_source() {
    assert_eq!(compatible(&existing("snapshot-1"), &request("snapshot-1")), Ok(()));
    let text =
        |existing: &VolumeSnapshot| compatible(existing, &request("snapshot-1")).unwrap_err().to_string();
    let other = VolumeSnapshot { claim: Some("pvc-2".into()), ..existing("snapshot-1") };
    assert!(text(&other).contains("snapshot snapshot-1 exists with another source volume: pvc-2"));
    let sourceless = VolumeSnapshot { claim: None, ..existing("snapshot-1") };
    assert!(text(&sourceless).contains("another source volume"));
    let mut hashed = existing("snapshot-1");
    hashed.metadata.annotations.insert(NAME_ANNOTATION.into(), "Other".into());
    assert!(text(&hashed).contains("another original name"));
}

#[test]
fn the_guests_size_counts_before_infras() {
    let mut snapshot = VolumeSnapshot { restore_size: Some(106), ..existing("snapshot-1") };
    assert_eq!(guest_size(&snapshot), Some(106));
    snapshot.metadata.annotations.insert(GUEST_SIZE_ANNOTATION.into(), "100".into());
    assert_eq!(guest_size(&snapshot), Some(100));
    snapshot.metadata.annotations.insert(GUEST_SIZE_ANNOTATION.into(), "many".into());
    assert_eq!(guest_size(&snapshot), Some(106));
}

#[test]
fn the_time_is_that_of_the_data_as_soon_as_it_is_known() {
    let mut snapshot = existing("snapshot-1");
    assert_eq!(taken_at(&snapshot), None);
    snapshot.metadata.creation_timestamp = Some("object".into());
    assert_eq!(taken_at(&snapshot), Some("object"));
    snapshot.taken_at = Some("data".into());
    assert_eq!(taken_at(&snapshot), Some("data"));
}

#[rstest]
#[case::ready(true, None, 0, false, Step::Ready)]
#[case::ready_with_an_old_error(true, Some("e"), 60, true, Step::Ready)]
#[case::under_way(false, None, 0, false, Step::Wait)]
#[case::out_of_time(false, None, 0, true, Step::Later)]
#[case::an_error_that_may_pass(false, Some("e"), 4, false, Step::Wait)]
#[case::an_error_that_lasts(false, Some("e"), 5, false, Step::Failed("e".into()))]
#[case::an_error_and_no_time(false, Some("e"), 0, true, Step::Failed("e".into()))]
fn steps(
    #[case] is_ready: bool,
    #[case] error: Option<&str>,
    #[case] failing: u64,
    #[case] out_of_time: bool,
    #[case] expected: Step,
) {
    let snapshot = VolumeSnapshot { is_ready, error: error.map(Into::into), ..VolumeSnapshot::default() };
    assert_eq!(next(&snapshot, Duration::from_secs(failing), out_of_time), expected);
}

fn pages(names: &[&str], token: Option<&str>, most: Option<usize>) -> Result<Page<String>, BadToken> {
    page(names.iter().map(|name| (*name).to_owned()).collect(), String::as_str, token, most)
}

#[rstest]
#[case("invalid-token")]
#[case("after:")]
#[case("after:../x")]
#[case("1")]
fn a_token_of_others_is_refused(#[case] token: &str) {
    assert_eq!(pages(&["a"], Some(token), None), Err(BadToken(token.into())));
}

#[test]
fn the_last_page_has_no_token() {
    let all = Page { snapshots: vec!["a".to_owned(), "b".into()], next: String::new() };
    assert_eq!(pages(&["b", "a"], None, Some(2)), Ok(all));
    assert_eq!(pages(&[], None, Some(2)).unwrap().next, "");
    assert_eq!(pages(&["b", "a"], None, Some(1)).unwrap().next, "after:a");
}

proptest! {
    /// Page by page, each snapshot that stays is there once, whatever is deleted between the pages.
    #[test]
    fn pages_show_each_once(
        names in prop::collection::btree_set("[a-z]{1,3}", 0..20),
        gone in prop::collection::vec(any::<bool>(), 20),
        most in 1_usize..5,
    ) {
        let mut there: Vec<String> = names.into_iter().collect();
        let (mut seen, mut token) = (Vec::new(), None::<String>);
        let stays: Vec<String> =
            there.iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(name, _)| name.clone()).collect();
        loop {
            let page = page(there.clone(), String::as_str, token.as_deref(), Some(most)).unwrap();
            prop_assert!(page.snapshots.len() <= most);
            seen.extend(page.snapshots);
            if page.next.is_empty() {
                break;
            }
            token = Some(page.next);
            there = stays.clone();
        }
        prop_assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
        prop_assert!(stays.iter().all(|name| seen.contains(name)));
    }
}
