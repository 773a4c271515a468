//! An `EndpointSlice` of infra as it is read, and as we write it. We write all of our own slices, and never those of
//! other writers.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use crate::{
    infra::{
        mirrors::InfraService,
        slices::{Content, Endpoint, MANAGER_LABEL, OUR_MANAGER, Port},
    },
    wire::{
        endpoint_slice::{Conditions, SERVICE_LABEL},
        ip_family::Family,
    },
};
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

/// The kind that `targetRef` names.
const INSTANCE_KIND: &str = "VirtualMachineInstance";
/// Its API version.
const INSTANCE_API: &str = "kubevirt.io/v1";

impl Content {
    /// The labels of our slices of a Service: its own labels, and those that name the Service and the writer.
    pub fn labels(service: &InfraService) -> BTreeMap<String, String> {
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.insert(SERVICE_LABEL.to_owned(), service.metadata.name.clone().unwrap_or_default());
        labels.insert(MANAGER_LABEL.to_owned(), OUR_MANAGER.to_owned());
        labels
    }

    /// The ports of our slices of a Service: those in the VM.
    pub fn ports(service: &InfraService) -> Vec<Port> {
        let ports = service.spec.ports.iter().filter_map(|port| {
            let Some(IntOrString::Int(number)) = port.target_port else { return None };
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol().to_owned(),
                port: number,
                app_protocol: port.app_protocol.clone(),
            })
        });
        ports.collect()
    }

    /// The whole object; `version` is the resourceVersion that it replaces.
    pub fn object(&self, service: &InfraService, name: &str, family: Family, version: Option<&str>) -> Value {
        let namespace = service.metadata.namespace.as_deref();
        let endpoints: Vec<_> = self.endpoints.iter().map(|it| it.object(namespace)).collect();
        let ports: Vec<_> = self.ports.iter().map(Port::object).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": namespace, "labels": self.labels, "resourceVersion": version,
                // It does not block the owner's deletion, which would need a right on the owner's finalizers.
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "controller": true,
                    "name": service.metadata.name, "uid": service.metadata.uid}],
            },
            "addressType": family.as_str(), "endpoints": endpoints, "ports": ports,
        })
    }
}

impl Port {
    fn object(&self) -> Value {
        json!({"name": self.name, "protocol": self.protocol, "port": self.port, "appProtocol": self.app_protocol})
    }
}

impl Endpoint {
    fn object(&self, namespace: Option<&str>) -> Value {
        let Conditions { ready, serving, terminating } = self.conditions;
        json!({
            "addresses": [self.address], "nodeName": self.host,
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "targetRef": {"apiVersion": INSTANCE_API, "kind": INSTANCE_KIND, "namespace": namespace,
                "name": self.vm, "uid": self.uid},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::slices::{InfraSlice, Manager, WireSlice};

    #[test]
    fn what_is_written_is_read_again() {
        let service = json!({"metadata": {"name": "a1", "namespace": "hcp", "uid": "u",
            "labels": {"cluster.x-k8s.io/cluster-name": "guest"}},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 30080, "appProtocol": "x"},
                {"port": 53, "protocol": "UDP", "targetPort": 30053}, {"port": 9, "targetPort": "named"}]}});
        let service: InfraService = serde_json::from_value(service).unwrap();
        let endpoint = Endpoint {
            vm: "w1".into(),
            uid: "v".into(),
            address: "10.0.0.7".parse().unwrap(),
            host: Some("infra-1".into()),
            conditions: Conditions { ready: false, serving: true, terminating: true },
        };
        let content = Content {
            labels: Content::labels(&service),
            ports: Content::ports(&service),
            endpoints: vec![endpoint],
        };
        assert_eq!(content.ports.len(), 2, "a port that is no number is not ours");
        let object = content.object(&service, "a1-ipv4-0", Family::V4, Some("7"));
        let wire: WireSlice = serde_json::from_value(object).unwrap();
        assert_eq!(wire.service(), Some("a1"));
        let read = InfraSlice::from(wire);
        assert_eq!((read.manager, read.family), (Manager::Ours, Some(Family::V4)));
        assert_eq!((read.owner.as_deref(), read.is_ready), (Some("u"), false));
        assert_eq!(read.content, Some(content));
    }

    #[test]
    fn an_owner_that_another_program_adds_does_not_make_our_slice_anothers() {
        let of = |owners: serde_json::Value| {
            let slice =
                json!({"metadata": {"name": "a1-ipv4-0", "ownerReferences": owners}, "addressType": "IPv4"});
            InfraSlice::from(serde_json::from_value::<WireSlice>(slice).unwrap()).owner
        };
        let owner = |uid: &str, controller: Option<bool>| json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": controller});
        let (ours, added) = (owner("ours", Some(true)), owner("added", None));
        for owners in [json!([ours]), json!([added, ours]), json!([ours, added])] {
            assert_eq!(of(owners).as_deref(), Some("ours"));
        }
        assert_eq!(of(json!([added])).as_deref(), Some("added"));
        assert_eq!(of(json!(null)), None);
    }

    #[test]
    fn what_the_reference_left_is_ours_and_to_be_written_anew() {
        let left = json!({"metadata": {"name": "a1-x7k2p", "labels": {SERVICE_LABEL: "a1", MANAGER_LABEL: OUR_MANAGER}},
            "addressType": "IPv4", "ports": [{"port": 30080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.7"], "nodeName": "infra-1"}]});
        let read = InfraSlice::from(serde_json::from_value::<WireSlice>(left).unwrap());
        assert_eq!((read.manager, read.is_ready, read.content), (Manager::Ours, true, None));
    }
}
