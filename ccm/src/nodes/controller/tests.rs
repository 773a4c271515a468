use super::*;
use crate::{
    access::{GuestCluster, InfraCluster},
    fake_api::{FakeApi, failure},
    infra::machines::{Interface, Network, Vm},
    queue_metrics::QueueMetrics,
    wire::{system_uuid::SystemUuid, topology_labels::ZONE_LABEL},
};
use kube::client::Body;
use kubevirt::Phase;
use prometheus_client::{encoding::text::encode, registry::Registry};
use rstest::rstest;
use serde_json::{Value, json};
use serving::Tasks;
use std::sync::atomic::AtomicUsize;

const UUID: &str = "5d307ca9-b3ef-428c-8861-06e72d69f223";
const NODE: &str = "/api/v1/nodes/vm-1";
const HOST: &str = "GET /api/v1/nodes/infra-1";

/// A guest and an infra cluster with one VM, which the index knows.
struct Clusters {
    guest: FakeApi,
    infra: FakeApi,
    controller: NodeController,
}

impl Clusters {
    fn new(settings: NodeControllerSettings) -> Self {
        Self::counted(settings, &QueueMetrics::default())
    }

    fn counted(settings: NodeControllerSettings, metrics: &QueueMetrics) -> Self {
        let (guest, infra) = (FakeApi::default(), FakeApi::default());
        let written =
            |version: &str| json!({"metadata": {"name": "vm-1", "resourceVersion": version}, "spec": {}});
        guest.answer(&format!("PATCH {NODE}/status"), 200, written("8"));
        guest.answer(&format!("PATCH {NODE}"), 200, written("9"));
        guest.answer(
            "POST /api/v1/namespaces/default/events",
            201,
            json!({"metadata": {}, "involvedObject": {}}),
        );
        infra.answer(
            HOST,
            200,
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "infra-1", "labels": {ZONE_LABEL: "z1"}}}),
        );
        let index = Arc::new(MachineIndex::default());
        let reads = InfraReads::new(&InfraCluster::over(infra.client(), "hcp"));
        let feed = Feed::new(reads.clone(), Arc::clone(&index));
        index.replace([Vm { name: "vm-1".into(), ..Vm::default() }]);
        index.replace([vmi()]);
        let controller = NodeController::new(
            settings,
            watched(guest.client()),
            reads,
            (index, feed),
            NodeMetrics::default(),
            metrics.queue("Nodes"),
        );
        Self { guest, infra, controller }
    }

    async fn sync(&self, node: &Value) -> Result<Action, CallError> {
        self.controller.sync(&read(node)).await
    }
}

/// A guest, and the watch of its Nodes.
fn watched(guest: Client) -> (Client, NodeWatch) {
    (guest.clone(), NodeWatch::new(&GuestCluster::over(guest), Tasks::default()))
}

fn vmi() -> Vmi {
    let addresses = vec!["10.0.0.7".parse().unwrap()];
    let interfaces =
        vec![Interface { name: "default".into(), network: Network::Pod, addresses, ..Interface::default() }];
    Vmi {
        name: "vm-1".into(),
        phase: Phase::Running,
        host: Some("infra-1".into()),
        interfaces,
        ..Vmi::default()
    }
}

fn read(node: &Value) -> GuestNode {
    GuestNode::from(&serde_json::from_value::<WireNode>(node.clone()).unwrap())
}

fn fresh() -> Value {
    json!({
        "metadata": {"name": "vm-1", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-11-21T00:00:00Z"},
        "spec": {"taints": [{"key": "node.cloudprovider.kubernetes.io/uninitialized", "effect": "NoSchedule"}]},
    })
}

#[tokio::test]
async fn a_node_gets_its_address_before_it_is_opened_for_pods() {
    let clusters = Clusters::new(NodeControllerSettings::default());
    clusters.sync(&fresh()).await.unwrap();
    let [status, node] = &clusters.guest.made("PATCH")[..] else { panic!("not two writes") };
    assert_eq!(status.call, format!("PATCH {NODE}/status"));
    assert_eq!(status.body["status"]["addresses"], json!([{"type": "InternalIP", "address": "10.0.0.7"}]));
    assert_eq!(status.body["metadata"]["resourceVersion"], "7");
    assert_eq!(node.call, format!("PATCH {NODE}"));
    assert_eq!(node.body["metadata"]["resourceVersion"], "8", "what the first write made");
    assert_eq!(node.body["spec"], json!({"providerID": "kubevirt://vm-1", "taints": []}));
    assert_eq!(node.body["metadata"]["labels"][ZONE_LABEL], "z1");
    assert_eq!(clusters.guest.made("POST")[0].body["reason"], "Synced");
}

/// harvester/harvester#5794: kube-vip's address, which another VM has shown too since it failed over.
#[rstest]
#[case::of_this_guest(None, "10.0.0.7")]
#[case::of_another_guest(Some("b"), "10.0.0.99")]
#[tokio::test]
async fn a_node_does_not_get_an_address_that_another_vm_shows_too(
    #[case] cluster: Option<&str>,
    #[case] expected: &str,
) {
    let clusters = Clusters::new(NodeControllerSettings::default());
    let showing = |name: &str, addresses: &[&str]| {
        let mut vmi = Vmi { name: name.into(), ..vmi() };
        vmi.interfaces[0].addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        vmi
    };
    let other = Vmi { cluster: cluster.map(str::to_owned), ..showing("vm-2", &["10.0.0.99", "10.0.0.8"]) };
    clusters.controller.index.replace([showing("vm-1", &["10.0.0.99", "10.0.0.7"]), other]);
    clusters.sync(&fresh()).await.unwrap();
    let status = &clusters.guest.made("PATCH")[0];
    assert_eq!(status.body["status"]["addresses"], json!([{"type": "InternalIP", "address": expected}]));
}

#[rstest]
#[case::forbidden(403, 1)]
#[case::broken(500, 2)]
#[tokio::test]
async fn an_infra_node_that_cannot_be_read_holds_nothing_up(#[case] code: u16, #[case] reads: usize) {
    let clusters = Clusters::new(NodeControllerSettings::default());
    let (code, body) = failure(code, "Broken", &json!({"name": "infra-1"}));
    clusters.infra.answer(HOST, code, body);
    for _ in 0..2 {
        clusters.sync(&fresh()).await.unwrap();
    }
    let patched = clusters.guest.made("PATCH");
    assert_eq!(patched[1].body["spec"]["providerID"], "kubevirt://vm-1");
    assert_eq!(patched[1].body["metadata"]["labels"], json!({}));
    assert_eq!(clusters.infra.made("GET").len(), reads, "what is forbidden is not asked for again");
}

#[tokio::test]
async fn zone_and_region_can_be_switched_off() {
    let clusters =
        Clusters::new(NodeControllerSettings { zone_and_region: false, ..NodeControllerSettings::default() });
    clusters.sync(&fresh()).await.unwrap();
    assert!(clusters.infra.made("GET").is_empty());
}

#[tokio::test]
async fn a_node_that_changed_meanwhile_is_looked_at_again() {
    let clusters = Clusters::new(NodeControllerSettings::default());
    let (code, body) = failure(409, "Conflict", &json!({"name": "vm-1"}));
    clusters.guest.answer(&format!("PATCH {NODE}/status"), code, body);
    let error = clusters.sync(&fresh()).await.unwrap_err();
    assert!(error.is_conflict());
    assert_eq!(clusters.guest.made("PATCH").len(), 1, "nothing is written on top of it");
    assert!(clusters.guest.made("POST").is_empty());
    let node = Arc::new(serde_json::from_value::<WireNode>(fresh()).unwrap());
    let again = after_failure(node, &error, Arc::new(clusters.controller));
    assert_eq!(again, Action::requeue(AFTER_CONFLICT));
}

/// `KubeOne`'s rights in the guest: all on `nodes`, and so nothing on `nodes/status`. Another failure holds the Node up.
#[rstest]
#[case::forbidden(403, "Forbidden", true)]
#[case::conflict(409, "Conflict", false)]
#[case::broken(500, "InternalError", false)]
#[tokio::test]
async fn without_the_right_to_write_addresses_a_node_is_initialised_all_the_same(
    #[case] code: u16,
    #[case] reason: &str,
    #[case] goes_on: bool,
) {
    let clusters = Clusters::new(NodeControllerSettings::default());
    let (code, body) = failure(code, reason, &json!({"name": "vm-1"}));
    clusters.guest.answer(&format!("PATCH {NODE}/status"), code, body);
    for _ in 0..2 {
        assert_eq!(clusters.sync(&fresh()).await.is_ok(), goes_on);
    }
    let written: Vec<_> =
        clusters.guest.made("PATCH").into_iter().filter(|made| !made.call.ends_with("/status")).collect();
    assert_eq!(written.len(), if goes_on { 2 } else { 0 }, "each sync writes the rest, or nothing");
    for node in written {
        assert_eq!(node.body["metadata"]["resourceVersion"], "7", "no write before it has made another");
        assert_eq!(node.body["spec"], json!({"providerID": "kubevirt://vm-1", "taints": []}));
    }
}

/// The Node as its VM shows it.
fn initialised() -> Value {
    json!({
        "metadata": {"name": "vm-1", "labels": {ZONE_LABEL: "z1", "failure-domain.beta.kubernetes.io/zone": "z1"}},
        "spec": {"providerID": "kubevirt://vm-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}],
            "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

#[tokio::test]
async fn a_live_migration_moves_the_zone() {
    let clusters = Clusters::new(NodeControllerSettings::default());
    let place = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"name": "infra-2", "labels": {ZONE_LABEL: "z2"}}});
    clusters.infra.answer("GET /api/v1/nodes/infra-2", 200, place);
    let mut changes = clusters.controller.index.changes();
    clusters.controller.index.put(Vmi { host: Some("infra-2".into()), ..vmi() });
    assert!(changes.has_changed().unwrap() && changes.changed().await.is_ok(), "all Nodes are reconciled");
    clusters.sync(&initialised()).await.unwrap();
    let [moved] = &clusters.guest.made("PATCH")[..] else { panic!("not one write") };
    let labels = json!({ZONE_LABEL: "z2", "failure-domain.beta.kubernetes.io/zone": "z2"});
    assert_eq!(moved.body["metadata"]["labels"], labels);
    assert_eq!(moved.body["spec"], json!({}));
}

#[tokio::test]
async fn a_node_that_is_true_costs_no_write() {
    let clusters = Clusters::new(NodeControllerSettings::default());
    let next = clusters.sync(&initialised()).await.unwrap();
    assert!(clusters.guest.made("").is_empty());
    assert_eq!(next, Action::requeue(STATUS_UPDATE_FREQUENCY));
}

#[tokio::test]
async fn another_providers_node_costs_nothing_at_all() {
    let clusters = Clusters::new(NodeControllerSettings::default());
    let mut node = fresh();
    node["spec"] = json!({"providerID": "aws:///eu/i-1"});
    assert_eq!(clusters.sync(&node).await.unwrap(), Action::await_change());
    assert!(clusters.guest.made("").is_empty() && clusters.infra.made("").is_empty());
}

#[tokio::test]
async fn why_a_node_is_not_recognised_is_said_once() {
    let clusters = Clusters::new(NodeControllerSettings::default());
    let mut node = fresh();
    node["metadata"]["name"] = json!("stranger");
    for _ in 0..3 {
        clusters.sync(&node).await.unwrap();
    }
    let events = clusters.guest.made("POST");
    assert_eq!(events.len(), 1);
    assert_eq!(
        (&events[0].body["type"], &events[0].body["reason"]),
        (&json!("Warning"), &json!("InstanceNotFound"))
    );
    node["metadata"]["creationTimestamp"] = json!(Timestamp::now().to_string());
    node["metadata"]["name"] = json!("younger");
    clusters.sync(&node).await.unwrap();
    assert_eq!(clusters.guest.made("POST").len(), 1, "the VM may have come after the last read");
}

#[tokio::test]
async fn a_node_learns_nothing_of_anothers_vm() {
    let clusters = Clusters::new(NodeControllerSettings {
        cluster: Some("guest".parse().unwrap()),
        ..NodeControllerSettings::default()
    });
    clusters.controller.index.put(Vmi { cluster: Some("other".into()), ..vmi() });
    for _ in 0..2 {
        clusters.sync(&fresh()).await.unwrap();
    }
    assert!(clusters.guest.made("PATCH").is_empty(), "neither addresses nor zone nor provider id");
    let told = clusters.guest.made("POST");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].body["reason"], "InstanceDoubted");
    clusters.controller.index.put(Vmi { cluster: Some("guest".into()), ..vmi() });
    clusters.sync(&fresh()).await.unwrap();
    assert_eq!(clusters.guest.made("PATCH").len(), 2);
}

/// An operator may label the VM and not its template; then the VMI says nothing.
#[tokio::test]
async fn the_label_of_the_vm_itself_counts() {
    let clusters = Clusters::new(NodeControllerSettings {
        cluster: Some("guest".parse().unwrap()),
        ..NodeControllerSettings::default()
    });
    let label = |cluster: Option<&str>| {
        let cluster = cluster.map(str::to_owned);
        clusters.controller.index.replace([Vm { name: "vm-1".into(), cluster, ..Vm::default() }]);
    };
    label(Some("other"));
    clusters.sync(&fresh()).await.unwrap();
    assert!(clusters.guest.made("PATCH").is_empty(), "neither addresses nor zone nor provider id");
    assert_eq!(clusters.guest.made("POST")[0].body["reason"], "InstanceDoubted");
    label(Some("guest"));
    clusters.sync(&fresh()).await.unwrap();
    assert_eq!(clusters.guest.made("PATCH").len(), 2);
}

#[tokio::test]
async fn a_node_that_load_balancers_leave_out_is_told_once_until_it_is_mended() {
    const REAL: &str = "5d307ca9-b3ef-428c-8861-06e72d69f223";
    const COPIED: &str = "00000000-b3ef-428c-8861-06e72d69f223";
    let claiming = |uuid: &str| {
        let mut node = initialised();
        node["status"]["nodeInfo"] = json!({"systemUUID": uuid, "machineID": ""});
        node
    };
    let clusters = Clusters::new(NodeControllerSettings {
        balanced: Some("guest".parse().unwrap()),
        ..NodeControllerSettings::default()
    });
    clusters.controller.index.put(Vmi { uuid: SystemUuid::parse(REAL), ..vmi() });
    let said = || -> Vec<Value> {
        let made = clusters.guest.made("POST").into_iter();
        made.map(|event| event.body["message"].clone()).collect()
    };
    clusters.sync(&claiming(REAL)).await.unwrap();
    assert!(said().is_empty());
    for _ in 0..3 {
        clusters.sync(&claiming(COPIED)).await.unwrap();
    }
    let uuid = "load balancers leave this node out: it says that it is the VM vm-1, but the Node's system UUID (status.nodeInfo.systemUUID) is not the VM's";
    assert_eq!(said(), [uuid]);
    clusters.controller.index.put(Vmi { cluster: Some("other".into()), ..vmi() });
    clusters.sync(&claiming(REAL)).await.unwrap();
    assert!(said()[1].as_str().unwrap().ends_with("names another cluster, this one is \"guest\""));
    clusters.controller.index.put(Vmi { cluster: Some("guest".into()), ..vmi() });
    clusters.sync(&claiming(REAL)).await.unwrap();
    let controller = &clusters.controller;
    assert!(
        controller.complaints().is_empty() && controller.backoff.is_empty(),
        "nothing is kept of a Node without trouble"
    );
}

#[tokio::test]
async fn whom_others_balance_is_told_nothing() {
    let clusters = Clusters::new(NodeControllerSettings::default());
    clusters.controller.index.put(Vmi { cluster: Some("other".into()), ..vmi() });
    clusters.sync(&initialised()).await.unwrap();
    assert!(clusters.guest.made("POST").is_empty());
}

#[tokio::test]
async fn the_queue_is_counted_and_ends_with_the_controller() {
    let (metrics, mut registry) = (QueueMetrics::default(), Registry::default());
    metrics.register(&mut registry);
    let clusters = Clusters::counted(NodeControllerSettings::default(), &metrics);
    let nodes = json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "7"},
        "items": [fresh()]});
    clusters.guest.answer("GET /api/v1/nodes", 200, nodes);
    let (code, refusal) = failure(500, "InternalError", &json!({}));
    clusters.guest.answer(&format!("PATCH {NODE}/status"), code, refusal);
    let stop = CancellationToken::new();
    let running = tokio::spawn(clusters.controller.run(stop.clone()));
    let shown = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    };
    let failed = async {
        while !shown().contains("workqueue_retries_total{name=\"Nodes\"} 1\n") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), failed).await.unwrap();
    let text = shown();
    assert!(text.contains("workqueue_adds_total{name=\"Nodes\"} 1\n"), "{text}");
    assert!(text.contains("workqueue_depth{name=\"Nodes\"} 0\n"), "{text}");
    assert!(text.contains("workqueue_work_duration_seconds_count{name=\"Nodes\"} 1\n"), "{text}");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(30), running).await.unwrap().unwrap();
}

/// A guest cluster with `count` Nodes to initialise. Each write takes a moment, so that writes of several Nodes
/// overlap.
#[derive(Clone, Default)]
struct Busy {
    under_way: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    initialised: Arc<AtomicUsize>,
}

impl Busy {
    const WRITE: Duration = Duration::from_millis(20);

    fn client(&self, count: usize) -> Client {
        let names = (0..count).map(|number| format!("vm-{number}"));
        let nodes = names.map(|name| {
            let mut node = fresh();
            node["metadata"]["name"] = json!(name);
            node
        });
        let list = json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "7"},
            "items": nodes.collect::<Vec<_>>()});
        let busy = self.clone();
        Client::new(
            tower::service_fn(move |request: http::Request<Body>| {
                let (busy, list, (parts, _)) = (busy.clone(), list.clone(), request.into_parts());
                async move { busy.answer(&parts, &list).await }
            }),
            "default",
        )
    }

    async fn answer(
        &self,
        request: &http::request::Parts,
        list: &Value,
    ) -> Result<http::Response<Body>, tower::BoxError> {
        let path = request.uri.path();
        let body = if request.method == http::Method::PATCH {
            let now = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(now, Ordering::Relaxed);
            tokio::time::sleep(Self::WRITE).await;
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            if !path.ends_with("/status") {
                self.initialised.fetch_add(1, Ordering::Relaxed);
            }
            json!({"metadata": {"name": "vm", "resourceVersion": "8"}, "spec": {}})
        } else if request.uri.query().is_some_and(|query| query.contains("watch=true")) {
            std::future::pending().await
        } else if path == "/api/v1/nodes" {
            list.clone()
        } else {
            json!({"metadata": {}, "involvedObject": {}})
        };
        Ok(http::Response::new(Body::from(body.to_string().into_bytes())))
    }
}

#[rstest]
#[case::one_after_the_other(1, 1)]
#[case::zero_is_one(0, 1)]
#[case::forty(40, 40)]
#[tokio::test(start_paused = true)]
async fn at_most_so_many_nodes_are_written_at_a_time(#[case] concurrency: u16, #[case] most: usize) {
    const NODES: usize = 50;
    let (busy, clusters) = (Busy::default(), Clusters::new(NodeControllerSettings::default()));
    let infra = clusters.infra.client();
    let index = Arc::new(MachineIndex::default());
    let names = || (0..NODES).map(|number| format!("vm-{number}"));
    index.replace(names().map(|name| Vm { name, ..Vm::default() }));
    index.replace(names().map(|name| Vmi { name, ..vmi() }));
    let reads = InfraReads::new(&InfraCluster::over(infra, "hcp"));
    let feed = Feed::new(reads.clone(), Arc::clone(&index));
    let settings = NodeControllerSettings { concurrency, ..NodeControllerSettings::default() };
    let queue = QueueMetrics::default().queue("Nodes");
    let guest = watched(busy.client(NODES));
    let controller =
        NodeController::new(settings, guest, reads, (index, feed), NodeMetrics::default(), queue);
    let stop = CancellationToken::new();
    let running = tokio::spawn(controller.run(stop.clone()));
    let all = async {
        while busy.initialised.load(Ordering::Relaxed) < NODES {
            tokio::time::sleep(Busy::WRITE).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), all).await.unwrap();
    assert_eq!(busy.most.load(Ordering::Relaxed), most);
    stop.cancel();
    running.await.unwrap();
}

/// kubermatic/machine-controller#1923, k3s: another program sets the providerID before the CCM initialises the Node.
#[rstest]
#[case::by_uuid("kubermatic://kubevirt/0a0a", Some(UUID), Some(UUID), "Synced")]
#[case::k3s("k3s://vm-1", Some(UUID), Some(UUID), "Synced")]
#[case::another_vm(
    "k3s://vm-1",
    Some(UUID),
    Some("11111111-b3ef-428c-8861-06e72d69f223"),
    "ProviderIDForeign"
)]
#[case::by_name_only("k3s://vm-1", None, None, "ProviderIDForeign")]
#[tokio::test]
async fn a_node_with_another_schemes_provider_id_is_initialised_or_reported(
    #[case] provider_id: &str,
    #[case] of_node: Option<&str>,
    #[case] of_vm: Option<&str>,
    #[case] reason: &str,
) {
    let clusters = Clusters::new(NodeControllerSettings::default());
    clusters.controller.index.replace([Vmi { uuid: of_vm.and_then(SystemUuid::parse), ..vmi() }]);
    let mut node = fresh();
    node["spec"]["providerID"] = json!(provider_id);
    node["status"] = json!({"nodeInfo": {"systemUUID": of_node.unwrap_or_default()}});
    clusters.sync(&node).await.unwrap();
    let patches = clusters.guest.made("PATCH");
    assert_eq!(!patches.is_empty(), reason == "Synced", "{patches:?}");
    assert!(patches.iter().all(|patch| patch.body["spec"].get("providerID").is_none()), "it stays");
    let events: Vec<_> = clusters.guest.made("POST").iter().map(|it| it.body["reason"].clone()).collect();
    assert_eq!(events, [json!(reason)]);
}
