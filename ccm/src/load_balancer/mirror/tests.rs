//! Each field of the mirror, and that a mirror that was written differs in nothing.

use super::*;
use crate::{config::policy::Networks, guest_names::CLUSTER_NAME_LABEL, handover::EndpointChoice};
use rstest::rstest;

const UID: &str = "0e4c1a52-9f3b-4a6d-8c21-6b1de0a9f7c3";

fn identity() -> GuestLabels {
    GuestLabels { cluster: "guest".parse().unwrap(), infra_labels: BTreeMap::new(), former: BTreeMap::new() }
}

fn guest(spec: &Value) -> GuestService {
    let mut object = json!({
        "metadata": { "name": "web", "namespace": "shop", "uid": UID,
            "annotations": { LAST_APPLIED: "{}", "metallb.io/address-pool": "public" } },
        "spec": {
            "type": "LoadBalancer", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": "web", "nodePort": 30080 }],
        },
    });
    map(&mut object["spec"]).extend(spec.as_object().unwrap().clone());
    serde_json::from_value(object).unwrap()
}

fn mirror(guest: &GuestService, existing: Option<&InfraService>) -> Mirror {
    Mirror::of(guest, existing, &identity(), EndpointSource::default(), &GuestPolicy::default(), false)
}

fn read(object: &Value) -> InfraService {
    serde_json::from_value(object.clone()).unwrap()
}

/// The object that the upstream cloud provider created for [`guest`], as infra's API returns it.
fn left_by_the_reference(spec: &Value, own_annotations: &[&str]) -> Value {
    let own: Map<String, Value> = own_annotations.iter().map(|key| (format!("f:{key}"), json!({}))).collect();
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": infra_name(UID), "namespace": "hcp", "resourceVersion": "7", "uid": "infra-uid",
            "labels": { CLUSTER_NAME_LABEL: "guest", "cluster.x-k8s.io/tenant-service-name": "web",
                "cluster.x-k8s.io/tenant-service-namespace": "shop", "added-by": "infra" },
            "annotations": { LAST_APPLIED: "{}", "metallb.io/address-pool": "old", "gone": "x",
                "metallb.io/ip-allocated-from-pool": "old" },
            "managedFields": [
                { "manager": "kubevirt-cloud-controller-manager", "operation": "Update", "fieldsType": "FieldsV1",
                  "fieldsV1": { "f:metadata": { "f:annotations": own } } },
                { "manager": "controller", "operation": "Update", "fieldsType": "FieldsV1",
                  "fieldsV1": { "f:metadata": { "f:annotations": { "f:metallb.io/ip-allocated-from-pool": {} } } } },
            ],
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"],
            "sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "allocateLoadBalancerNodePorts": true,
            "selector": { "cluster.x-k8s.io/cluster-name": "guest", "cluster.x-k8s.io/role": "worker" },
            "ports": [
                { "name": "http", "protocol": "TCP", "port": 80, "targetPort": 30080, "nodePort": 31000 },
                { "name": "old", "protocol": "TCP", "port": 81, "targetPort": 30081, "nodePort": 31001 },
            ],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.7" }] } },
    });
    map(&mut object["spec"]).extend(spec.as_object().unwrap().clone());
    object
}

/// Turns `object` into the mirror and returns it.
fn made(guest: &GuestService, object: &Value) -> Value {
    let infra = read(object);
    let mut object = object.clone();
    let mirror = mirror(guest, Some(&infra));
    mirror.write_into(&mut object, &infra);
    let left = mirror.differences(&read(&object));
    assert!(left.is_empty(), "{left:?} differ still in {object:#}");
    object
}

#[test]
fn a_new_mirror_is_the_references_and_more() {
    let wanted = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "a0e4c1a529f3b4a6d8c216b1de0a9f7c",
            "labels": { "cluster.x-k8s.io/cluster-name": "guest", "cluster.x-k8s.io/tenant-service-name": "web",
                "cluster.x-k8s.io/tenant-service-namespace": "shop" },
            "annotations": { "metallb.io/address-pool": "public", "cluster.x-k8s.io/tenant-service-uid": UID },
        },
        "spec": {
            "type": "LoadBalancer", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "selector": { "cluster.x-k8s.io/cluster-name": "guest", "cluster.x-k8s.io/role": "worker" },
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 30080 }],
        },
    });
    assert_eq!(mirror(&guest(&json!({})), None).new_object(), wanted);
}

#[test]
fn every_field_of_the_guest_is_mirrored() {
    let spec = json!({
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 32111, "loadBalancerIP": "192.0.2.9",
        "loadBalancerSourceRanges": ["198.51.100.0/24"], "ipFamilies": ["IPv6", "IPv4"],
        "ipFamilyPolicy": "RequireDualStack", "allocateLoadBalancerNodePorts": true, "internalTrafficPolicy": "Local",
        "ports": [
            { "name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053 },
            { "name": "h2", "protocol": "TCP", "port": 443, "nodePort": 30443, "appProtocol": "kubernetes.io/h2c" },
        ],
    });
    let made = mirror(&guest(&spec), None).new_object()["spec"].clone();
    let wanted = json!({
        "type": "LoadBalancer", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
        "externalTrafficPolicy": "Local", "loadBalancerIP": "192.0.2.9",
        "loadBalancerSourceRanges": ["198.51.100.0/24"], "ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack",
        "selector": { "cluster.x-k8s.io/cluster-name": "guest", "cluster.x-k8s.io/role": "worker" },
        "ports": [
            { "name": "dns", "protocol": "UDP", "port": 53, "targetPort": 30053 },
            { "name": "h2", "protocol": "TCP", "port": 443, "targetPort": 30443, "appProtocol": "kubernetes.io/h2c" },
        ],
    });
    assert_eq!(made, wanted, "the health check port of the guest is not among them");
}

#[test]
fn an_object_of_the_reference_is_taken_over_and_what_nobody_wants_goes() {
    let before = left_by_the_reference(&json!({}), &[LAST_APPLIED, "metallb.io/address-pool", "gone"]);
    let after = made(&guest(&json!({})), &before);
    let wanted = json!({ "metallb.io/address-pool": "public", "metallb.io/ip-allocated-from-pool": "old",
        "cluster.x-k8s.io/tenant-service-uid": UID });
    assert_eq!(after["metadata"]["annotations"], wanted);
    assert_eq!(after["metadata"]["labels"]["added-by"], "infra");
    let ports =
        json!([{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 30080, "nodePort": 31000 }]);
    assert_eq!(after["spec"]["ports"], ports);
    assert_eq!(after["spec"]["clusterIP"], "10.0.0.7");
    assert_eq!(after["metadata"]["resourceVersion"], "7", "the precondition of the change");
}

#[test]
fn annotations_that_others_wrote_stay() {
    let after = made(&guest(&json!({})), &left_by_the_reference(&json!({}), &[]));
    assert_eq!(after["metadata"]["annotations"]["gone"], "x");
}

#[rstest]
#[case("ports", json!({"ports": [{"name": "http", "port": 80, "nodePort": 30099}]}))]
#[case("externalTrafficPolicy", json!({"externalTrafficPolicy": "Local"}))]
#[case("loadBalancerSourceRanges", json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]}))]
#[case("loadBalancerIP", json!({"loadBalancerIP": "192.0.2.9"}))]
#[case("sessionAffinity", json!({"sessionAffinity": "ClientIP",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}))]
fn a_change_of_the_guest_and_its_way_back_are_seen(#[case] field: &str, #[case] change: Value) {
    let plain = made(&guest(&json!({})), &left_by_the_reference(&json!({}), &[]));
    let changed = guest(&change);
    let differences = mirror(&changed, Some(&read(&plain))).differences(&read(&plain));
    assert!(differences.contains(&field), "{differences:?}");
    let after = made(&changed, &plain);
    let mut back = after.clone();
    // What infra's API writes into managedFields after our change.
    back["metadata"]["managedFields"] = json!([{ "manager": "kubevirt-cloud-controller-manager",
        "fieldsV1": { "f:spec": { "f:loadBalancerIP": {} } } }]);
    let back = made(&guest(&json!({})), &back);
    assert_eq!(back["spec"], plain["spec"]);
}

#[test]
fn infras_own_health_check_port_stays_with_policy_local_and_goes_with_it() {
    let local = json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000 });
    let object = left_by_the_reference(&local, &[]);
    let kept =
        made(&guest(&json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": 32111 })), &object);
    assert_eq!(kept["spec"]["healthCheckNodePort"], 32000);
    let dropped = made(&guest(&json!({})), &object);
    assert_eq!(dropped["spec"].get("healthCheckNodePort"), None);
}

#[test]
fn an_address_that_infra_wrote_itself_stays() {
    let object = left_by_the_reference(&json!({ "loadBalancerIP": "192.0.2.50" }), &[]);
    assert_eq!(made(&guest(&json!({})), &object)["spec"]["loadBalancerIP"], "192.0.2.50");
}

#[test]
fn external_addresses_of_the_reference_stay_and_new_ones_are_refused() {
    let object = left_by_the_reference(&json!({ "externalIPs": ["192.0.2.1", "192.0.2.2"] }), &[]);
    let guest = guest(&json!({ "externalIPs": ["192.0.2.2", "192.0.2.3"] }));
    assert_eq!(made(&guest, &object)["spec"]["externalIPs"], json!(["192.0.2.2"]));
    let refused = mirror(&guest, Some(&read(&object))).refused;
    let withheld = |addresses: &[String]| addresses == ["192.0.2.3"];
    assert!(
        matches!(&refused[..], [Refused::Policy(Withheld::ExternalIps { addresses, .. })] if withheld(addresses)),
        "{refused:?}"
    );
    assert_eq!(mirror(&guest, None).new_object()["spec"].get("externalIPs"), None);
}

#[test]
fn the_second_family_that_infra_added_is_no_difference_and_is_given_up_again() {
    let dual = json!({ "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
        "clusterIPs": ["10.0.0.7", "fd00::7"] });
    let object = left_by_the_reference(&dual, &[]);
    let both = guest(&json!({ "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack" }));
    assert_eq!(made(&both, &object)["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let single = made(&guest(&json!({})), &object);
    assert_eq!(single["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(single["spec"]["clusterIPs"], json!(["10.0.0.7"]));
}

#[test]
fn a_first_family_that_can_not_change_is_told_and_left() {
    let object = left_by_the_reference(&json!({}), &[]);
    let guest = guest(&json!({ "ipFamilies": ["IPv6"] }));
    assert_eq!(made(&guest, &object)["spec"]["ipFamilies"], json!(["IPv4"]));
    let refused = mirror(&guest, Some(&read(&object))).refused;
    assert!(matches!(&refused[..], [Refused::Family { .. }]), "{refused:?}");
}

#[rstest]
#[case(false, false, "Cluster", true)]
#[case(false, false, "Local", true)]
#[case(true, false, "Cluster", false)]
#[case(true, true, "Local", false)]
#[case(false, true, "Cluster", true)]
#[case(false, true, "Local", false)]
fn the_configuration_decides_who_writes_the_endpoints(
    #[case] selectorless: bool,
    #[case] slices_for_local: bool,
    #[case] policy: &str,
    #[case] selected: bool,
) {
    let guest = guest(&json!({ "externalTrafficPolicy": policy }));
    let choice = EndpointChoice { selectorless, slices_for_local, ..EndpointChoice::default() };
    let source = EndpointSource { choice, ..EndpointSource::default() };
    let mirror = Mirror::of(&guest, None, &identity(), source, &GuestPolicy::default(), false);
    assert_eq!(mirror.spec.selector.is_empty(), !selected);
    assert_eq!(mirror.new_object()["spec"].get("selector").is_some(), selected);
}

#[test]
fn a_policy_that_became_tighter_takes_back_what_passed() {
    let own = ["metallb.io/address-pool", "gone"];
    let mut object =
        left_by_the_reference(&json!({ "externalIPs": ["192.0.2.1"], "loadBalancerIP": "192.0.2.9" }), &own);
    object["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"] = json!({ "f:loadBalancerIP": {} });
    let spec = json!({ "externalIPs": ["192.0.2.1"], "loadBalancerIP": "192.0.2.9" });
    let (guest, infra) = (guest(&spec), read(&object));
    let policy = GuestPolicy {
        annotations: crate::config::policy::AnnotationPolicy {
            allow: Some(Vec::new()),
            ..Default::default()
        },
        external_ips: Some(Networks::default()),
        load_balancer_ips: Some(Networks::default()),
        ..GuestPolicy::default()
    };
    let mirror = Mirror::of(&guest, Some(&infra), &identity(), EndpointSource::default(), &policy, false);
    assert_eq!(mirror.refused.len(), 3, "{:?}", mirror.refused);
    let mut made = object.clone();
    mirror.write_into(&mut made, &infra);
    assert!(mirror.differences(&read(&made)).is_empty());
    assert_eq!(made["spec"].get("externalIPs"), None);
    assert_eq!(made["spec"].get("loadBalancerIP"), None);
    let annotations = json!({ LAST_APPLIED: "{}", "metallb.io/ip-allocated-from-pool": "old",
        "cluster.x-k8s.io/tenant-service-uid": UID });
    assert_eq!(made["metadata"]["annotations"], annotations, "infra's own annotations are not the guest's");
}

/// A mirror of the upstream cloud provider on dual-stack infra has one family. MetalLB takes its address away if the
/// policy grows (metallb/metallb#2482).
#[rstest]
#[case::one_family(json!({}), "PreferDualStack")]
#[case::required(json!({}), "RequireDualStack")]
#[case::infra_stepped_back(json!({"ipFamilyPolicy": "SingleStack"}), "PreferDualStack")]
fn a_mirror_with_an_address_keeps_its_families(#[case] spec: Value, #[case] policy: &str) {
    let mut existing = made(&guest(&json!({})), &left_by_the_reference(&spec, &[]));
    existing["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}});
    let both = guest(&json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": policy}));
    let differences = mirror(&both, Some(&read(&existing))).differences(&read(&existing));
    assert!(differences.is_empty(), "{differences:?}");
}

/// What upstream did not pass on stays off its mirrors until the guest changes it (kubernetes/kubernetes#13892,
/// kubernetes/ingress-nginx#9538).
#[rstest]
#[case::affinity(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}),
    json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}),
    "/spec/sessionAffinity", json!("None"), json!("ClientIP"))]
#[case::http(json!({"ports": [{"name": "http", "port": 80, "nodePort": 30080, "appProtocol": "http"}]}),
    json!({"ports": [{"name": "http", "port": 80, "nodePort": 30080, "appProtocol": "kubernetes.io/h2c"}]}),
    "/spec/ports/0/appProtocol", json!(null), json!("kubernetes.io/h2c"))]
#[case::another_port(json!({"ports": [{"name": "http", "port": 80, "nodePort": 30080, "appProtocol": "https"}]}),
    json!({"ports": [{"name": "http", "port": 80, "nodePort": 30080, "appProtocol": "https"},
        {"name": "other", "port": 81, "nodePort": 30081, "appProtocol": "http"}]}),
    "/spec/ports/0/appProtocol", json!(null), json!("https"))]
fn a_field_that_upstream_left_out_stays_out_until_it_changes(
    #[case] asked: Value,
    #[case] changed: Value,
    #[case] place: &str,
    #[case] left: Value,
    #[case] passed: Value,
) {
    let at = |object: &Value| object.pointer(place).cloned().unwrap_or_default();
    let asking = guest(&asked);
    let object = left_by_the_reference(&json!({}), &[]);
    let first = mirror(&asking, Some(&read(&object)));
    assert!(matches!(&first.refused[..], [Refused::Adopted(_)]), "{:?}", first.refused);
    let adopted = made(&asking, &object);
    assert_eq!(at(&adopted), left);
    // Once more, from what infra has now.
    assert_eq!(at(&made(&asking, &adopted)), left);
    assert_eq!(at(&mirror(&asking, None).new_object()), at(&json!({"spec": asked})), "a new one has it");

    let mut after = adopted.clone();
    after["metadata"]["managedFields"] = json!([{ "manager": "kubevirt-cloud-controller-manager",
        "fieldsV1": { "f:metadata": { "f:annotations": { format!("f:{ADOPTED_ANNOTATION}"): {} } } } }]);
    let after = made(&guest(&changed), &after);
    assert_eq!(at(&after), passed);
    assert_eq!(after["metadata"]["annotations"].get(ADOPTED_ANNOTATION), None);
    assert!(mirror(&guest(&changed), Some(&read(&after))).refused.is_empty());
}

#[test]
fn a_guest_cannot_write_the_record_of_the_takeover() {
    let mut asking = guest(&json!({"sessionAffinity": "ClientIP"}));
    asking.metadata.annotations = Some([(ADOPTED_ANNOTATION.to_owned(), "{}".to_owned())].into());
    assert_eq!(mirror(&asking, None).new_object()["metadata"]["annotations"].get(ADOPTED_ANNOTATION), None);
}

#[test]
fn a_denied_field_is_left_as_infra_has_it_and_reported() {
    let policy = GuestPolicy {
        deny_fields: [Field::SessionAffinity, Field::AppProtocol, Field::IpFamilyPolicy].into(),
        ..GuestPolicy::default()
    };
    let asking = guest(&json!({"sessionAffinity": "ClientIP", "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "PreferDualStack",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080, "appProtocol": "http"}]}));
    let of = |existing: Option<&InfraService>| {
        Mirror::of(&asking, existing, &identity(), EndpointSource::default(), &policy, false)
    };
    let new = of(None);
    let spec = new.new_object()["spec"].clone();
    assert_eq!((&spec["sessionAffinity"], &spec["ipFamilyPolicy"]), (&json!("None"), &json!("SingleStack")));
    assert_eq!(spec["ports"][0].get("appProtocol"), None);
    let denied: Vec<_> = new.refused.iter().map(ToString::to_string).collect();
    assert_eq!(denied.len(), 3, "{denied:?}");
    assert!(
        ["sessionAffinity", "appProtocol", "ipFamilyPolicy"]
            .iter()
            .all(|field| denied.concat().contains(field))
    );

    // What infra's operator wrote on the mirror stays.
    let mut existing = made(&guest(&json!({})), &left_by_the_reference(&json!({}), &[]));
    existing["spec"]["sessionAffinity"] = json!("ClientIP");
    existing["spec"]["ports"][0]["appProtocol"] = json!("https");
    let existing = read(&existing);
    let differences = of(Some(&existing)).differences(&existing);
    assert!(differences.is_empty(), "{differences:?}");
}

/// A Service that prefers two families and gets no address steps back to one (KEP-563, metallb/metallb#2482), for good.
#[rstest]
#[case::prefers("PreferDualStack", true, json!([]), "SingleStack")]
#[case::requires("RequireDualStack", true, json!([]), "PreferDualStack")]
#[case::not_yet("PreferDualStack", false, json!([]), "PreferDualStack")]
#[case::has_an_address("PreferDualStack", true, json!([{"ip": "192.0.2.1"}]), "PreferDualStack")]
fn without_an_address_a_second_family_is_given_up(
    #[case] policy: &str,
    #[case] is_overdue: bool,
    #[case] ingress: Value,
    #[case] wanted: &str,
) {
    let both = guest(&json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": policy}));
    let dual = json!({ "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
        "clusterIPs": ["10.0.0.7", "fd00::7"] });
    let mut object = made(&both, &left_by_the_reference(&dual, &[]));
    object["status"] = json!({"loadBalancer": {"ingress": ingress}});
    let infra = read(&object);
    let mirror = Mirror::of(
        &both,
        Some(&infra),
        &identity(),
        EndpointSource::default(),
        &GuestPolicy::default(),
        is_overdue,
    );
    mirror.write_into(&mut object, &infra);
    assert_eq!(object["spec"]["ipFamilyPolicy"], wanted);
    assert_eq!(mirror.refused == [Refused::SecondFamily], wanted == "SingleStack");
    // It does not come back when the wait is over, with an address or without.
    let again = Mirror::of(
        &both,
        Some(&read(&object)),
        &identity(),
        EndpointSource::default(),
        &GuestPolicy::default(),
        false,
    );
    assert!(again.differences(&read(&object)).is_empty());
}

#[test]
fn node_ports_go_with_the_switch_and_come_back_with_it() {
    let before = made(&guest(&json!({})), &left_by_the_reference(&json!({}), &[]));
    let switched = |object: &Value, to: Option<bool>| {
        let infra = read(object);
        let mut mirror = mirror(&guest(&json!({})), Some(&infra));
        if to.is_some() {
            mirror.spec.allocate_load_balancer_node_ports = to;
        }
        let mut object = object.clone();
        mirror.write_into(&mut object, &infra);
        assert!(mirror.differences(&read(&object)).is_empty());
        (mirror.differences(&infra), object)
    };
    assert_eq!(switched(&before, None).0, Vec::<&str>::new());
    let (differences, off) = switched(&before, Some(false));
    assert_eq!(differences, ["allocateLoadBalancerNodePorts"]);
    assert_eq!(off["spec"]["allocateLoadBalancerNodePorts"], false);
    assert_eq!(off["spec"]["ports"][0].get("nodePort"), None, "in the same call");
    assert_eq!(switched(&off, None).0, Vec::<&str>::new(), "without the key, it stays as infra has it");
    let (_, on) = switched(&off, Some(true));
    assert_eq!(on["spec"]["allocateLoadBalancerNodePorts"], true);
}
