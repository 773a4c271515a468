//! The cleanup over an infra cluster and a guest that answer from a table.

use super::*;
use crate::{
    fake_api::{FakeApi, failure},
    guest_names::{CLUSTER_NAME_LABEL, SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL},
};
use serde_json::{Value, json};

const UID: &str = "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3";
const GUESTS: &str = "GET /api/v1/services";
const MIRRORS: &str = "GET /api/v1/namespaces/hcp/services";

fn list(items: &[Value], next: &str) -> Value {
    json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "continue": next}, "items": items})
}

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": name}, "spec": {}})
}

#[tokio::test]
async fn all_pages_of_a_list_are_read() {
    let api = FakeApi::default();
    api.answer(GUESTS, 200, list(&[named("a"), named("b")], "two"));
    api.answer_query(GUESTS, "continue=two", list(&[named("c")], "three"));
    api.answer_query(GUESTS, "continue=three", list(&[], ""));
    let all: Api<Readable<GuestService>> = Api::all(api.client());
    let pages: Vec<_> = pages(&all, ListParams::default(), "listing").try_collect().await.unwrap();
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 0]);
    assert_eq!(api.made("GET").len(), 3);
}

#[tokio::test]
async fn a_page_that_fails_is_named() {
    let api = FakeApi::default();
    api.answer(GUESTS, 200, list(&[named("a")], "two"));
    let (code, body) = failure(410, "Expired", &json!({}));
    api.answer("GET /api/v1/pods", code, body);
    let all: Api<Readable<k8s_openapi::api::core::v1::Pod>> = Api::all(api.client());
    let found: Result<Vec<_>> = pages(&all, ListParams::default(), "listing the pods").try_collect().await;
    assert!(found.unwrap_err().to_string().contains("listing the pods"));
}

/// A mirror that upstream left under an earlier name of the cluster, and of which the guest still has the Service, goes.
/// One without any name is looked for too.
#[tokio::test(start_paused = true)]
async fn what_a_former_name_left_is_deleted() {
    let (infra, guest) = (FakeApi::default(), FakeApi::default());
    let name = infra_name(UID);
    let left = json!({"metadata": {"name": name, "namespace": "hcp", "uid": "m1", "labels": {CLUSTER_NAME_LABEL: "old",
        SERVICE_NAME_LABEL: "web", SERVICE_NAMESPACE_LABEL: "shop"}}});
    infra.answer_query(MIRRORS, "labelSelector=%21", list(&[], ""));
    infra.answer(MIRRORS, 200, list(std::slice::from_ref(&left), ""));
    let gone = format!("DELETE /api/v1/namespaces/hcp/services/{name}");
    infra.answer(&gone, 200, left);
    let own = json!({"metadata": {"name": "kubernetes", "namespace": "default", "uid": "g"}, "spec": {}});
    guest.answer("GET /api/v1/namespaces/default/services/kubernetes", 200, own);
    let web = json!({"metadata": {"name": "web", "namespace": "shop", "uid": UID}, "spec": {}});
    guest.answer(GUESTS, 200, list(&[web], ""));
    let former = [(CLUSTER_NAME_LABEL.to_owned(), vec!["old".to_owned(), String::new()])];
    let identity =
        GuestLabels { cluster: "new".parse().unwrap(), infra_labels: [].into(), former: former.into() };
    let cleanup = Cleanup {
        infra: InfraCluster::over(infra.client(), "hcp"),
        guest: Some(GuestCluster::over(guest.client())),
        identity,
        lease: ("kube-system".to_owned(), "lease".to_owned()),
        lease_duration: Duration::from_secs(15),
        force: false,
        timeout: Duration::from_secs(10),
    };
    let ended = {
        let emptied = async {
            while infra.made("DELETE").is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
            infra.answer(MIRRORS, 200, list(&[], ""));
        };
        tokio::join!(cleanup.run(), emptied).0
    };
    ended.unwrap();
    assert_eq!(infra.made("DELETE")[0].body["preconditions"]["uid"], "m1");
    let asked: Vec<_> = infra.made("GET").into_iter().map(|made| made.call).collect();
    assert!(asked.iter().all(|call| call == MIRRORS), "{asked:?}");
}
