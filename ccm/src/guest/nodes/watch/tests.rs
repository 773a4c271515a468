//! The watch over an API server that refuses at first.

use super::*;
use crate::fake_api::{FakeApi, failure};
use serde_json::{Value, json};
use std::{collections::HashSet, time::Duration};
use tokio::time::timeout;

const NODES: &str = "GET /api/v1/nodes";
const PATIENCE: Duration = Duration::from_secs(30);

fn list(names: &[&str]) -> Value {
    let node = |name: &&str| json!({"metadata": {"name": name, "annotations": {"other": "x"}}});
    let items: Vec<_> = names.iter().map(node).collect();
    json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "7"}, "items": items})
}

#[tokio::test]
async fn all_readers_share_one_watch_and_each_gets_every_node() {
    let api = FakeApi::default();
    api.answer(NODES, 200, list(&["a", "b"]));
    let watch = NodeWatch::new(&GuestCluster::over(api.client()), Tasks::default());
    let early = watch.subscribe();
    assert_eq!(watch.listing(), Listing::Pending);
    watch.start();
    watch.clone().start();
    timeout(PATIENCE, watch.wait_until_complete()).await.unwrap();
    let all = HashSet::from(["a".to_owned(), "b".to_owned()]);
    assert_eq!(early.take(), all);
    assert_eq!(watch.subscribe().take(), all, "a late reader gets what is there");
    let node = watch.get("a").unwrap();
    assert!(node.metadata.annotations.as_ref().unwrap().is_empty(), "only what is read is kept");
    assert!(api.made("GET").len() <= 2, "one list and one watch");
}

#[tokio::test(start_paused = true)]
async fn a_refused_watch_is_reported_and_is_tried_again_at_once_when_the_right_is_there() {
    let api = FakeApi::default();
    let (code, body) = failure(403, "Forbidden", &json!({}));
    api.answer(NODES, code, body);
    let watch = NodeWatch::new(&GuestCluster::over(api.client()), Tasks::default());
    tokio::join!(async { timeout(PATIENCE, watch.refused()).await.unwrap() }, async { watch.start() });
    timeout(PATIENCE, watch.wait_until_listed()).await.unwrap();
    assert_eq!(watch.listing(), Listing::Failed);
    api.answer(NODES, 200, list(&[]));
    let asked = tokio::time::Instant::now();
    watch.retry();
    watch.wait_until_complete().await;
    assert!(asked.elapsed() < Duration::from_millis(100), "without the pause after a failure");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_be_read_hides_no_other_and_keeps_what_was_read_of_it() {
    let api = FakeApi::default();
    api.answer(NODES, 200, list(&["a", "b"]));
    let watch = NodeWatch::new(&GuestCluster::over(api.client()), Tasks::default());
    watch.start();
    timeout(PATIENCE, watch.wait_until_complete()).await.unwrap();
    let mut odd = list(&["a", "b", "c"]);
    for place in [1, 2] {
        odd["items"][place]["status"] = json!("nonsense");
    }
    api.answer(NODES, 200, odd);
    let changes = watch.subscribe();
    changes.take();
    let listed_again = async {
        while timeout(Duration::from_secs(1), changes.next()).await.is_err() {
            // The fake has no watch, so the watch fails, and each retry lists the Nodes.
            watch.retry();
        }
    };
    timeout(PATIENCE, listed_again).await.unwrap();
    let mut names = watch.names();
    names.sort();
    assert_eq!(names, ["a", "b"], "nothing is known of c");
}
