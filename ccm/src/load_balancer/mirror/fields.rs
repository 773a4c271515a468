//! The fields that the upstream cloud provider does not pass on, and that some load balancers of infra refuse or take for
//! more than the guest means: AWS refuses session affinity (kubernetes/kubernetes#13892), Azure probes `/` of a port with
//! `appProtocol: http` and takes all backends out (kubernetes/ingress-nginx#9538). Where upstream made the mirror, they stay
//! as they are until the guest changes them, so that exchanging the program changes no load balancer that works.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ADOPTED_ANNOTATION, Refused, affinity, affinity_config};
use crate::{
    config::policy::{Field, GuestPolicy, Withheld},
    guest::services::GuestService,
    guest_names::SERVICE_UID_ANNOTATION,
    infra::mirrors::InfraService,
    wire::service::{ServicePort, ServiceSpec},
};

/// These fields as the mirror gets them.
pub(super) struct Fields<'a> {
    /// The spec whose session affinity it gets.
    pub(super) affinity: &'a ServiceSpec,
    /// The ports whose `appProtocol` it gets.
    app_protocols: &'a [ServicePort],
    record: Record,
}

/// The content of [`ADOPTED_ANNOTATION`]: what the guest had at the takeover.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    #[serde(skip_serializing_if = "Option::is_none")]
    session_affinity: Option<Affinity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_protocol: Option<BTreeMap<String, String>>,
}

/// `sessionAffinity` and `sessionAffinityConfig`.
type Affinity = (String, Option<Value>);

/// Where a field of the mirror comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Guest,
    /// The operator does not let it through: the mirror keeps what it has.
    Denied,
    /// The mirror keeps what upstream gave it.
    Adopted,
}

impl<'a> Fields<'a> {
    /// The fields of the mirror of `guest`.
    pub(super) fn of(
        guest: &'a GuestService,
        existing: Option<&'a InfraService>,
        policy: &GuestPolicy,
        refused: &mut Vec<Refused>,
    ) -> Self {
        static NOTHING: LazyLock<ServiceSpec> = LazyLock::new(ServiceSpec::default);
        let has = existing.map_or(&*NOTHING, |infra| &infra.spec);
        let wants = &guest.spec;
        let before = existing.and_then(Record::of);
        // A mirror without a record and without our annotation is upstream's still, and everything in it is recorded.
        let is_upstreams = existing.is_some() && before.is_none();
        let before = before.unwrap_or_default();
        let mut adopted = Vec::new();
        let mut choose = |field: Field, differs: bool, is_recorded: bool| {
            if policy.deny_fields.contains(&field) {
                refused.extend(differs.then(|| denied(field)));
                Source::Denied
            } else if differs && (is_upstreams || is_recorded) {
                adopted.push(field.name());
                Source::Adopted
            } else {
                Source::Guest
            }
        };
        let (affinity, protocols) = (affinity_of(wants), app_protocols(&wants.ports));
        let is_recorded = before.session_affinity.as_ref() == Some(&affinity);
        let affinity_source = choose(Field::SessionAffinity, affinity != affinity_of(has), is_recorded);
        let is_recorded = before.app_protocol.as_ref() == Some(&protocols);
        let protocol_source = choose(Field::AppProtocol, protocols != app_protocols(&has.ports), is_recorded);
        if !adopted.is_empty() {
            refused.push(Refused::Adopted(adopted));
        }
        let is = |source: Source| source == Source::Adopted;
        Self {
            affinity: if affinity_source == Source::Guest { wants } else { has },
            app_protocols: if protocol_source == Source::Guest { &wants.ports } else { &has.ports },
            record: Record {
                session_affinity: is(affinity_source).then_some(affinity),
                app_protocol: is(protocol_source).then_some(protocols),
            },
        }
    }

    /// What to write into [`ADOPTED_ANNOTATION`].
    pub(super) fn record(&self) -> Option<String> {
        (self.record != Record::default()).then(|| json!(self.record).to_string())
    }

    /// Traffic goes to the node port of the guest's Service in each VM.
    pub(super) fn mirror_port(&self, port: &ServicePort) -> ServicePort {
        let app_protocol = self.app_protocols.iter().find(|other| key(other) == key(port));
        let app_protocol = app_protocol.and_then(|other| other.app_protocol.clone());
        ServicePort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            protocol: Some(port.protocol().to_owned()),
            port: port.port,
            target_port: Some(IntOrString::Int(port.node_port)),
            node_port: 0,
            app_protocol: app_protocol.filter(|name| !name.is_empty()),
        }
    }
}

impl Record {
    /// The record of a mirror that is ours. `None` = the upstream cloud provider's, not taken over yet. A record that
    /// cannot be read counts as none: the guest's fields are passed on.
    fn of(infra: &InfraService) -> Option<Self> {
        let annotations = infra.metadata.annotations.as_ref();
        let find = |key: &str| annotations.and_then(|all| all.get(key));
        find(SERVICE_UID_ANNOTATION)?;
        let record = find(ADOPTED_ANNOTATION).and_then(|text| serde_json::from_str(text).ok());
        Some(record.unwrap_or_default())
    }
}

/// A field that the operator denies.
pub(super) fn denied(field: Field) -> Refused {
    Refused::Policy(Withheld::Fields(vec![field.name()]))
}

fn affinity_of(spec: &ServiceSpec) -> Affinity {
    (affinity(spec).to_owned(), affinity_config(spec).cloned())
}

/// The protocols that are named, by port.
fn app_protocols(ports: &[ServicePort]) -> BTreeMap<String, String> {
    let named = ports.iter().filter_map(|port| Some((key(port), port.app_protocol.clone()?)));
    let named = named.filter(|(_, name)| !name.is_empty());
    named.map(|((port, protocol), name)| (format!("{port}/{protocol}"), name)).collect()
}

fn key(port: &ServicePort) -> (i32, &str) {
    (port.port, port.protocol())
}
