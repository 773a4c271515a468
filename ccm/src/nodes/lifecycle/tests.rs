use super::*;
use crate::{
    access::InfraCluster,
    fake_api::{FakeApi, failure},
    guest::nodes::{Claims, NO_SCHEDULE, Ready, UNINITIALIZED_TAINT},
    infra::machines::Vm,
    nodes::recognise::Key,
    wire::system_uuid::SystemUuid,
};
use k8s_openapi::api::core::v1::Taint;
use rstest::rstest;
use serde_json::{Value, json};

const VM: &str = "GET /apis/kubevirt.io/v1/namespaces/hcp/virtualmachines/vm-1";
const VMI: &str = "GET /apis/kubevirt.io/v1/namespaces/hcp/virtualmachineinstances/vm-1";
const VMS: &str = "GET /apis/kubevirt.io/v1/namespaces/hcp/virtualmachines";
const VMIS: &str = "GET /apis/kubevirt.io/v1/namespaces/hcp/virtualmachineinstances";
const NODE: &str = "/api/v1/nodes/w1";
const OTHER_UUID: &str = "11111111-0000-4000-8000-000000000001";

struct Clusters {
    guest: FakeApi,
    infra: FakeApi,
}

impl Clusters {
    fn new() -> Self {
        let (guest, infra) = (FakeApi::default(), FakeApi::default());
        let (delete, patch) = (format!("DELETE {NODE}"), format!("PATCH {NODE}"));
        guest.answer(&delete, 200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}));
        guest.answer(&patch, 200, json!({"metadata": {"name": "w1"}, "spec": {}}));
        guest.answer(
            "POST /api/v1/namespaces/default/events",
            201,
            json!({"metadata": {}, "involvedObject": {}}),
        );
        Self { guest, infra }
    }

    /// Reconciles with an index that has no VM.
    async fn sync(&self, node: &GuestNode) -> Result<bool, CallError> {
        self.sync_with(node, &Snapshot::of(vec![], vec![])).await
    }

    async fn sync_with(&self, node: &GuestNode, seen: &Snapshot) -> Result<bool, CallError> {
        let lifecycle = Lifecycle::new(&self.guest.client(), self.reads(), NodeMetrics::default());
        lifecycle.sync(node, &identify(&node.claims, seen.known()), seen).await
    }

    fn reads(&self) -> InfraReads {
        InfraReads::new(&InfraCluster::over(self.infra.client(), "hcp"))
    }

    fn events(&self) -> Vec<String> {
        let made = self.guest.made("POST");
        made.iter().map(|made| made.body["reason"].as_str().unwrap().to_owned()).collect()
    }

    fn list(&self, what: &str, items: &Value) {
        self.infra.answer(
            what,
            200,
            json!({"metadata": {}, "items": items, "kind": "List", "apiVersion": "v1"}),
        );
    }
}

fn node(provider_id: &str, ready: Ready) -> GuestNode {
    let claims = Claims { name: "w1".into(), provider_id: provider_id.into(), ..Claims::default() };
    GuestNode { uid: "uid-1".into(), resource_version: "7".into(), ready, claims, ..GuestNode::default() }
}

/// A Node that kubelet registered, with a VM that does not exist.
fn stranger() -> GuestNode {
    let taint = Taint { key: UNINITIALIZED_TAINT.into(), effect: NO_SCHEDULE.into(), ..Taint::default() };
    let mut node = GuestNode { taints: vec![taint], ..node("", Ready::Unknown) };
    node.claims.uuid = SystemUuid::parse("33333333-0000-4000-8000-000000000003");
    node
}

#[tokio::test]
async fn a_node_whose_vm_is_gone_is_deleted_as_it_was_seen() {
    let clusters = Clusters::new();
    assert!(clusters.sync(&node("kubevirt://vm-1", Ready::Unknown)).await.unwrap());
    let deleted = clusters.guest.made("DELETE");
    assert_eq!(deleted.len(), 1);
    assert_eq!(deleted[0].body["preconditions"], json!({"uid": "uid-1", "resourceVersion": "7"}));
    assert_eq!(clusters.events(), ["DeletingNode"]);
    let reads: Vec<_> = clusters.infra.made("GET").into_iter().map(|made| made.call).collect();
    assert_eq!(reads, [VMI, VM], "read right before, the instance first");
}

#[rstest]
#[case::vm_is_there(VM, (200, json!({"metadata": {"name": "vm-1"}, "spec": {"runStrategy": "Always"}})), true)]
#[case::instance_is_there(VMI, (200, json!({"metadata": {"name": "vm-1"}, "spec": {}, "status": {"phase": "Running"}})), true)]
#[case::not_served(VM, failure(404, "NotFound", &json!({})), false)]
#[case::page_of_a_proxy(VMI, (404, json!("404 page not found")), false)]
#[case::forbidden(VM, failure(403, "Forbidden", &json!({"name": "vm-1"})), false)]
#[case::unauthorized(VMI, failure(401, "Unauthorized", &json!({})), false)]
#[case::broken(VM, failure(500, "InternalError", &json!({"name": "vm-1"})), false)]
#[case::throttled(VMI, failure(429, "TooManyRequests", &json!({"name": "vm-1"})), false)]
#[case::no_object(VM, (200, json!("half an ans")), false)]
#[tokio::test]
async fn whatever_is_no_proof_of_absence_deletes_nothing(
    #[case] read: &str,
    #[case] (code, body): (u16, Value),
    #[case] is_answer: bool,
) {
    let clusters = Clusters::new();
    clusters.infra.answer(read, code, body);
    let result = clusters.sync(&node("kubevirt://vm-1", Ready::Unknown)).await;
    assert_eq!(result.is_ok(), is_answer, "a failure is told");
    assert!(!result.unwrap_or(false));
    assert!(clusters.guest.made("DELETE").is_empty() && clusters.events().is_empty());
}

#[rstest]
#[case::ready(node("kubevirt://vm-1", Ready::True))]
#[case::another_providers(node("aws:///eu/i-1", Ready::Unknown))]
#[case::no_provider_id(node("", Ready::Unknown))]
#[tokio::test]
async fn a_node_that_is_none_of_our_business_costs_no_call(#[case] node: GuestNode) {
    let clusters = Clusters::new();
    assert!(!clusters.sync(&node).await.unwrap());
    assert!(clusters.infra.made("").is_empty() && clusters.guest.made("").is_empty());
}

#[tokio::test]
async fn a_stopped_vm_taints_its_node() {
    let clusters = Clusters::new();
    let vm = Vm { name: "vm-1".into(), strategy: kubevirt::RunStrategy::Halted, ..Vm::default() };
    let seen = Snapshot::of(vec![vm], vec![]);
    assert!(!clusters.sync_with(&node("kubevirt://vm-1", Ready::Unknown), &seen).await.unwrap());
    let patched = clusters.guest.made("PATCH");
    assert_eq!(patched[0].body["spec"]["taints"][0]["key"], "node.cloudprovider.kubernetes.io/shutdown");
    assert_eq!(patched[0].body["metadata"], json!({"resourceVersion": "7", "uid": "uid-1"}));
    assert!(clusters.guest.made("DELETE").is_empty());
}

#[tokio::test]
async fn an_uninitialised_node_that_is_no_vm_is_deleted_after_both_lists_were_read_again() {
    let clusters = Clusters::new();
    let other = json!({"metadata": {"name": "vm-2"}, "spec": {"domain": {"firmware": {"uuid": OTHER_UUID}}}});
    clusters.list(VMIS, &json!([other]));
    clusters.list(VMS, &json!([]));
    assert!(clusters.sync(&stranger()).await.unwrap());
    assert_eq!(clusters.guest.made("DELETE").len(), 1);
}

#[rstest]
#[case::its_uuid(json!({"name": "vm-2"}), "33333333-0000-4000-8000-000000000003")]
#[case::its_name(json!({"name": "w1"}), OTHER_UUID)]
#[case::perhaps(json!({"name": "vm-2"}), "")]
#[tokio::test]
async fn it_stays_where_the_lists_show_a_vm_that_it_is_or_may_be(#[case] meta: Value, #[case] uuid: &str) {
    let clusters = Clusters::new();
    let domain = json!({"domain": {"firmware": {"uuid": uuid}}});
    clusters.list(VMIS, &json!([]));
    clusters.list(VMS, &json!([{"metadata": meta, "spec": {"template": {"spec": domain}}}]));
    assert!(!clusters.sync(&stranger()).await.unwrap());
    assert!(clusters.guest.made("DELETE").is_empty());
}

#[tokio::test]
async fn it_stays_where_one_of_the_lists_fails() {
    for (failing, other) in [(VMS, VMIS), (VMIS, VMS)] {
        let clusters = Clusters::new();
        clusters.list(other, &json!([]));
        let (code, body) = failure(403, "Forbidden", &json!({}));
        clusters.infra.answer(failing, code, body);
        clusters.sync(&stranger()).await.unwrap_err();
        assert!(clusters.guest.made("DELETE").is_empty(), "{failing}");
    }
}

#[tokio::test]
async fn a_node_that_changed_meanwhile_stays_without_a_warning() {
    let clusters = Clusters::new();
    let (code, body) = failure(409, "Conflict", &json!({"name": "w1"}));
    clusters.guest.answer(&format!("DELETE {NODE}"), code, body);
    let error = clusters.sync(&node("kubevirt://vm-1", Ready::Unknown)).await.unwrap_err();
    assert!(error.is_conflict());
    assert_eq!(clusters.events(), ["DeletingNode"]);
    let (code, body) = failure(403, "Forbidden", &json!({"name": "w1"}));
    clusters.guest.answer(&format!("DELETE {NODE}"), code, body);
    clusters.sync(&node("kubevirt://vm-1", Ready::Unknown)).await.unwrap_err();
    assert_eq!(clusters.events().last().map(String::as_str), Some("DeletingNodeFailed"));
}

#[test]
fn a_name_alone_puts_no_initialised_node_at_stake() {
    let recognised = Recognition::Vm { id: ProviderId::of("vm-1").unwrap(), by: Key::Name };
    let nothing = Snapshot::of(vec![], vec![]);
    assert_eq!(node_vm(&node("", Ready::Unknown), &recognised, &nothing), NodeVm::Undecided);
}

/// A VM that can't be read exists: if it were left out of the list, its Node would have no VM and be deleted.
#[rstest]
#[case::of_vms(VMS, VMIS)]
#[case::of_instances(VMIS, VMS)]
#[tokio::test]
async fn a_vm_that_cannot_be_read_is_not_absent(#[case] odd: &str, #[case] other: &str) {
    let clusters = Clusters::new();
    clusters.list(other, &json!([]));
    clusters.list(odd, &json!([{"metadata": {"name": "vm-9", "uid": "u"}, "spec": 7, "status": 7}]));
    let everything = clusters.reads().everything().await.unwrap();
    let known = everything.known();
    let names = [known.vms.unwrap().keys().next(), known.vmis.unwrap().keys().next()];
    assert!(names.iter().flatten().any(|name| *name == "vm-9"));
    let claims = Claims { name: "w1".into(), uuid: SystemUuid::parse(OTHER_UUID), ..Claims::default() };
    assert_eq!(identify(&claims, known), Recognition::Unidentified, "not: no VM");
}
