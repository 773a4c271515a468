//! The calls on the wire: paths, verbs, headers, pages, pauses, errors; and the poller.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{Request, Response};
use infra::{Class, Infra, InfraSettings, NewDataVolume, ObjectName, PatchOp, VirtualMachine, WriteRate};
use kube::client::Body;
use serde_json::{Value, json};
use serving::Tasks;

/// Method, URL and content type; `Accept`; body.
type Call = (String, String, Vec<u8>);

/// Gives the prepared answers in turn, then a 404 about the object of the URL.
#[derive(Clone, Default)]
struct Api {
    answers: Arc<Mutex<VecDeque<Response<Vec<u8>>>>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Api {
    fn then(self, code: u16, headers: &[(&str, &str)], body: &Value) -> Self {
        let mut answer = Response::builder().status(code);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
        self.answers.lock().unwrap().push_back(answer.body(body).unwrap());
        self
    }

    /// Adds an answer that is no single JSON value.
    fn then_text(self, code: u16, body: String) -> Self {
        let answer = Response::builder().status(code).body(body.into_bytes()).unwrap();
        self.answers.lock().unwrap().push_back(answer);
        self
    }

    fn infra(&self) -> Infra {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let accept = parts.headers["accept"].to_str().unwrap().to_owned();
                let content = parts.headers.get("content-type").map(|content| content.to_str().unwrap());
                let content = content.map(|content| format!(" [{content}]")).unwrap_or_default();
                // Drops the `?` of an empty query, and the `&` before the first parameter.
                let uri = parts.uri.to_string().replace("?&", "?");
                let call = format!("{} {}{content}", parts.method, uri.trim_end_matches('?'));
                let [.., kind, object] = parts.uri.path().split('/').collect::<Vec<_>>()[..] else {
                    panic!()
                };
                let absent = json!({"kind": "Status", "code": 404, "reason": "NotFound",
                    "details": {"name": object, "kind": kind}})
                .to_string();
                let body = body.collect_bytes().await.unwrap().to_vec();
                api.calls.lock().unwrap().push((call, accept, body));
                let missing = || Response::builder().status(404).body(absent.clone().into_bytes()).unwrap();
                let answer = api.answers.lock().unwrap().pop_front().unwrap_or_else(missing);
                Ok::<_, std::io::Error>(answer.map(Body::from))
            }
        });
        let settings = InfraSettings {
            kubeconfig: None,
            namespace: "infra".into(),
            labels: [("csi-driver/cluster".to_owned(), "tenant".to_owned())].into(),
            volume_prefix: "pvc".into(),
            vm_labels: std::collections::BTreeMap::new(),
            write_rate: WriteRate::default(),
        };
        Infra::from_client(kube::Client::new(service, "infra"), settings, &Tasks::default()).unwrap()
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(call, ..)| call.clone()).collect()
    }

    fn body(&self, call: usize) -> Value {
        serde_json::from_slice(&self.calls.lock().unwrap()[call].2).unwrap()
    }
}

fn name(name: &str) -> ObjectName {
    ObjectName::parse(name).unwrap()
}

fn our_volume() -> Value {
    json!({"metadata": {"name": "pvc-1", "uid": "u-1", "labels": {"csi-driver/cluster": "tenant"}}})
}

#[tokio::test]
async fn hotplug_calls_are_what_virt_api_wants() {
    let api = Api::default().then(200, &[], &our_volume()).then(202, &[], &Value::Null).then(
        202,
        &[],
        &Value::Null,
    );
    let infra = api.infra();
    let volume = infra.data_volume(&name("pvc-1")).await.unwrap().unwrap();
    let volume = infra.guard().admit(volume).unwrap();
    let disk = infra::HotplugDisk { serial: "u-1".into(), bus: "scsi" };
    infra.add_volume(&name("vm1"), &volume, &disk).await.unwrap();
    infra.remove_volume(&name("vm1"), &name("pvc-1")).await.unwrap();
    let path = "/apis/subresources.kubevirt.io/v1/namespaces/infra/virtualmachines/vm1";
    assert_eq!(
        api.calls()[1..],
        [
            format!("PUT {path}/addvolume [application/json]"),
            format!("PUT {path}/removevolume [application/json]")
        ]
    );
    assert_eq!(
        api.body(1),
        json!({
            "name": "pvc-1",
            "disk": {"name": "pvc-1", "serial": "u-1", "disk": {"bus": "scsi"}},
            "volumeSource": {"dataVolume": {"name": "pvc-1"}},
        })
    );
    assert_eq!(api.body(2), json!({"name": "pvc-1"}));
    assert!(api.calls.lock().unwrap().iter().all(|(_, accept, _)| accept.contains("*/*")));
}

#[tokio::test]
async fn a_patch_tests_our_labels_first() {
    let api = Api::default().then(200, &[], &our_volume());
    api.infra().patch_claim(&name("pvc-1"), vec![PatchOp::remove("/x")]).await.unwrap();
    assert_eq!(
        api.calls(),
        ["PATCH /api/v1/namespaces/infra/persistentvolumeclaims/pvc-1 [application/json-patch+json]"]
    );
    assert_eq!(
        api.body(0),
        json!([
            {"op": "test", "path": "/metadata/labels/csi-driver~1cluster", "value": "tenant"},
            {"op": "remove", "path": "/x"},
        ])
    );
}

#[tokio::test]
async fn a_delete_is_of_this_very_object() {
    let api = Api::default().then(200, &[], &our_volume()).then(409, &[], &json!({"message": "uid differs"}));
    let infra = api.infra();
    let volume = infra.guard().admit(infra.data_volume(&name("pvc-1")).await.unwrap().unwrap()).unwrap();
    let error = infra.delete_data_volume(&name("pvc-1"), &volume).await.unwrap_err();
    assert_eq!(error.class(), Class::Conflict);
    assert_eq!(api.body(1), json!({"preconditions": {"uid": "u-1"}}));
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let page = |names: &[&str], next: &str| {
        let items: Vec<_> = names.iter().map(|name| json!({"metadata": {"name": name}})).collect();
        json!({"metadata": {"continue": next}, "items": items})
    };
    let api = Api::default()
        .then(200, &[], &page(&["a", "b"], "to/ken="))
        .then(200, &[], &page(&["c"], ""))
        .then(200, &[], &json!({"metadata": {}, "items": null}));
    let census = api.infra().census().await.unwrap();
    assert_eq!(census.vmis.len(), 3);
    assert!(census.vms.is_empty());
    let path = "GET /apis/kubevirt.io/v1/namespaces/infra";
    assert_eq!(
        api.calls(),
        [
            format!("{path}/virtualmachineinstances?limit=100"),
            format!("{path}/virtualmachineinstances?limit=100&continue=to%2Fken%3D"),
            format!("{path}/virtualmachines?limit=100"),
        ]
    );
}

#[tokio::test]
async fn a_read_waits_out_a_pause_and_a_change_does_not_go_out_during_one() {
    let throttled = json!({"message": "slow down", "code": 429});
    let api = Api::default().then(429, &[("retry-after", "1")], &throttled).then(200, &[], &our_volume());
    let infra = api.infra();
    let began = Instant::now();
    let volume = name("pvc-1");
    let (read, change) = tokio::join!(infra.data_volume(&volume), async {
        while api.calls().is_empty() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        infra.remove_volume(&name("vm1"), &volume).await
    });
    assert!(read.unwrap().is_some());
    assert!(began.elapsed() >= Duration::from_secs(1));
    let change = change.unwrap_err();
    assert_eq!(change.class(), Class::Throttled);
    assert!(change.retry_after().is_some_and(|pause| pause <= Duration::from_secs(1)));
    assert_eq!(api.calls().len(), 2, "the change was not sent");
}

/// Gets the VM `vm1`.
async fn vm(infra: &Infra) -> Result<Option<VirtualMachine>, infra::Error> {
    let (_, vm) = infra.machine(&name("vm1")).vm(tokio::time::Instant::now()).await?;
    Ok((*vm).clone())
}

#[tokio::test]
async fn errors_keep_code_and_words_also_of_a_proxy() {
    let api = Api::default()
        .then(500, &[], &json!({"kind": "Status", "message": "failed calling webhook", "code": 500}))
        .then(503, &[], &Value::Null);
    let infra = api.infra();
    let error = vm(&infra).await.unwrap_err();
    assert_eq!(error.to_string(), "get virtualmachines vm1: failed calling webhook (500)");
    assert_eq!(
        vm(&infra).await.unwrap_err().to_string(),
        "get virtualmachines vm1: Service Unavailable (503)"
    );
    assert!(vm(&infra).await.unwrap().is_none(), "404 is an answer, not a failure");
}

#[tokio::test]
async fn a_404_that_does_not_prove_absence_is_a_failure() {
    let proof = |name: &str, kind: &str, reason: &str| json!({"kind": "Status", "code": 404, "reason": reason, "details": {"name": name, "kind": kind}});
    let api = Api::default()
        .then(404, &[], &json!("404 page not found"))
        .then_text(404, "<html><body>404 Not Found</body></html>".into())
        .then(404, &[], &proof("vm2", "virtualmachines", "NotFound"))
        .then(404, &[], &proof("vm1", "nodes", "NotFound"))
        .then(404, &[], &proof("vm1", "virtualmachines", ""));
    let infra = api.infra();
    for _ in 0..5 {
        assert_eq!(vm(&infra).await.unwrap_err().class(), Class::Server);
    }
    assert!(vm(&infra).await.unwrap().is_none(), "the API server says so itself");
}

#[tokio::test]
async fn a_create_sends_the_object_to_the_collection() {
    let api = Api::default().then(201, &[], &our_volume());
    let new = NewDataVolume {
        name: name("pvc-1"),
        annotations: [].into(),
        size: 5,
        storage_class: None,
        access_modes: Vec::new(),
        source: infra::NewSource::Blank,
    };
    api.infra().create_data_volume(&new).await.unwrap();
    assert_eq!(
        api.calls(),
        ["POST /apis/cdi.kubevirt.io/v1beta1/namespaces/infra/datavolumes [application/json]"]
    );
    assert_eq!(api.body(0)["metadata"]["labels"], json!({"csi-driver/cluster": "tenant"}));
}

#[tokio::test]
async fn calls_are_counted_without_object_names() {
    let api = Api::default().then(200, &[], &our_volume());
    let infra = api.infra();
    let mut registry = prometheus_client::registry::Registry::default();
    infra.register(&mut registry);
    infra.data_volume(&name("pvc-1")).await.unwrap();
    vm(&infra).await.unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(
        text.contains(r#"kubevirt_csi_infra_requests_total{verb="get",resource="datavolumes",code="200"} 1"#),
        "{text}"
    );
    assert!(text.contains(
        r#"kubevirt_csi_infra_requests_total{verb="get",resource="virtualmachines",code="404"} 1"#
    ));
    let timed = r#"kubevirt_csi_infra_request_duration_seconds_count{verb="get",resource="datavolumes"} 1"#;
    assert!(text.contains(timed), "{text}");
    assert!(!text.contains("pvc-1") && !text.contains("vm1"));
}

/// A VM or VMI that can't be read, and which names a volume somewhere.
fn odd(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"volumes": 7, "template": {"spec": 7, "x": [{"y": "pvc-1"}]}}})
}

#[tokio::test]
async fn a_census_goes_on_past_a_vm_that_cannot_be_read_which_may_have_what_it_mentions() {
    let good = json!({"metadata": {"name": "good"}, "spec": {"template": {"spec": {"volumes": [
        {"name": "pvc-2", "dataVolume": {"name": "pvc-2", "hotpluggable": true}}]}}}});
    for (vmis, vms) in
        [([json!({}), odd("vm1")], [good.clone(), json!({})]), ([json!({}), json!({})], [odd("vm1"), good])]
    {
        let api =
            Api::default().then(200, &[], &json!({"items": vmis})).then(200, &[], &json!({"items": vms}));
        let infra = api.infra();
        let census = infra.census().await.unwrap();
        assert!(census.is_unread(&name("vm1")) && !census.is_unread(&name("good")));
        assert_eq!(census.holders(&name("pvc-1")), [name("vm1")], "law: not sure that it is free");
        assert_eq!(census.holders(&name("pvc-2")), [name("good")]);
        assert!(census.holders(&name("pvc-3")).is_empty());
        let (mut registry, mut text) = (prometheus_client::registry::Registry::default(), String::new());
        infra.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(
            text.contains("kubevirt_csi_infra_unreadable_objects_total{resource=\"virtualmachine"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_vm_without_a_name_and_without_sense_proves_nothing() {
    let api = Api::default().then(200, &[], &json!({"items": [{"metadata": 7}]}));
    let error = api.infra().census().await.unwrap_err();
    assert!(
        error.to_string().starts_with("list virtualmachineinstances: the answer can't be read"),
        "{error}"
    );
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_does_not_hide_the_others() {
    let items = json!([{"metadata": {"name": "a"}}, {"metadata": {"name": "odd"}, "status": 7}, {"metadata": {"name": "b"}}]);
    let api = Api::default().then(200, &[], &json!({"items": items}));
    let listed = api.infra().volume_snapshots().await.unwrap();
    assert_eq!(listed.iter().map(|it| it.metadata.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test]
async fn a_vmi_that_cannot_be_read_is_an_error_for_those_alone_who_wait_for_it() {
    let good = json!({"metadata": {"name": "b"}, "status": {"phase": "Running"}});
    let api = Api::default().then(200, &[], &json!({"items": [odd("a"), good]}));
    let infra = api.infra();
    let (mut a, mut b) = (infra.wait_for_vmi(&name("a")), infra.wait_for_vmi(&name("b")));
    let (a, b) = tokio::join!(a.next(), b.next());
    assert!(a.unwrap_err().to_string().contains("virtualmachineinstances a: the answer can't be read"));
    assert_eq!(b.unwrap().unwrap().name, "b");

    let api = Api::default().then_text(
        200,
        format!("{}\n{}", json!({"type": "ADDED", "object": odd("a")}), initial_events(&good)),
    );
    let infra = api.infra();
    infra.use_granted(&watch_is_granted());
    let (mut a, mut b) = (infra.wait_for_vmi(&name("a")), infra.wait_for_vmi(&name("b")));
    let (a, b) = tokio::join!(a.next(), b.next());
    assert!(a.unwrap_err().to_string().contains("virtualmachineinstances a: the answer can't be read"));
    assert_eq!(b.unwrap().unwrap().name, "b");
    assert_eq!(api.calls().len(), 1, "the watch goes on");
}

#[tokio::test]
async fn the_poller_gets_one_vmi_lists_several_and_stops_with_its_waiters() {
    let vmi = |name: &str| json!({"metadata": {"name": name}, "status": {"phase": "Running"}});
    let api = Api::default()
        .then(200, &[], &vmi("a"))
        .then(200, &[], &json!({"items": [vmi("a"), vmi("c")]}))
        .then(500, &[], &json!({"message": "boom"}));
    let infra = api.infra();
    let mut a = infra.wait_for_vmi(&name("a"));
    assert_eq!(a.next().await.unwrap().unwrap().name, "a");
    let mut b = infra.wait_for_vmi(&name("b"));
    let (seen_a, seen_b) = tokio::join!(a.next(), b.next());
    assert_eq!(seen_a.unwrap().unwrap().name, "a");
    assert!(seen_b.unwrap().is_none(), "an instance that the list lacks does not exist");
    drop(b);
    assert_eq!(a.next().await.unwrap_err().class(), Class::Server);
    drop(a);
    let calls = api.calls();
    assert!(calls[0].contains("virtualmachineinstances/a"));
    assert!(calls[1].contains("virtualmachineinstances?limit=100"));
    assert!(calls.iter().all(|call| !call.contains("resourceVersion") && !call.contains("watch")));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(api.calls().len(), calls.len(), "nobody waits, nothing is called");
}

/// The lines of a streaming list in which `vmi` is the only object.
fn initial_events(vmi: &Value) -> String {
    let end = json!({"type": "BOOKMARK", "object": {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}},
    }});
    format!("{}\n{end}\n", json!({"type": "ADDED", "object": vmi}))
}

fn watch_is_granted() -> infra::Rights {
    serde_json::from_value(json!({"status": {"incomplete": false, "resourceRules": [
        {"verbs": ["get", "watch"], "apiGroups": ["kubevirt.io"], "resources": ["virtualmachineinstances"]},
    ]}}))
    .unwrap()
}

#[tokio::test]
async fn where_watching_is_granted_one_call_shows_what_there_is_and_what_changes() {
    let vmi = |phase: &str| json!({"metadata": {"name": "a"}, "status": {"phase": phase}});
    let changed = json!({"type": "MODIFIED", "object": vmi("Running")});
    let events = initial_events(&vmi("Scheduled")) + &format!("{changed}\n");
    let api = Api::default().then_text(200, events);
    let infra = api.infra();
    infra.use_granted(&watch_is_granted());
    let mut a = infra.wait_for_vmi(&name("a"));
    loop {
        // A slow waiter gets the latest state only.
        if a.next().await.unwrap().unwrap().phase == infra::Phase::Running {
            break;
        }
    }
    let calls = api.calls();
    assert!(calls[0].contains("watch=true&") && calls[0].contains("sendInitialEvents=true"), "{calls:?}");
    assert!(calls[0].contains("fieldSelector=metadata.name%3Da"), "{calls:?}");
}

#[tokio::test]
async fn an_instance_that_the_initial_events_lack_does_not_exist() {
    let api = Api::default().then_text(200, initial_events(&json!({"metadata": {"name": "other"}})));
    let infra = api.infra();
    infra.use_granted(&watch_is_granted());
    assert!(infra.wait_for_vmi(&name("a")).next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_refused_watch_is_replaced_by_looks_for_good() {
    let vmi = json!({"metadata": {"name": "a"}, "status": {"phase": "Running"}});
    let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "reason": "Invalid",
        "message": "sendInitialEvents: Forbidden: the WatchList feature gate is not enabled"});
    let api = Api::default().then(422, &[], &refusal).then(200, &[], &vmi).then(200, &[], &vmi);
    let infra = api.infra();
    infra.use_granted(&watch_is_granted());
    let mut a = infra.wait_for_vmi(&name("a"));
    assert_eq!(a.next().await.unwrap().unwrap().name, "a");
    assert_eq!(a.next().await.unwrap().unwrap().name, "a");
    let watches = api.calls().iter().filter(|call| call.contains("watch=true")).count();
    assert_eq!(watches, 1, "{:?}", api.calls());
}

#[tokio::test]
async fn a_kubeconfig_that_changed_is_loaded_again_after_a_401() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let write = |token: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
    };
    write("old");
    // Answers 401 unless the token is the new one; one request per connection.
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            let head = String::from_utf8_lossy(&request).to_lowercase();
            let (code, body) = if head.contains("authorization: bearer new") {
                ("200 OK", r#"{"metadata": {"name": "vm1"}}"#)
            } else {
                ("401 Unauthorized", "{}")
            };
            let answer = format!(
                "HTTP/1.1 {code}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let settings = InfraSettings {
        kubeconfig: Some(path.clone()),
        namespace: "infra".into(),
        labels: [("a".to_owned(), "1".to_owned())].into(),
        volume_prefix: "pvc".into(),
        vm_labels: std::collections::BTreeMap::new(),
        write_rate: WriteRate::default(),
    };
    let infra = Infra::connect(settings, &Tasks::default()).await.unwrap();
    assert_eq!(vm(&infra).await.unwrap_err().class(), Class::Unauthorized);
    write("new");
    assert_eq!(vm(&infra).await.unwrap().unwrap().name, "vm1");
}
