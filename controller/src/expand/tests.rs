//! The planner of an expansion: its table, and what holds for every claim.

use infra::Claim;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;
use crate::claim_size::Overhead;

const GIB: u64 = 1 << 30;

fn block(disk: u64) -> Wanted {
    Wanted { disk, limit: None, layout: Layout::Block, first_disk: GIB }
}

fn file(disk: u64) -> Wanted {
    Wanted { layout: Layout::File(Overhead::DEFAULT), ..block(disk) }
}

/// What a filesystem claim needs for a disk, with the default overhead.
fn for_file(disk: u64) -> u64 {
    Layout::File(Overhead::DEFAULT).claim_for(disk).unwrap()
}

fn bound(request: u64, capacity: u64) -> Observed {
    Observed { phase: BOUND.into(), request, capacity, ..Observed::default() }
}

fn at(request: u64, capacity: u64, allocated: u64, resize: Resize) -> Observed {
    Observed { allocated: Some(allocated), resize, ..bound(request, capacity) }
}

fn infeasible() -> Resize {
    Resize::Infeasible { reason: "too big".into() }
}

fn failing() -> Resize {
    Resize::Controller { failure: Some("pool is down".into()) }
}

fn busy() -> Resize {
    Resize::Controller { failure: None }
}

/// What a step is, without its texts.
fn kind(step: &Step) -> String {
    match step {
        Step::Patch { to } => format!("patch {to}"),
        Step::Done(size) => format!("done {size}"),
        Step::Wait(cause) => cause.failure().map_or("wait".into(), |failure| format!("wait, {failure}")),
        Step::Refuse(CannotExpand::OverLimit { .. }) => "over the limit".into(),
        Step::Refuse(CannotExpand::TooLarge { .. }) => "too large".into(),
        Step::Refuse(CannotExpand::NotBound { .. }) => "not bound".into(),
        Step::Refuse(CannotExpand::Infeasible { .. }) => "infeasible".into(),
        Step::Refuse(CannotExpand::Failing { .. }) => "failing".into(),
    }
}

#[rstest]
#[case::smaller(bound(2 * GIB, 2 * GIB), block(GIB), format!("done {}", 2 * GIB))]
#[case::no_size_asked(bound(2 * GIB, 2 * GIB), block(0), format!("done {}", 2 * GIB))]
#[case::the_same(bound(2 * GIB, 2 * GIB), block(2 * GIB), format!("done {}", 2 * GIB))]
#[case::as_it_was_made(Observed::default(), block(GIB), format!("done {GIB}"))]
#[case::infra_rounded_up(bound(GIB, 3 * GIB), block(2 * GIB), format!("done {}", 3 * GIB))]
#[case::larger(bound(GIB, GIB), block(2 * GIB), format!("patch {}", 2 * GIB))]
#[case::requested(bound(2 * GIB, GIB), block(2 * GIB), "wait".into())]
#[case::more_is_requested(bound(3 * GIB, GIB), block(2 * GIB), "wait".into())]
#[case::under_way(at(2 * GIB, GIB, 2 * GIB, busy()), block(2 * GIB), "wait".into())]
#[case::left_to_the_node(at(2 * GIB, GIB, 2 * GIB, Resize::NodePending), block(2 * GIB), format!("done {}", 2 * GIB))]
#[case::a_smaller_one_is_left_to_the_node(at(3 * GIB, GIB, 2 * GIB, Resize::NodePending), block(3 * GIB), "wait".into())]
#[case::older_infra_names_no_size(
    Observed { resize: Resize::NodePending, ..bound(2 * GIB, GIB) }, block(2 * GIB), "wait".into()
)]
#[case::on_the_node(at(2 * GIB, GIB, 2 * GIB, Resize::Node { failure: None }), block(2 * GIB), "wait".into())]
#[case::unknown(at(2 * GIB, GIB, 2 * GIB, Resize::Unknown("New".into())), block(2 * GIB), "wait".into())]
#[case::infeasible(at(2 * GIB, GIB, 2 * GIB, infeasible()), block(2 * GIB), "infeasible".into())]
#[case::infeasible_before(at(2 * GIB, GIB, 4 * GIB, infeasible()), block(2 * GIB), "wait".into())]
#[case::recovers(at(4 * GIB, GIB, 4 * GIB, infeasible()), block(2 * GIB), format!("patch {}", 2 * GIB))]
#[case::not_tried_yet(at(4 * GIB, GIB, 8 * GIB, infeasible()), block(2 * GIB), "wait".into())]
#[case::still_larger(at(2 * GIB, GIB, 2 * GIB, infeasible()), block(3 * GIB), format!("patch {}", 3 * GIB))]
#[case::fails(at(2 * GIB, GIB, 2 * GIB, failing()), block(2 * GIB), "wait, pool is down".into())]
#[case::failed_before(at(2 * GIB, GIB, 4 * GIB, failing()), block(2 * GIB), "wait".into())]
#[case::recovers_from_failures(at(4 * GIB, GIB, 4 * GIB, failing()), block(2 * GIB), format!("patch {}", 2 * GIB))]
#[case::pending(Observed { phase: "Pending".into(), ..bound(GIB, 0) }, block(2 * GIB), "not bound".into())]
#[case::limit(bound(GIB, GIB), Wanted { limit: Some(2 * GIB), ..block(2 * GIB) }, format!("patch {}", 2 * GIB))]
#[case::larger_than_the_limit(bound(3 * GIB, 3 * GIB), Wanted { limit: Some(2 * GIB), ..block(2 * GIB) }, "over the limit".into())]
#[case::file(bound(GIB, GIB), file(2 * GIB), format!("patch {}", for_file(2 * GIB)))]
#[case::file_as_it_was_made(bound(GIB, GIB), file(GIB), format!("done {GIB}"))]
#[case::file_is_larger(bound(for_file(2 * GIB), for_file(2 * GIB)), file(2 * GIB), format!("done {}", 2 * GIB))]
#[case::capacity_alone_grows_no_file(bound(GIB, 4 * GIB), file(2 * GIB), format!("patch {}", for_file(2 * GIB)))]
#[case::file_as_the_reference_requests_it(bound(2 * GIB, 2 * GIB), file(2 * GIB), format!("patch {}", for_file(2 * GIB)))]
#[case::file_left_to_the_node(
    at(for_file(2 * GIB), GIB, for_file(2 * GIB), Resize::NodePending), file(2 * GIB), format!("done {}", 2 * GIB)
)]
#[case::file_over_the_limit(bound(GIB, GIB), Wanted { limit: Some(2 * GIB), ..file(2 * GIB) }, "over the limit".into())]
#[case::file_in_the_limit(
    bound(GIB, GIB), Wanted { limit: Some(3 * GIB), ..file(2 * GIB) }, format!("patch {}", for_file(2 * GIB))
)]
#[case::no_number_is_enough(bound(GIB, GIB), file(u64::MAX), "too large".into())]
fn the_next_step(#[case] observed: Observed, #[case] wanted: Wanted, #[case] step: String) {
    assert_eq!(kind(&next(&observed, &wanted)), step);
}

fn claim(status: &serde_json::Value) -> Claim {
    serde_json::from_value(json!({"status": status})).unwrap()
}

fn resize(state: &str, conditions: &serde_json::Value) -> Resize {
    Resize::of(&claim(&json!({"allocatedResourceStatuses": {"storage": state}, "conditions": conditions})))
}

#[test]
fn the_state_of_an_expansion_is_read_from_the_claims_status() {
    let error = json!([{"type": "ControllerResizeError", "status": "True", "message": "too big"}]);
    let none = json!([]);
    assert_eq!(resize("ControllerResizeInfeasible", &error), infeasible());
    assert!(matches!(resize("ControllerResizeInfeasible", &none), Resize::Infeasible { .. }));
    assert_eq!(resize("ControllerResizeInProgress", &none), busy());
    assert_eq!(
        resize("ControllerResizeInProgress", &error),
        Resize::Controller { failure: Some("too big".into()) }
    );
    assert_eq!(resize("NodeResizePending", &none), Resize::NodePending);
    assert_eq!(resize("NodeResizeInProgress", &none), Resize::Node { failure: None });
    let of_node = json!([{"type": "NodeResizeError", "status": "True", "message": "no node"}]);
    assert_eq!(resize("NodeResizeInfeasible", &of_node), Resize::Node { failure: Some("no node".into()) });
    assert_eq!(resize("Tomorrow", &none), Resize::Unknown("Tomorrow".into()));
    // Kubernetes before 1.32 writes conditions only.
    let conditions = |kind: &str| json!({"conditions": [{"type": kind, "status": "True"}]});
    assert_eq!(Resize::of(&claim(&conditions("FileSystemResizePending"))), Resize::NodePending);
    assert_eq!(Resize::of(&claim(&conditions("Resizing"))), busy());
    assert_eq!(Resize::of(&claim(&json!({}))), Resize::Idle);
}

#[test]
fn a_wait_names_sizes_state_and_the_infras_reason() {
    let text = |observed| match next(&observed, &block(2 * GIB)) {
        Step::Wait(cause) => cause.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        text(at(2 * GIB, GIB, 2 * GIB, failing())),
        "the infra claim is being expanded: it has 1073741824 of 2147483648 bytes \
         (in the infra storage: pool is down)"
    );
    assert_eq!(
        text(bound(3 * GIB, GIB)),
        "the infra claim is being expanded: it has 1073741824 of 3221225472 bytes, of which the disk needs \
         2147483648 (not begun)"
    );
}

fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![(0..32_u64).prop_map(|quarters| quarters * (GIB / 4)), 0..8 * GIB]
}

fn resizes() -> impl Strategy<Value = Resize> {
    prop_oneof![
        Just(Resize::Idle),
        Just(busy()),
        Just(failing()),
        Just(infeasible()),
        Just(Resize::NodePending),
        Just(Resize::Node { failure: None }),
        Just(Resize::Unknown("New".into())),
    ]
}

prop_compose! {
    fn observations()(
        phase in prop_oneof![Just("Bound"), Just("Pending"), Just("Lost"), Just("")],
        request in sizes(),
        capacity in sizes(),
        other in proptest::option::of(sizes()),
        current: bool,
        resize in resizes(),
    ) -> Observed {
        let allocated = if current { Some(request) } else { other };
        Observed { phase: phase.to_owned(), request, capacity, allocated, resize }
    }
}

prop_compose! {
    fn wishes()(disk in sizes(), limit in proptest::option::of(sizes()), is_block: bool, first_disk in 0..GIB) -> Wanted {
        let layout = if is_block { Layout::Block } else { Layout::File(Overhead::DEFAULT) };
        Wanted { disk, limit: limit.map(|limit| limit.max(disk)), layout, first_disk }
    }
}

proptest! {
    /// The API server keeps the status when the request changes, so the same plan follows from the changed claim.
    #[test]
    fn a_change_is_not_repeated(observed in observations(), wanted in wishes()) {
        if let Step::Patch { to } = next(&observed, &wanted) {
            prop_assert_ne!(to, observed.request);
            let changed = Observed { request: to, ..observed };
            let then = next(&changed, &wanted);
            // Infra may have refused exactly this size when it was requested before.
            let refused = matches!(then, Step::Refuse(CannotExpand::Infeasible { .. }));
            prop_assert!(
                matches!(then, Step::Wait(_) | Step::Done(_)) || (refused && changed.allocated == Some(to)),
                "{then:?}"
            );
        }
    }

    #[test]
    fn nothing_is_made_smaller_but_what_failed_and_never_as_small_as_the_volume(
        observed in observations(), wanted in wishes(),
    ) {
        if let Step::Patch { to } = next(&observed, &wanted) {
            prop_assert_eq!(&observed.phase, "Bound");
            if to < observed.request {
                let failed = matches!(observed.resize, Resize::Infeasible { .. } | Resize::Controller { failure: Some(_) });
                prop_assert!(failed);
                prop_assert!(to > observed.capacity);
            }
        }
    }

    #[test]
    fn no_limit_is_exceeded(observed in observations(), wanted in wishes()) {
        match next(&observed, &wanted) {
            Step::Patch { to } => prop_assert!(wanted.limit.is_none_or(|limit| wanted.layout.largest_disk(to) <= limit)),
            Step::Done(size) => prop_assert!(size >= wanted.disk && wanted.limit.is_none_or(|limit| size <= limit)),
            Step::Wait(_) | Step::Refuse(_) => {}
        }
    }

    /// From every bound claim, infra storage that does what is requested leads to the size in two steps.
    #[test]
    fn an_obliging_infra_leads_to_the_size(observed in observations(), wanted in wishes()) {
        let mut observed = observed;
        for _ in 0..3 {
            match next(&observed, &wanted) {
                Step::Patch { to } => observed.request = to,
                Step::Wait(_) => {
                    observed.capacity = observed.capacity.max(observed.request);
                    observed.resize = Resize::Idle;
                    observed.allocated = Some(observed.request);
                }
                Step::Done(size) => {
                    prop_assert!(size >= wanted.disk);
                    return Ok(());
                }
                Step::Refuse(_) => return Ok(()),
            }
        }
        prop_assert!(false, "not done: {observed:?}");
    }
}
