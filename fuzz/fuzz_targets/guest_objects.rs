//! Services, EndpointSlices and Nodes, as the guest's users write them, and as infra answers. The first byte chooses the kind. A
//! plan asks infra for no more than the limits, and for nothing more after it was carried out.
#![no_main]

use std::{collections::BTreeMap, sync::Arc};

use ccm::{
    guest::{
        nodes::{GuestNode, WireNode},
        services::GuestService,
        slices::{GuestSlice, WireGuestSlice},
    },
    guest_names::{GuestLabels, is_infra_name},
    handover::EndpointSource,
    infra::{
        machines::{Vm, Vmi, index::Snapshot},
        mirrors::InfraService,
        slices::{InfraSlice, WireSlice},
    },
    load_balancer::plan::{Infra, Moment, PlanConfig, Step, plan},
    nodes::{
        address::{AddressPolicy, addresses},
        recognise::{Recognition, identify, prove},
    },
};
use fuzz::chosen;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|input: &[u8]| {
    let Some((kind, document)) = chosen(input) else { return };
    let Ok(object @ Value::Object(_)) = serde_json::from_slice::<Value>(document) else { return };
    match kind {
        b's' => {
            if let Ok(service) = serde_json::from_value(object) {
                guest_service(service);
            }
        }
        b'i' => {
            if let Ok(infra) = serde_json::from_value::<InfraService>(object) {
                over_foreign(&infra);
            }
        }
        b'e' => {
            if let Ok(wire) = serde_json::from_value::<WireGuestSlice>(object.clone()) {
                assert!(GuestSlice::from(&wire).nodes.keys().all(|node| !node.is_empty()));
            }
            if let Ok(wire) = serde_json::from_value::<WireSlice>(object) {
                drop(InfraSlice::from(wire));
            }
        }
        b'n' => {
            if let Ok(wire) = serde_json::from_value::<WireNode>(object) {
                node(&GuestNode::from(&wire));
            }
        }
        _ => {}
    }
});

fn config() -> PlanConfig {
    let identity = GuestLabels {
        cluster: "guest".parse().expect("a name"),
        infra_labels: BTreeMap::new(),
        former: BTreeMap::new(),
    };
    PlanConfig {
        identity,
        endpoints: EndpointSource::default(),
        policy: Arc::default(),
        limits: ccm::config::limits::Limits::default(),
        node_ports: None,
        guest_cluster: Some("5d307ca9-b3ef-428c-8861-06e72d69f223".to_owned()),
        owner: None,
        moment: Moment::default(),
    }
}

fn guest_service(mut guest: GuestService) {
    guest.slim(|_| {});
    let config = config();
    let first = plan(&guest, Infra::Gone, &config);
    let created = first.steps.iter().find_map(|step| match step {
        Step::Create(mirror) => Some(mirror),
        _ => None,
    });
    assert!(!first.steps.iter().any(|step| matches!(step, Step::Replace(..) | Step::Delete(_))), "{first:?}");
    let Some(mirror) = created else { return };
    assert!(is_infra_name(&mirror.name), "{}", mirror.name);
    let limits = config.limits;
    assert!(limits.ports.is_none_or(|most| mirror.spec.ports.len() <= most));
    assert!(limits.source_ranges.is_none_or(|most| mirror.spec.load_balancer_source_ranges.len() <= most));
    let bytes: usize = mirror.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(limits.annotation_bytes.is_none_or(|most| bytes <= most + 1024), "{bytes} bytes of annotations");
    assert!(mirror.spec.external_ips.is_empty(), "no external address without a policy");
    let mut object = mirror.new_object();
    object["metadata"]["uid"] = "m".into();
    object["metadata"]["resourceVersion"] = "1".into();
    let infra: InfraService = serde_json::from_value(object).expect("what we write, we read");
    let second = plan(&guest, Infra::Present(&infra), &config);
    let changes = |step: &Step| matches!(step, Step::Create(_) | Step::Replace(..) | Step::Delete(_));
    assert!(!second.steps.iter().any(changes), "{second:?} after {mirror:?}");
}

/// An infra Service that says nothing of this guest is neither changed nor deleted.
fn over_foreign(infra: &InfraService) {
    let guest: GuestService = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "5d307ca9-b3ef-428c-8861-06e72d69f223",
            "finalizers": ["service.kubernetes.io/load-balancer-cleanup"]},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]},
    }))
    .expect("a Service");
    let config = config();
    let planned = plan(&guest, Infra::Present(infra), &config);
    if config.identity.check(&guest, infra).is_err() {
        let touches = |step: &Step| matches!(step, Step::Create(_) | Step::Replace(..) | Step::Delete(_));
        assert!(!planned.steps.iter().any(touches), "{planned:?}");
    }
    for step in planned.steps {
        if let Step::Replace(mirror, _) = step {
            let mut object = json!({"metadata": {}, "spec": {}});
            mirror.write_into(&mut object, infra);
            assert_eq!(object["spec"]["type"], "LoadBalancer");
        }
    }
}

fn node(node: &GuestNode) {
    let known = Snapshot::of(
        ["w1", "w2"].map(|name| Vm { name: name.into(), ..Vm::default() }).into(),
        ["w1", "w2"].map(|name| Vmi { name: name.into(), ..Vmi::default() }).into(),
    );
    match identify(&node.claims, known.known()) {
        Recognition::Vm { id, .. } => assert!(kubevirt::ObjectName::parse(id.vm()).is_some(), "{id}"),
        Recognition::Ambiguous { vms } => assert!(!vms.is_empty()),
        Recognition::Foreign | Recognition::Unidentified | Recognition::NoVm => {}
    }
    if let Some(id) = prove(&node.claims, known.known()) {
        assert!(["w1", "w2"].contains(&id.vm()), "{id} is no known VM");
    }
    let policy = AddressPolicy::default();
    let kept = addresses(&policy, None, &node.provided, &node.addresses);
    assert!(node.addresses.is_empty() || !kept.is_empty(), "a list that has addresses never becomes empty");
    assert_eq!(addresses(&policy, None, &node.provided, &kept), kept, "a second pass changes nothing");
}
