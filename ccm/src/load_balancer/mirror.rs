//! What the infra Service of a guest Service should be, how it differs from that, and the whole object with the
//! difference corrected. Fields that other programs own (addresses, node ports, other annotations) stay as they are.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

mod fields;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Map, Value, json};

use crate::{
    config::policy::{Field, GuestPolicy, LAST_APPLIED, Withheld},
    guest::services::GuestService,
    guest_names::{GuestLabels, SERVICE_UID_ANNOTATION, infra_name},
    handover::EndpointSource,
    infra::mirrors::InfraService,
    wire::service::{LOAD_BALANCER, NO_AFFINITY, ServicePort, ServiceSpec},
};
use fields::{Fields, denied};

/// Annotation of a mirror that the upstream cloud provider made: the guest's fields that it did not pass on, with their values
/// at the takeover, as JSON. As long as the guest leaves such a field as it is, the mirror's stays as it was.
pub const ADOPTED_ANNOTATION: &str = "cluster.x-k8s.io/tenant-service-adopted";
/// `ipFamilyPolicy` of one family.
const SINGLE_STACK: &str = "SingleStack";
/// `ipFamilyPolicy` of both families where infra has both.
const PREFER_DUAL_STACK: &str = "PreferDualStack";

/// What an infra Service should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Its name.
    pub name: String,
    /// Labels that it must have.
    pub labels: BTreeMap<String, String>,
    /// Annotations that it must have.
    pub annotations: BTreeMap<String, String>,
    /// Its spec. Infra allots `ports[].nodePort`.
    pub spec: ServiceSpec,
    /// The object that owns it.
    pub owner: Option<OwnerReference>,
    /// The guest's requests that are refused.
    pub refused: Vec<Refused>,
}

/// A request of the guest that the mirror leaves out; the rest of the Service is served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The policy of infra's operator does not allow it.
    #[error(transparent)]
    Policy(#[from] Withheld),
    /// The mirror could lose its address, or get none.
    #[error(
        "the infra service has one address family and keeps it: some load balancers give no address to a service of two \
         families, and take one away that asks for a second; recreate the service to try both again"
    )]
    SecondFamily,
    /// The mirror was made by the upstream cloud provider, which did not pass these fields on.
    #[error(
        "{} stays on the infra service as it was before this program took it over, because its load balancer may refuse \
         another value; change the field, or recreate the service, to have it passed on",
        .0.join(", ")
    )]
    Adopted(Vec<&'static str>),
    /// The first address family of a Service can not change.
    #[error(
        "the infra service has the address family {found} and can not change to {wanted}; recreate the service"
    )]
    Family {
        /// The family of the infra Service.
        found: String,
        /// The family of the guest Service.
        wanted: String,
    },
}

impl Mirror {
    /// The mirror of `guest`, within `policy`, with what the `existing` one has and may keep.
    pub fn of(
        guest: &GuestService,
        existing: Option<&InfraService>,
        identity: &GuestLabels,
        endpoints: EndpointSource,
        policy: &GuestPolicy,
        is_overdue: bool,
    ) -> Self {
        let (mut refused, mut withheld) = (Vec::new(), Vec::new());
        let fields = Fields::of(guest, existing, policy, &mut refused);
        let has_selector = existing.map(|infra| !infra.spec.selector.is_empty());
        let wants_selector = endpoints.wants_selector(guest.spec.is_local(), has_selector);
        let (ip_families, ip_family_policy) = families(guest, existing, policy, is_overdue, &mut refused);
        let spec = ServiceSpec {
            kind: LOAD_BALANCER.to_owned(),
            load_balancer_class: existing.and_then(|infra| infra.spec.load_balancer_class.clone()),
            ports: guest.spec.ports.iter().map(|port| fields.mirror_port(port)).collect(),
            selector: if wants_selector { identity.selector() } else { BTreeMap::new() },
            session_affinity: affinity(fields.affinity).to_owned(),
            session_affinity_config: affinity_config(fields.affinity).cloned(),
            external_traffic_policy: guest.spec.external_traffic_policy.clone(),
            load_balancer_source_ranges: guest.spec.load_balancer_source_ranges.clone(),
            ip_families,
            ip_family_policy,
            load_balancer_ip: address(
                policy.load_balancer_ip(&guest.spec.load_balancer_ip, &mut withheld),
                existing,
            ),
            external_ips: policy.external_ips(
                &guest.spec.external_ips,
                existing.map(|infra| infra.spec.external_ips.as_slice()).unwrap_or_default(),
                &mut withheld,
            ),
            allocate_load_balancer_node_ports: existing
                .and_then(|infra| infra.spec.allocate_load_balancer_node_ports),
        };
        let mut annotations = guest.metadata.annotations.clone().unwrap_or_default();
        annotations.remove(LAST_APPLIED);
        annotations.remove(ADOPTED_ANNOTATION);
        let mut annotations = policy.annotations(annotations, &mut withheld);
        refused.extend(withheld.into_iter().map(Refused::Policy));
        annotations.insert(SERVICE_UID_ANNOTATION.to_owned(), guest.uid().to_owned());
        annotations.extend(fields.record().map(|record| (ADOPTED_ANNOTATION.to_owned(), record)));
        Self {
            name: infra_name(guest.uid()),
            labels: identity.labels(guest),
            annotations,
            spec,
            owner: None,
            refused,
        }
    }

    /// The names of the fields in which `infra` differs from the mirror; empty = it is the mirror.
    pub fn differences(&self, infra: &InfraService) -> Vec<&'static str> {
        let holds = |all: &Option<BTreeMap<String, String>>, wanted: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| all.as_ref().and_then(|all| all.get(key)) == Some(value))
        };
        let (have, want) = (&infra.spec, &self.spec);
        let ports = have.ports.iter().map(without_node_port).eq(want.ports.iter().map(without_node_port));
        let differs = [
            ("labels", !holds(&infra.metadata.labels, &self.labels)),
            ("annotations", !holds(&infra.metadata.annotations, &self.annotations)),
            ("annotations", self.stale_annotations(infra).next().is_some()),
            ("ownerReferences", self.lacks_owner(infra)),
            ("type", have.kind != want.kind),
            ("ports", !ports),
            ("selector", have.selector != want.selector),
            ("sessionAffinity", affinity(have) != affinity(want)),
            ("sessionAffinityConfig", have.session_affinity_config != want.session_affinity_config),
            (
                "externalTrafficPolicy",
                differs_if_set(&have.external_traffic_policy, &want.external_traffic_policy),
            ),
            (
                "loadBalancerSourceRanges",
                have.load_balancer_source_ranges != want.load_balancer_source_ranges,
            ),
            ("ipFamilies", families_differ(have, want)),
            ("loadBalancerIP", have.load_balancer_ip != want.load_balancer_ip),
            ("externalIPs", have.external_ips != want.external_ips),
            ("allocateLoadBalancerNodePorts", have.allocates_node_ports() != want.allocates_node_ports()),
        ];
        let mut fields: Vec<_> =
            differs.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect();
        fields.dedup();
        fields
    }

    /// Annotations that we or the upstream cloud provider wrote and that the guest's Service no longer has.
    fn stale_annotations<'a>(&'a self, infra: &'a InfraService) -> impl Iterator<Item = &'a str> {
        let present = infra.metadata.annotations.as_ref();
        infra.own_annotations().filter(move |key| {
            present.is_some_and(|present| present.contains_key(*key)) && !self.annotations.contains_key(*key)
        })
    }

    fn lacks_owner(&self, infra: &InfraService) -> bool {
        let present = infra.metadata.owner_references.as_deref().unwrap_or_default();
        self.owner.as_ref().is_some_and(|owner| present.iter().all(|present| present.uid != owner.uid))
    }

    /// The object to create.
    pub fn new_object(&self) -> Value {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": self.name, "labels": self.labels, "annotations": self.annotations },
            "spec": {},
        });
        if let Some(owner) = &self.owner {
            object["metadata"]["ownerReferences"] = json!([owner]);
        }
        self.write_spec(&mut object["spec"], &ServiceSpec::default());
        object
    }

    /// Turns `object` into the mirror; `infra` is what we read of it. Everything that is not ours stays.
    pub fn write_into(&self, object: &mut Value, infra: &InfraService) {
        let metadata = map(&mut object["metadata"]);
        let labels = map(metadata.entry("labels").or_insert_with(|| json!({})));
        labels.extend(self.labels.iter().map(|(key, value)| (key.clone(), json!(value))));
        let annotations = map(metadata.entry("annotations").or_insert_with(|| json!({})));
        for stale in self.stale_annotations(infra) {
            annotations.remove(stale);
        }
        annotations.extend(self.annotations.iter().map(|(key, value)| (key.clone(), json!(value))));
        if let Some(owner) = self.owner.as_ref().filter(|_| self.lacks_owner(infra)) {
            // An owner with the same kind and name but another UID is an object that no longer exists.
            let mut owners = infra.metadata.owner_references.clone().unwrap_or_default();
            owners.retain(|other| (&other.kind, &other.name) != (&owner.kind, &owner.name));
            owners.push(owner.clone());
            metadata.insert("ownerReferences".to_owned(), json!(owners));
        }
        self.write_spec(&mut object["spec"], &infra.spec);
    }

    fn write_spec(&self, object: &mut Value, have: &ServiceSpec) {
        let (spec, want) = (map(object), &self.spec);
        let mut set = |key: &str, value: Value| {
            let empty = match &value {
                Value::Null => true,
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(keys) => keys.is_empty(),
                Value::Bool(_) | Value::Number(_) => false,
            };
            if empty {
                spec.remove(key);
            } else {
                spec.insert(key.to_owned(), value);
            }
        };
        set("type", json!(want.kind));
        // With the switch, infra takes back the node ports that are not named.
        let switches_off = have.allocates_node_ports() && !want.allocates_node_ports();
        let had = if switches_off { &[] } else { have.ports.as_slice() };
        set("ports", want.ports.iter().map(|port| wire_port(port, had)).collect());
        set("allocateLoadBalancerNodePorts", json!(want.allocate_load_balancer_node_ports));
        set("selector", json!(want.selector));
        set("sessionAffinity", json!(want.session_affinity));
        set("sessionAffinityConfig", json!(want.session_affinity_config));
        set("loadBalancerSourceRanges", json!(want.load_balancer_source_ranges));
        set("loadBalancerIP", json!(want.load_balancer_ip));
        set("externalIPs", json!(want.external_ips));
        if !want.external_traffic_policy.is_empty() {
            set("externalTrafficPolicy", json!(want.external_traffic_policy));
        }
        if !want.is_local() {
            // Only policy Local has this port. Infra allots it, because the guest's number may be taken there.
            set("healthCheckNodePort", Value::Null);
        }
        if families_differ(have, want) {
            set("ipFamilyPolicy", json!(want.ip_family_policy));
            set("ipFamilies", json!(want.ip_families));
            if want.ip_family_policy.as_deref() == Some(SINGLE_STACK) {
                // The API requires that the second address is dropped together with the second family.
                let first = spec.get("clusterIPs").and_then(|all| all.get(0)).cloned();
                if let Some(first) = first {
                    spec.insert("clusterIPs".to_owned(), json!([first]));
                }
            }
        }
    }
}

/// A field that the API always returns as an object.
fn map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("was just made one")
}

fn affinity(spec: &ServiceSpec) -> &str {
    if spec.session_affinity.is_empty() { NO_AFFINITY } else { &spec.session_affinity }
}

fn affinity_config(spec: &ServiceSpec) -> Option<&Value> {
    spec.session_affinity_config.as_ref().filter(|_| affinity(spec) != NO_AFFINITY)
}

/// Compares a field that the API defaults: if we set no value, there is nothing to compare.
fn differs_if_set(have: &str, want: &str) -> bool {
    !want.is_empty() && have != want
}

fn without_node_port(port: &ServicePort) -> ServicePort {
    let protocol = Some(port.protocol().to_owned());
    ServicePort { node_port: 0, protocol, ..port.clone() }
}

/// One port as infra gets it, with the node port that infra has allotted.
fn wire_port(port: &ServicePort, have: &[ServicePort]) -> Value {
    let mut wire = Map::new();
    if let Some(name) = &port.name {
        wire.insert("name".to_owned(), json!(name));
    }
    wire.insert("protocol".to_owned(), json!(port.protocol()));
    wire.insert("port".to_owned(), json!(port.port));
    wire.insert("targetPort".to_owned(), json!(port.target_port));
    if let Some(app_protocol) = &port.app_protocol {
        wire.insert("appProtocol".to_owned(), json!(app_protocol));
    }
    let same = have.iter().find(|have| (have.port, have.protocol()) == (port.port, port.protocol()));
    if let Some(node_port) = same.map(|same| same.node_port).filter(|number| *number != 0) {
        wire.insert("nodePort".to_owned(), json!(node_port));
    }
    Value::Object(wire)
}

/// The address that the guest asks for. If it asks for none, an address that infra wrote itself stays.
fn address(wanted: &str, existing: Option<&InfraService>) -> String {
    match existing {
        Some(infra) if wanted.is_empty() && !infra.owns_address() => infra.spec.load_balancer_ip.clone(),
        _ => wanted.to_owned(),
    }
}

/// The families: the guest's first one, and the second if infra has it. An infra cluster without the second family
/// would refuse a request that names it.
fn families(
    guest: &GuestService,
    existing: Option<&InfraService>,
    policy: &GuestPolicy,
    is_overdue: bool,
    refused: &mut Vec<Refused>,
) -> (Vec<String>, Option<String>) {
    let Some(wanted) = guest.spec.ip_families.first() else {
        return existing
            .map(|infra| (infra.spec.ip_families.clone(), infra.spec.ip_family_policy.clone()))
            .unwrap_or_default();
    };
    let single = guest.spec.ip_family_policy.as_deref().is_none_or(|policy| policy == SINGLE_STACK);
    let is_denied = policy.deny_fields.contains(&Field::IpFamilyPolicy);
    let keeps_one = keeps_one_family(guest, existing, is_overdue);
    let policy = if single || keeps_one || (is_denied && existing.is_none()) {
        SINGLE_STACK
    } else {
        PREFER_DUAL_STACK
    };
    if policy == SINGLE_STACK && !single {
        refused.push(if is_denied { denied(Field::IpFamilyPolicy) } else { Refused::SecondFamily });
    }
    let found = existing.and_then(|infra| infra.spec.ip_families.first());
    if let Some(found) = found.filter(|found| *found != wanted) {
        refused.push(Refused::Family { found: found.clone(), wanted: wanted.clone() });
        return (vec![found.clone()], Some(policy.to_owned()));
    }
    (vec![wanted.clone()], Some(policy.to_owned()))
}

/// Whether the mirror has one family and keeps it. Some load balancers take an address away if the Service asks for both
/// families and their pool has one (metallb/metallb#2482); the upstream cloud provider made all mirrors so. They give none
/// either to a new Service of two: one that only prefers both steps back after a time without address.
fn keeps_one_family(guest: &GuestService, existing: Option<&InfraService>, is_overdue: bool) -> bool {
    existing.is_some_and(|infra| {
        let prefers = guest.spec.ip_family_policy.as_deref() == Some(PREFER_DUAL_STACK);
        let has_both = infra.spec.ip_families.len() > 1;
        let has_no_address = infra.status.load_balancer.ingress.is_empty();
        infra.spec.ip_family_policy.as_deref() == Some(SINGLE_STACK)
            || (is_overdue && prefers && has_both && has_no_address)
    })
}

/// Infra adds the second family itself, so only the first is compared, unless there is one too many.
fn families_differ(have: &ServiceSpec, want: &ServiceSpec) -> bool {
    let Some(first) = want.ip_families.first() else { return false };
    have.ip_families.first() != Some(first) || have.ip_family_policy != want.ip_family_policy
}

#[cfg(test)]
mod tests;
