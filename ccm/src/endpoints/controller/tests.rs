//! The controller while another program, or nobody, writes slices.

use super::*;
use crate::{
    endpoints::fixture::{OTHERS_WRITE, RIGHTS, SLICES, World, slice, slices},
    fake_api::failure,
};
use rstest::rstest;
use serde_json::json;
use tokio::time::timeout;

/// What infra answers at first.
#[derive(Clone, Copy, PartialEq)]
enum First {
    /// There is nothing.
    Nothing,
    /// The right to list slices is missing, as while an API server starts.
    Refused,
    /// It does not answer.
    Unavailable,
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn left_overs_are_found_whatever_the_first_answer_was(
    #[values(First::Nothing, First::Refused, First::Unavailable)] first: First,
) {
    let world = World::new(OTHERS_WRITE, &json!({}), &json!({}));
    world.grants(first != First::Refused);
    world.infra.answer(SLICES, 200, slices(&[]));
    if first == First::Unavailable {
        let (code, body) = failure(503, "ServiceUnavailable", &json!({}));
        world.infra.answer(RIGHTS, code, body);
    }
    let controller = EndpointController::new(world.context.clone());
    assert!(timeout(Duration::from_hours(1), controller.wait_for_left_overs()).await.is_err());
    if first != First::Unavailable {
        let asked = world.infra.made("POST").len();
        assert!(asked <= 7, "{asked} questions in an hour");
    }
    world.grants(true);
    world.infra.answer(SLICES, 200, slices(&[slice("left", OUR_MANAGER, true)]));
    timeout(LEFT_OVERS_INTERVAL * 2, controller.wait_for_left_overs()).await.unwrap();
}
