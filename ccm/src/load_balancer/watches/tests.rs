//! The watches over lists in which an object can't be read.

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{fake_api::FakeApi, guest_names::GuestLabels, load_balancer::plan::PlanConfig};
use rstest::rstest;
use serde_json::{Value, json};

const GUESTS: &str = "GET /api/v1/services";
const MIRRORS: &str = "GET /api/v1/namespaces/hcp/services";
const PATIENCE: Duration = Duration::from_secs(30);

fn service(name: &str, more: &Value) -> Value {
    let mut service = json!({
        "metadata": { "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": "3" },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80, "nodePort": 30080 }] }, "status": {},
    });
    for (section, fields) in more.as_object().unwrap() {
        service[section] = fields.clone();
    }
    service
}

fn list(items: &[Value]) -> Value {
    json!({ "kind": "ServiceList", "apiVersion": "v1", "metadata": { "resourceVersion": "7" }, "items": items })
}

fn started(guest: &FakeApi, infra: &FakeApi) -> Index {
    let identity = GuestLabels {
        cluster: "guest".parse().unwrap(),
        infra_labels: BTreeMap::new(),
        former: BTreeMap::new(),
    };
    let (index, writers) = Index::new(&PlanConfig::of(identity), "hcp".to_owned());
    let infra = InfraCluster::over(infra.client(), "hcp");
    start(&index, writers, (&GuestCluster::over(guest.client()), &infra), Arc::default(), &Tasks::default());
    index
}

/// kubernetes/cloud-provider-gcp#909: a condition with `lastTransitionTime: null`; and whatever else comes.
#[rstest]
#[case::null_time(json!({"status": {"conditions": [{"type": "X", "status": "True", "reason": "r", "message": "",
    "lastTransitionTime": null}]}}))]
#[case::no_time(json!({"status": {"conditions": [{"type": "X", "status": "True"}]}}))]
#[case::nulls(json!({"spec": {"type": "LoadBalancer", "ports": null, "selector": null, "externalIPs": null},
    "status": {"loadBalancer": null, "conditions": null}}))]
#[case::no_service(json!({"spec": "nonsense"}))]
#[case::no_ports(json!({"spec": {"type": "LoadBalancer", "ports": [{"port": "http"}]}}))]
#[tokio::test(start_paused = true)]
async fn an_odd_service_stops_no_other(#[case] odd: Value) {
    let (guest, infra) = (FakeApi::default(), FakeApi::default());
    guest.answer(GUESTS, 200, list(&[service("odd", &odd), service("web", &json!({}))]));
    infra.answer(MIRRORS, 200, list(&[service("odd", &odd), service("a1", &json!({}))]));
    let index = started(&guest, &infra);
    tokio::time::timeout(PATIENCE, index.wait_until_complete()).await.unwrap();
    let names: Vec<_> = index.guests().state().iter().map(|it| it.metadata.name.clone().unwrap()).collect();
    assert!(names.contains(&"web".to_owned()), "{names:?}");
    assert!(index.mirrors().iter().any(|it| it.metadata.name.as_deref() == Some("a1")));
}
