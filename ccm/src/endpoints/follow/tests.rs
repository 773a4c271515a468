//! What a session begins with.

use std::time::Duration;

use super::*;
use crate::{
    endpoints::fixture::{OTHERS_WRITE, World},
    fake_api::failure,
};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::timeout;

const NODES: &str = "GET /api/v1/nodes";
const PATIENCE: Duration = Duration::from_mins(5);
/// Nodes with it take no traffic of load balancers.
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

fn list(nodes: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "7"}, "items": nodes})
}

fn node(name: &str, labels: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}})
}

/// The Nodes with which a new session begins, and whether each is excluded.
async fn begins_with(world: &World) -> Vec<(String, bool)> {
    let session = world.session(true);
    let began = async {
        tokio::select! {
            () = session.follow_nodes() => {}
            () = session.completed.notified() => {}
        }
    };
    timeout(PATIENCE, began).await.unwrap();
    let seen = session.state.lock();
    seen.nodes.iter().map(|(name, node)| (name.clone(), member(node).excluded)).collect()
}

/// The right to watch Nodes is taken away, which ends the session, and is given back. Meanwhile they change.
#[rstest]
#[case::one_is_gone(&[node("a", &json!({}))], &[("a", false)])]
#[case::one_is_excluded(&[node("a", &json!({})), node("b", &json!({EXCLUDE: ""}))], &[("a", false), ("b", true)])]
#[case::one_is_new(&[node("a", &json!({})), node("b", &json!({})), node("c", &json!({}))],
    &[("a", false), ("b", false), ("c", false)])]
#[case::all_are_gone(&[], &[])]
#[tokio::test(start_paused = true)]
async fn a_session_does_not_begin_with_the_nodes_of_an_earlier_one(
    #[case] now: &[Value],
    #[case] expected: &[(&str, bool)],
) {
    let world = World::new(OTHERS_WRITE, &json!({}), &json!({}));
    world.guest.answer(NODES, 200, list(&[node("a", &json!({})), node("b", &json!({}))]));
    assert_eq!(begins_with(&world).await.len(), 2);
    let (code, body) = failure(403, "Forbidden", &json!({}));
    world.guest.answer(NODES, code, body);
    timeout(PATIENCE, world.context.nodes.refused()).await.unwrap();
    world.guest.answer(NODES, 200, list(now));
    let found = begins_with(&world).await;
    let found: Vec<_> = found.iter().map(|(name, excluded)| (name.as_str(), *excluded)).collect();
    assert_eq!(found, expected);
}
